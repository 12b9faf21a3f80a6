"""How far training is, in the units that a logger may choose for its x axis."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from fulmen.utilities.tree import extract_batch_size

if TYPE_CHECKING:
    from fulmen.data.prefetch import TrainBatches
    from fulmen.loggers.logger import XAxis
    from fulmen.loops.fit import FitLoop
    from fulmen.loops.progress import FitProgress

__all__ = ["count_samples", "read_clock"]


def read_clock(loop: FitLoop, axis: XAxis) -> int:
    """Return how much of training is done.

    Args:
        loop: The fit.
        axis: Optimizer steps, batches, samples over all ranks, or the number of the epoch.
    """
    done = loop.progress
    if axis == "step":
        return done.global_step
    if axis == "batch":
        return done.batches.total.processed
    return done.samples if axis == "sample" else loop.trainer.current_epoch


def count_samples(
    batches: TrainBatches, done: FitProgress, num_ranks: int
) -> Generator[tuple[Any, int, bool], None, None]:
    """Pass on the batches of an epoch and count their samples, over all ranks.

    Args:
        batches: The batches, with their number and whether they are the last.
        done: Where it is counted.
        num_ranks: Into how many shares the data are divided, equally large but for the last batch.
    """
    source: Iterable[tuple[Any, int, bool]] = batches
    try:
        for batch, batch_idx, is_last in source:
            done.samples_before = done.samples
            if batch is not None:
                # the last batch's share of this rank, times its samples, is the mean over ranks
                share = batches.last_weight if is_last else 1.0
                done.samples_begun += round(extract_batch_size(batch) * num_ranks / (share or 1.0))
            yield batch, batch_idx, is_last
    finally:
        done.samples_begun = done.samples  # without a batch at which the epoch was left
