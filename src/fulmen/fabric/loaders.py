"""What `Fabric.setup_dataloaders` returns: a loader whose batches are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from fulmen.data.combined_loader import CombinedLoader, length_of
from fulmen.data.position import is_stateful
from fulmen.data.redivide import Opening, global_batch_size, redivided
from fulmen.data.resumable import ResumableLoader
from fulmen.data.sampler import set_sampler_epoch
from fulmen.data.shard import Shard
from fulmen.data.worker_report import raise_explained
from fulmen.engine.loaders import seed_workers, shard_for_fabric
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from fulmen.utilities.tree import move_data_to_device

__all__ = ["wrap_dataloader"]


class _Batches:
    """The batches of a pass: counted, on the device, and with errors that say what is known of the workers.

    It can go on after an error if the loader's own iterator can.

    Args:
        loader: The prepared loader, which is told how far the pass is.
        batches: Over the loader inside of it.
    """

    __slots__ = ("_batches", "_loader", "_move")

    def __init__(self, loader: _FabricDataLoader, batches: Iterator[Any]) -> None:
        self._loader = loader  # which does not know this object: the workers shall end as soon as the loop lets go
        self._batches = batches
        self._move = loader.move

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            self._loader.is_over = True
            raise
        except Exception as error:
            raise_explained(error)
        self._loader.num_given += 1
        return batch if self._move is None else self._move(batch)


class _FabricDataLoader:
    """A loader that moves its batches and tells its samplers the epoch; other attributes are those of the loader.

    Its position can be saved: a loop that was interrupted inside an epoch goes on with the very next batch.

    Args:
        dataloader: The loader.
        move: Brings a batch to the device; `None` where batches can be used as they are.
        shard: Which part of the data this process reads.
    """

    def __init__(
        self,
        dataloader: Any,
        move: Callable[[Any], Any] | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.dataloader = dataloader
        self.move = move
        self._shard = shard or Shard(0, 1)
        # state
        self._epoch = 0  # passes that have begun
        self._position = ResumableLoader(dataloader)
        self._opening = Opening()
        self.num_given = 0  # batches of the pass
        self.is_over = True  # the pass
        self._rng: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.dataloader)

    @property
    def num_consumed(self) -> int:
        """Number of batches of this epoch before the next one, those of an interrupted run counted.

        To number the batches of a loop that may be resumed: `enumerate(loader, loader.num_consumed)`.
        """
        return 0 if self.is_over else self._opening.batch + self.num_given

    def __iter__(self) -> Iterator[Any]:
        if not self._position.is_going_on:
            self._opening.forget(CombinedLoader(self.dataloader))
            self.num_given = 0
            self._epoch += 1
        self.is_over = False
        set_sampler_epoch(self.dataloader, self._epoch - 1)
        batches = self._position.open()
        if self._rng is not None:
            set_rng_states(self._rng)
            self._rng = None
        return _Batches(self, batches)

    def __getattr__(self, name: str) -> Any:
        if name == "dataloader":  # being copied or unpickled
            raise AttributeError(name)
        return getattr(self.dataloader, name)

    # ---- its position

    def position_state(self) -> dict[str, Any]:
        """Return where this process stands and its random state, as plain data."""
        own = self._position.state_dict(self.num_given, is_over=self.is_over)
        return {
            "position": {
                "epoch": self._epoch,
                "batches": self.num_consumed,
                "is_over": self.is_over,
                "loaders": [own],
            },
            "opening": self._opening.state_dict(),
            "num_replicas": self._shard.num_replicas,
            "batch_size": [global_batch_size(self.dataloader)],
            "num_batches": length_of(self.dataloader),
            "rng": collect_rng_states(),
        }

    def load_position_state(self, state: dict[str, Any]) -> None:
        """Take over what `position_state` returned; the next pass goes on from there.

        Args:
            state: The state, of a loader made in the same way; the number of processes may be another.
        """
        self.is_over = state["position"]["is_over"]
        if not self.is_over:
            combined = CombinedLoader(self.dataloader)
            number = length_of(self.dataloader)
            state, self._opening = redivided(combined, state, num_batches=number, shard=self._shard)
            if combined.flattened[0] is not self.dataloader:  # to begin anywhere it has to be another one
                self.dataloader = combined.flattened[0]
                self._position = ResumableLoader(self.dataloader)
        position = state["position"]
        self._epoch = position["epoch"]
        own = position["loaders"][0]
        self.num_given = own["consumed"]
        self._position.load_state_dict(own)
        set_rng_states(state["rng"])
        self._rng = None if self.is_over else state["rng"]  # what is drawn until the pass goes on does not count

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what the loader's own `state_dict` returned, from a program without this class.

        Args:
            state: Of a loader that has `load_state_dict`.

        Raises:
            TypeError: The loader has no such method.
        """
        if not is_stateful(self.dataloader):
            raise TypeError(
                f"The checkpoint has a state for a `{type(self.dataloader).__name__}`, which cannot take one: it stems"
                " from a loader with a `state_dict` of its own. Prepare the loader as in the run that was saved."
            )
        self.is_over = False
        self._position.load_own_state(state, 0, is_over=False)


def wrap_dataloader(
    dataloader: DataLoader[Any], strategy: Strategy, *, use_distributed_sampler: bool, move_to_device: bool
) -> _FabricDataLoader:
    """Prepare a loader for this process of a strategy.

    Args:
        dataloader: The user's loader.
        strategy: The strategy.
        use_distributed_sampler: Give each process its part of the data.
        move_to_device: Move the batches.
    """
    if use_distributed_sampler:
        dataloader = shard_for_fabric(dataloader, strategy)
    seed_workers(dataloader, rank=strategy.data_parallel_rank)
    processed = strategy.process_dataloader(dataloader)
    shard = Shard.of(strategy) if use_distributed_sampler and strategy.world_size > 1 else None
    return _FabricDataLoader(processed, _mover(strategy) if move_to_device else None, shard)


def _mover(strategy: Strategy) -> Callable[[Any], Any] | None:
    device = strategy.root_device
    if type(strategy).batch_to_device is not Strategy.batch_to_device:
        return partial(strategy.batch_to_device, device=device)
    other_devices = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device.type == "cpu" and not other_devices:
        return None
    return partial(move_data_to_device, device=device)
