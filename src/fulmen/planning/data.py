"""The data of a plan: one batch, and what stands for all others where a module asks how many there are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import DataLoader, Dataset

from fulmen.core.datamodule import LightningDataModule
from fulmen.core.hooks import DataHooks
from fulmen.data.combined_loader import CombinedLoader
from fulmen.engine.loaders import combine, num_batches
from fulmen.planning.sizes import parse_batch
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["PlannedData", "UsersData"]

_STAND_IN = 1000  # batches of a rank, if nobody knows


class UsersData:
    """The training data of the user, asked for once, and only if they are needed.

    Args:
        model: The module.
        datamodule: The datamodule, or None.
    """

    def __init__(self, model: LightningModule, datamodule: LightningDataModule | None) -> None:
        self._model = model
        self._owner: Any = next(
            (
                owner
                for owner in (datamodule, model)
                if owner is not None and is_overridden("train_dataloader", owner, DataHooks)
            ),
            None,
        )
        self._loader: Any = None

    @property
    def has_loader(self) -> bool:
        """Whether datamodule or module define `train_dataloader`."""
        return self._owner is not None

    def loader(self) -> Any:
        """Return what `train_dataloader` returns."""
        if self._loader is None:
            if isinstance(self._owner, LightningDataModule):
                self._owner.prepare_data()
                self._owner.setup("fit")
            self._loader = self._owner.train_dataloader()
        return self._loader

    def num_batches(self) -> int | float:
        """Return how many batches the loader gives to one process alone; infinite if it has no length."""
        return num_batches(self._combined(), 1.0, name="limit_train_batches")

    def _combined(self) -> CombinedLoader:
        return combine(self.loader(), mode="max_size_cycle", origin=f"{type(self._owner).__name__}.train_dataloader()")

    def example(self, batch: Any) -> Any:
        """Return a batch: the one that is given, the first of the training data, or the example of the module.

        Args:
            batch: A batch, its shapes as text, or None.

        Raises:
            MisconfigurationException: There is none.
        """
        if isinstance(batch, str):
            return parse_batch(batch)
        if batch is not None:
            return batch
        if self.has_loader:
            for found, _, _ in self._combined():
                return found
            raise MisconfigurationException(
                f"`{type(self._owner).__name__}.train_dataloader()` gave no batch to plan with. Pass one:"
                " `trainer.plan(model, '8x2048:int64')`."
            )
        if self._model.example_input_array is not None:
            return self._model.example_input_array
        raise MisconfigurationException(
            f"`Trainer.plan()` has no batch: none is passed, and `{type(self._model).__name__}` has neither"
            " `train_dataloader` nor `example_input_array`. Pass a datamodule, a batch, or its shapes:"
            " `trainer.plan(model, '8x2048:int64')`."
        )


class PlannedData(Dataset[int]):
    """Training data of which only the length is known, and that when somebody asks, e.g. a scheduler.

    Args:
        data: The user's.
        trainer: The Trainer that rehearses, whose limits count.
        notes: Takes a remark if the length is a guess.
    """

    def __init__(self, data: UsersData, trainer: Trainer, notes: list[str]) -> None:
        self._data = data
        self._trainer = trainer
        self._notes = notes
        self._shares = trainer.strategy.data_parallel_size if trainer.use_distributed_sampler else 1
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            with _disable_current_modes():  # the user's data are real, though asked for in the middle of a rehearsal
                self._length = self._num_batches() * self._shares
        return self._length

    def __getitem__(self, index: int) -> int:
        raise IndexError(index)  # a plan has one batch, which is elsewhere

    def dataloader(self) -> DataLoader[int]:
        """Return a loader with as many batches as a rank will have."""
        return DataLoader(self, batch_size=1)

    def _num_batches(self) -> int:
        trainer = self._trainer
        known = self._known()
        if known is not None:
            return known
        if trainer.max_steps != -1:
            return trainer.max_steps * trainer.accumulate_grad_batches
        if isinstance(trainer.limit_train_batches, int):
            return trainer.limit_train_batches
        self._notes.append(
            f"The module asks how many batches there are, which is not known: {_STAND_IN:,} per rank and epoch are"
            " taken. Memory and exchanges do not depend on it; pass data or `max_steps` for a schedule as in the run."
        )
        return _STAND_IN

    def _known(self) -> int | None:
        """Return the batches of a rank in an epoch, by the user's data."""
        if not self._data.has_loader:
            return None
        try:
            total = self._data.num_batches()
        except Exception as error:  # a batch was given, so the data may be elsewhere
            self._notes.append(
                f"The training data, which would tell how many batches there are, cannot be had:"
                f" {type(error).__name__}: {error}."
            )
            return None
        return None if total == math.inf else math.ceil(total / self._shares)
