"""DeviceStatsMonitor: memory of the GPU and load of the machine as logged curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.accelerators.cpu import get_cpu_stats
from fulmen.callbacks.rows import eval_row_is_due, require_logger, train_row_is_due
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["DeviceStatsMonitor"]


class DeviceStatsMonitor(Callback):
    """Log what the accelerator reports of its device at the start and at the end of batches.

    On a GPU these are the figures of `torch.cuda.memory_stats`, sizes in bytes; on the CPU the load of the processor
    and the use of memory and swap of the machine in percent, by `psutil`. Rows are written in the steps that the
    Trainer logs (`log_every_n_steps`), under `DeviceStatsMonitor.<hook>/<name>`; nothing is measured in others.

    Args:
        cpu_stats: Whether to log the figures of the CPU: `None` only where it is the accelerator, `True` beside those
            of a GPU too, `False` nowhere.

    Raises:
        MisconfigurationException: Another `cpu_stats`, or when a run begins, the Trainer has no logger.
        ModuleNotFoundError: Figures of the CPU are wanted and `psutil` is not installed; likewise.

    Example::

        Trainer(callbacks=DeviceStatsMonitor(cpu_stats=True), log_every_n_steps=20)
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        if cpu_stats not in (None, True, False):
            raise MisconfigurationException(
                f"`DeviceStatsMonitor(cpu_stats={cpu_stats!r})` says whether figures of the CPU are logged: None only"
                " where it is the accelerator, True always, False never."
            )
        self._cpu_stats = cpu_stats
        self._asks_device = True
        self._asks_cpu = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what there is to measure, and whether it can be."""
        require_logger(trainer, "DeviceStatsMonitor")
        is_on_cpu = trainer.strategy.root_device.type == "cpu"
        self._asks_device = not is_on_cpu
        self._asks_cpu = self._cpu_stats is True or (is_on_cpu and self._cpu_stats is None)
        if is_on_cpu and not self._asks_cpu:
            rank_zero_warn(
                "`DeviceStatsMonitor(cpu_stats=False)` logs nothing, as the run is on the CPU. Leave `cpu_stats` out,"
                " or remove the callback."
            )
        if self._asks_cpu:
            require("psutil", extra="stats", for_="DeviceStatsMonitor")
            get_cpu_stats()  # the first figure is of the time since the call before

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log before the first batch of a step."""
        if train_row_is_due(trainer):
            self._log(trainer, "on_train_batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after the last batch of a step."""
        if train_row_is_due(trainer):
            self._log(trainer, "on_train_batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log before a batch of validation."""
        if eval_row_is_due(trainer, batch_idx):
            self._log(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log after a batch of validation."""
        if eval_row_is_due(trainer, batch_idx):
            self._log(trainer, "on_validation_batch_end")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log before a batch of testing."""
        if eval_row_is_due(trainer, batch_idx):
            self._log(trainer, "on_test_batch_start")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log after a batch of testing."""
        if eval_row_is_due(trainer, batch_idx):
            self._log(trainer, "on_test_batch_end")

    def _log(self, trainer: Trainer, hook: str) -> None:
        figures: dict[str, Any] = {}
        if self._asks_device and trainer.accelerator is not None:
            figures.update(trainer.accelerator.get_device_stats(trainer.strategy.root_device))
        if self._asks_cpu:
            figures.update(get_cpu_stats())
        prefix, step = f"{type(self).__qualname__}.{hook}", trainer.fit_loop.batches_that_stepped
        for logger in trainer.loggers:
            separator = logger.group_separator
            row = {f"{prefix}{separator}{name}": value for name, value in figures.items()}
            logger.log_metrics(row, step=trainer.metrics.step_of(logger, step))
