"""What each rank has for itself in a checkpoint, and what it takes of it where another number of ranks goes on.

Ranks are data-parallel ranks here: processes that work on one batch together count as one, and go on alike. Each saves
its random state and its position, with the metrics of the unfinished epoch. As many ranks as before take their own
back. Otherwise random numbers go on on the ranks that there were, ranks that are new get streams of their own, and the
metrics are divided anew. The position counts what all ranks together have seen, so the loaders can divide the rest of
the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.metrics.redivide import redivide_metric_states, redivide_rows
from fulmen.utilities.rank_streams import streams_of_new_rank, with_streams_of_new_rank
from fulmen.utilities.seed import collect_rng_states
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["dump_of_ranks", "position_of_rank", "rng_of_rank"]

_OTHERS = "other_ranks"


def dump_of_ranks(trainer: Trainer) -> dict[str, Any]:
    """Return the random state and the position of all ranks. All of them must ask for it.

    Args:
        trainer: The Trainer of the run.
    """
    own: dict[str, Any] = {"rng": collect_rng_states(), "position": trainer.fit_loop.position_state()}
    if (device := trainer.strategy.root_device).type == "cuda":
        own["device"] = device.index or 0
    # without a position there is nothing to go on with exactly; the workers of `ddp_spawn` are gone after their run
    if trainer.world_size == 1 or not own["position"]:
        return own
    first, *others = trainer.strategy.gather_shares(apply_to_collection(own, Tensor, Tensor.cpu))
    return {**first, _OTHERS: others}


def rng_of_rank(trainer: Trainer, own: dict[str, Any]) -> dict[str, Any] | None:
    """Return the random state with which this rank goes on.

    Args:
        trainer: The Trainer of the run.
        own: What `dump_of_ranks` returned; empty in a file of Lightning, which has no random state: `None`.
    """
    saved = _by_rank(own)
    rank, device = trainer.strategy.data_parallel_rank, trainer.strategy.root_device
    if "rng" not in own:
        return None
    if rank >= len(saved):
        return streams_of_new_rank([each["rng"] for each in saved], rank)
    states: dict[str, Any] = saved[rank]["rng"]
    if device.type == "cuda" and "cuda" in states:
        return {**states, "cuda": _moved(states["cuda"], saved[rank].get("device", 0), device.index or 0)}
    return states


def position_of_rank(trainer: Trainer, own: dict[str, Any]) -> dict[str, Any] | None:
    """Return where this rank goes on, for `FitLoop.load_position_state`; the loop must have its counters.

    Args:
        trainer: The Trainer of the run.
        own: What `dump_of_ranks` returned; `None` is the answer if it has no position.
    """
    saved: list[dict[str, Any]] = [each.get("position", {}) for each in _by_rank(own)]
    rank, world_size = trainer.strategy.data_parallel_rank, trainer.strategy.data_parallel_size
    if not saved[0]:
        return None
    if world_size == len(saved):
        return saved[rank]
    position = saved[rank] if rank < len(saved) else saved[0]
    if rank >= len(saved):
        position = {**position, "train": with_streams_of_new_rank([each.get("train") for each in saved], rank)}
    rows = [each.get("metrics", []) for each in saved]
    states = [each.get("metric_states", {}) for each in saved]
    if not trainer.fit_loop.restarted_mid_epoch:  # those that were logged begin anew
        logged = {row.get("metric") for of_rank in rows for row in of_rank}
        states = [{path: each for path, each in of_rank.items() if path not in logged} for of_rank in states]
    return {
        **position,
        "val": saved[0].get("val"),
        "metrics": redivide_rows(rows, rank=rank, world_size=world_size),
        "metric_states": redivide_metric_states(
            trainer.lightning_module, states, rank=rank, world_size=world_size
        ),
    }  # fmt: skip


def _by_rank(own: dict[str, Any]) -> list[dict[str, Any]]:
    return [own, *own.get(_OTHERS, [])]


# ---- devices


def _moved(states: list[Tensor], saved_idx: int, device_idx: int) -> list[Tensor]:
    """Put the state of the device that a rank had to the place of the one that it has now."""
    moved = [*states, *[states[saved_idx]] * (device_idx + 1 - len(states))]
    moved[device_idx] = states[saved_idx]
    return moved
