"""What the metrics of a run do not say, noted for its report: when it began, where it ran, how it ended."""

from __future__ import annotations

import math
import secrets
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch

from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.core.states import TrainerFn
from fulmen.loggers.versioned import VersionedLogger
from fulmen.utilities.exceptions import SIGTERMException
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["RunNotes"]

_LONGEST_ERROR = 4000


class RunNotes:
    """Keeps notes on the runs of a Trainer, and writes them as `run_notes.json` into the folders of its file loggers.

    A file is written as a run begins and as it ends, by the first process only.
    """

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self._began_s = 0.0

    def begin(self, trainer: Trainer) -> None:
        """Note that a run begins.

        Args:
            trainer: The Trainer, with the strategy's processes and the loggers ready.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        from fulmen.reports.environment import command_line, environment

        self._began_s = time.monotonic()
        module = trainer.lightning_module
        self.runs.append(
            {
                "id": secrets.token_hex(8),
                "method": str(trainer.state.fn.value),  # type: ignore[union-attr]  # a method was called
                "status": "running",
                "started": _now(),
                "command": command_line(),
                "model": type(module).__name__,
                "environment": {**environment(), **_devices(trainer)},
            }
        )
        self._write(trainer)

    def end(self, trainer: Trainer, error: BaseException | None = None) -> None:
        """Note how the run ended; nothing if its beginning was not noted.

        Args:
            trainer: The Trainer, before its callbacks let go of what they know.
            error: What ended it.
        """
        if not self.runs or self.runs[-1]["status"] != "running":
            return
        run = self.runs[-1]
        run["status"], reason = _how_it_ended(trainer, error)
        run.update(ended=_now(), seconds=round(time.monotonic() - self._began_s, 3), steps=trainer.global_step)
        run["resumed_from"] = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        parameters = [each.numel() for each in trainer.lightning_module.parameters() if _has_size(each)]
        run["parameters"] = sum(parameters)
        if trainer.state.fn == TrainerFn.FITTING:
            run["epochs"] = trainer.current_epoch
        if reason:
            run["reason"] = reason
        if run["status"] == "failed":
            run["error"] = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
        saved = _checkpoints(trainer)
        if saved:
            run["checkpoints"] = saved
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        from fulmen.reports.run_file import put_run

        for logger in trainer.loggers:
            if isinstance(logger, VersionedLogger):
                try:
                    put_run(logger.log_dir, self.runs[-1])
                except OSError as error:  # a run is worth more than its report
                    rank_zero_warn(
                        f"`run_notes.json` was not written, so a report of the run will not say how it ended: {error}"
                    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _devices(trainer: Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
        "strategy": type(trainer.strategy).__name__,
        "precision": trainer.precision,
    }


def _how_it_ended(trainer: Trainer, error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "finished", trainer.fit_loop.stopped_for if trainer.state.fn == TrainerFn.FITTING else ""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "Ctrl-C"
    if isinstance(error, SIGTERMException):
        received = trainer.signals.received
        known = isinstance(received, int) and received in set(signal.Signals)
        return "interrupted", signal.Signals(received).name if known else "a signal"  # type: ignore[arg-type]  # known
    return "failed", ""


def _has_size(parameter: torch.Tensor) -> bool:
    return not isinstance(parameter, torch.nn.parameter.UninitializedParameter)


def _checkpoints(trainer: Trainer) -> dict[str, Any]:
    """What the first `ModelCheckpoint` has kept."""
    saving = next((each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)), None)
    if saving is None or not (saving.best_model_path or saving.last_model_path):
        return {}
    best = saving.best_model_score
    return {
        "monitor": saving.monitor,
        "mode": saving.mode,
        "best": saving.best_model_path,
        "best_score": None if best is None else _plain(best),
        "last": saving.last_model_path,
        "scores": {path: _plain(score) for path, score in saving.best_k_models.items()},
    }


def _plain(score: Any) -> float | None:
    """A number that JSON can hold."""
    value = float(score)
    return value if math.isfinite(value) else None
