"""The first loss of a fit that is not finite: found without waiting for the device, reported with its place."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fulmen.loops.progress import FitProgress

__all__ = ["NOT_FINITE", "LossWatch", "add_place"]

NOT_FINITE = "not finite"
"""What stands in `FitLoop.told` once the loss of a fit was reported, or where somebody else reports it."""
_MOST_SINGLE_LOSSES = 256  # on a device each holds a block of memory of its own; so many are put into one tensor
_MARK = "PLACE (fulmen):"


class LossWatch:
    """Remembers losses that are on a device until somebody reads values from it anyway.

    A loss in host memory is looked at by the loop at once; it only calls `report`. Each rank watches its own losses.

    Args:
        progress: The counters of the fit.
        told: Of what this fit was warned already.
        rank: The number of this process.
        world_size: How many processes there are.
    """

    def __init__(self, progress: FitProgress, told: set[str], *, rank: int, world_size: int) -> None:
        self._progress = progress
        self._told = told
        self._rank_text = f" on rank {rank} of {world_size}" if world_size > 1 else ""
        # ---- losses that nobody has looked at, all of one epoch
        self._epoch = 0
        self._batches: list[int] = []
        self._losses: list[Tensor] = []
        self._folded: list[Tensor] = []

    def note(self, loss: Tensor) -> None:
        """Remember the loss of the running batch for the next `check`; one with several entries is passed over."""
        if NOT_FINITE in self._told or loss.numel() != 1:
            return
        self._epoch = self._progress.epochs.current.completed
        self._batches.append(self._progress.batches.current.ready - 1)
        self._losses.append(loss.detach().reshape(1))
        if len(self._losses) >= _MOST_SINGLE_LOSSES:
            self._fold()

    def _fold(self) -> None:
        if self._losses:
            self._folded.append(torch.cat(self._losses))
            self._losses.clear()

    def check(self) -> None:
        """Look at what was noted since the last time, and report the first loss that is not finite."""
        if not self._batches:
            return
        self._fold()
        values = torch.cat(self._folded).tolist()  # sync: called where values are read from the device anyway
        first = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
        if first is not None:
            self.report(values[first], self._epoch, self._batches[first])
        self.clear()

    def clear(self) -> None:
        """Forget what was noted."""
        self._batches.clear()
        self._losses.clear()
        self._folded.clear()

    def report(self, value: float, epoch: int | None = None, batch_idx: int | None = None) -> None:
        """Warn, once in a fit and on the rank that it is about, of a loss that is NaN or infinite.

        Args:
            value: The loss.
            epoch: Where it was found; the running epoch by default.
            batch_idx: Where it was found; the running batch by default.
        """
        if NOT_FINITE in self._told:
            return
        self._told.add(NOT_FINITE)
        epoch = self._progress.epochs.current.completed if epoch is None else epoch
        batch_idx = self._progress.batches.current.ready - 1 if batch_idx is None else batch_idx
        warnings.warn(
            f"The loss is {value} at epoch {epoch}, batch {batch_idx}{self._rank_text}, the first time in this fit"
            f" (noticed at global step {self._progress.global_step}); from there on the weights are likely to be NaN,"
            " too. Look at that batch, lower the learning rate, set `gradient_clip_val`, or find the operation with"
            " `Trainer(detect_anomaly=True)`. To stop, skip such batches or go back, add the callback"
            " `NonFiniteGuard(action=...)`.",
            category=RuntimeWarning,
            stacklevel=2,
        )


def add_place(error: BaseException, progress: FitProgress, *, rank: int, world_size: int) -> None:
    """Add to an error of `detect_anomaly` where in training it came up; other errors stay as they are.

    Args:
        error: The error; its text is changed.
        progress: The counters of the fit.
        rank: The number of this process.
        world_size: How many processes there are.
    """
    text = str(error)
    if "returned nan values" not in text or _MARK in text:
        return
    on_rank = f" on rank {rank} of {world_size}" if world_size > 1 else ""
    error.args = (
        f"{text}\n{_MARK} the backward pass of epoch {progress.epochs.current.completed}, batch"
        f" {progress.batches.current.ready - 1}{on_rank}, in global step {progress.global_step}. The warning above"
        " shows the line of the forward pass that made this operation.",
    )
