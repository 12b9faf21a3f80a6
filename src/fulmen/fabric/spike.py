"""Stop when the loss jumps, and remember the batches that did it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fulmen.utilities.options import check_number
from fulmen.utilities.spikes import SpikeRule

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric

__all__ = ["SpikeDetection", "TrainingSpikeException"]

_FILE_NAME = "skip_batches.json"


class TrainingSpikeException(RuntimeError):
    """The loss jumped.

    Args:
        batch_idx: Number of the batch.
        args: Further arguments of the exception.
    """

    def __init__(self, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(f"Training spike detected in batch {batch_idx}", *args, **kwargs)
        self.batch_idx = batch_idx


class SpikeDetection:
    """A callback for `fabric.call("on_train_batch_end", ...)` that raises when the loss is far off its running mean.

    The numbers of the batch and of the one before it are put into a file, so that the next run can leave them out.

    Args:
        mode: Whether the loss is to become smaller ("min") or larger ("max").
        window: Number of batches that the mean is over.
        warmup: Batches before the first that can be a spike.
        atol: The loss must be off by at least this much; `None` for any amount.
        rtol: And by at least this part of the mean; `None` for any.
        exclude_batches_path: The file, if it ends in `.json`, or its folder; the working folder by default. What
            earlier runs have put into the file stays there.
        finite_only: A loss that is not finite is a spike.

    Raises:
        ValueError: The mode is not known, or a number out of range.
        TypeError: The path is none.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(
                f"`SpikeDetection(mode={mode!r})` is not known: the loss becomes smaller or larger. Use 'min' or 'max'."
            )
        name = "SpikeDetection"
        check_number(name, "window", window, "the batches that the mean is over.", least=1, whole=True)
        check_number(name, "warmup", warmup, "the batches before the first spike.", least=0, whole=True)
        check_number(name, "atol", atol, "the least distance of a spike from the mean.", least=0, optional=True)
        check_number(name, "rtol", rtol, "the same as a part of the mean.", least=0, optional=True)
        if exclude_batches_path is not None and not isinstance(exclude_batches_path, (str, os.PathLike)):
            raise TypeError(
                f"`SpikeDetection(exclude_batches_path={exclude_batches_path!r})` must be a path: a `.json` file, or"
                " the folder for it. Leave it out for the working folder."
            )
        self.mode = mode
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = exclude_batches_path
        self.finite_only = finite_only
        self.last_val: float = 0.0
        self.bad_batches: list[int] = []
        self._rule = SpikeRule(window, mode=mode, atol=atol, rtol=rtol)

    @property
    def running_mean(self) -> float:
        """Mean of the last losses that were no spikes; not a number before the first."""
        return self._rule.mean

    def on_train_batch_end(self, fabric: Fabric, loss: Any, batch: Any, batch_idx: int) -> None:
        """Look at a loss; all processes must.

        Args:
            fabric: Decides with the other processes.
            loss: The loss of the batch.
            batch: The batch.
            batch_idx: Its number.

        Raises:
            TrainingSpikeException: The loss jumped, on any process.
        """
        value = float(loss)  # sync: the decision is about a number
        is_spike = batch_idx >= self.warmup and self._is_spike(value)
        if fabric.strategy.reduce_boolean_decision(is_spike, all=False):
            self.bad_batches.extend(idx for idx in (batch_idx - 1, batch_idx) if idx >= 0)
            if fabric.is_global_zero:
                self._write()
            raise TrainingSpikeException(batch_idx)
        self.last_val = value
        self._rule.add(value)

    def _write(self) -> None:
        """Add the bad batches to those that earlier runs have put into the file."""
        path = Path(self.exclude_batches_path or _FILE_NAME)
        if path.suffix != ".json":
            path /= _FILE_NAME
        earlier = json.loads(path.read_text()) if path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [batch_idx for batch_idx in earlier if batch_idx not in self.bad_batches]
        path.write_text(json.dumps(earlier + self.bad_batches, indent=4))

    def _is_spike(self, value: float) -> bool:
        return self._rule.is_spike(value) if math.isfinite(value) else self.finite_only

    def state_dict(self) -> dict[str, Any]:
        """Return settings and what was seen."""
        return {
            "last_val": self.last_val,
            "mode": self.mode,
            "warmup": self.warmup,
            "atol": self.atol,
            "rtol": self.rtol,
            "bad_batches": list(self.bad_batches),
            "bad_batches_path": None if self.exclude_batches_path is None else os.fspath(self.exclude_batches_path),
            "recent": self._rule.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.last_val = state_dict["last_val"]
        self.mode = state_dict["mode"]
        self.warmup = state_dict["warmup"]
        self.atol = state_dict["atol"]
        self.rtol = state_dict["rtol"]
        self.bad_batches = list(state_dict["bad_batches"])
        self.exclude_batches_path = state_dict["bad_batches_path"]
        self._rule.mode, self._rule.atol, self._rule.rtol = self.mode, self.atol, self.rtol
        self._rule.load_state_dict(state_dict.get("recent", ()))
