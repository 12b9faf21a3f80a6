"""LiveProgressBar: when the bars of a run appear, count, redraw and go; its subclasses only draw.

    open(train)
      per epoch: restart(train); draw ...; draw
        open(val); per loader: restart(val); draw ...; close(val)
    close(train)

A redraw is due after `refresh_rate` batches or one second, but never within a tenth of a second. Metrics are read on
redraws only, because reading may wait for the GPU. Where nothing can be redrawn (a file, a pipe), finished lines are
printed: one per epoch or loader, and one a minute while those take longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.progress.progress_bar import ProgressBar

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["LiveProgressBar", "RefreshPace"]

_SHORTEST_WAIT_S = 0.1
_LONGEST_WAIT_S = 1.0
_PLAIN_WAIT_S = 60.0
_SHARE_OF_TIME = 50  # drawing takes at most one fiftieth of the time, also on a slow terminal
_NEVER = float("inf")


class RefreshPace:
    """Decides when a redraw is due; asking costs one look at the clock.

    Args:
        every: Redraw after so many batches.
        shortest_s: No two redraws within this many seconds.
        longest_s: Redraw after this many seconds, however few the batches.
    """

    __slots__ = ("_drawn_s", "_next_count", "_wait_s", "every", "longest_s", "shortest_s")

    def __init__(self, every: float, *, shortest_s: float, longest_s: float) -> None:
        self.every = every
        self.shortest_s = shortest_s
        self.longest_s = longest_s
        self._drawn_s = monotonic()
        self._wait_s = shortest_s
        self._next_count = every

    def restart(self, done: int) -> None:
        """Begin to count at `done` batches; the time since the last redraw runs on."""
        self._next_count = done + self.every

    def due(self, done: int) -> bool:
        """Tell whether the state after `done` batches should be shown now."""
        waited_s = monotonic() - self._drawn_s
        return waited_s >= self._wait_s and (done >= self._next_count or waited_s >= self.longest_s)

    def drawn(self, done: int, started_s: float) -> None:
        """Note a redraw, after `done` batches, that began at the clock's `started_s`."""
        self._drawn_s = monotonic()
        self._wait_s = max(self.shortest_s, _SHARE_OF_TIME * (self._drawn_s - started_s))
        self._next_count = done + self.every


class LiveProgressBar(ProgressBar, ABC):
    """Base of the bars that redraw themselves. A subclass writes the verbs `_open` ... `_close_all`.

    Stages are called "train", "sanity", "val", "test" and "predict". "val" within a fit and "sanity" are shown beside
    the train bar and leave nothing behind.

    Args:
        refresh_rate: Redraw after so many batches, at most ten times and at least once a second; 0 shows nothing.
        leave: Keep the finished bar of each epoch on the screen.
    """

    def __init__(self, refresh_rate: int, leave: bool) -> None:
        super().__init__()
        self._refresh_rate = refresh_rate
        self._leave = leave
        self._enabled = True
        self._train_done = 0
        self._eval_done = 0
        self._epoch_shown = False
        self._line_due = False
        self._in_epoch = False
        self._began_s: dict[str, float] = {}
        self._was_brief: dict[str, bool] = {}
        self._train_pace = self._eval_pace = RefreshPace(_NEVER, shortest_s=_NEVER, longest_s=_NEVER)

    # ---- what a subclass writes

    @property
    @abstractmethod
    def _plain(self) -> bool:
        """Whether only whole lines can be printed."""

    @abstractmethod
    def _open(self, stage: str) -> None:
        """Show a bar of unknown length."""

    @abstractmethod
    def _restart(self, stage: str, description: str, total: int | float, done: int) -> None:
        """Begin to count: an epoch, or a loader."""

    @abstractmethod
    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None) -> None:
        """Show the count, and the metrics if there are some."""

    @abstractmethod
    def _freeze(self, stage: str) -> None:
        """Stop the clock of the bar."""

    @abstractmethod
    def _print_line(self, stage: str) -> None:
        """Print the present state as a line; asked for only where `_plain`."""

    @abstractmethod
    def _leave_behind(self, stage: str) -> None:
        """The finished bar stays where it is, and a new one begins."""

    @abstractmethod
    def _close(self, stage: str) -> None:
        """The stage is over."""

    @abstractmethod
    def _close_all(self) -> None:
        """Leave the terminal as it was, whatever is open."""

    @abstractmethod
    def _epoch_description(self, trainer: Trainer) -> str:
        """What the train bar says during an epoch."""

    @abstractmethod
    def _loader_description(self, description: str, dataloader_idx: int, num_dataloaders: int) -> str:
        """What the bar says while one of the loaders is evaluated."""

    def _description(self, stage: str) -> str:
        """What the bar of a stage says before it counts."""
        return {
            "train": self.train_description,
            "sanity": self.sanity_check_description,
            "val": self.validation_description,
            "test": self.test_description,
            "predict": self.predict_description,
        }[stage]

    # ---- on and off

    @property
    def refresh_rate(self) -> int:
        """Number of batches after which the bar is redrawn; 0 shows nothing."""
        return self._refresh_rate

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._enabled and self.refresh_rate > 0

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is shown."""
        return not self.is_enabled

    def disable(self) -> None:
        """Show nothing from the next stage on."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    # ---- training; arguments that Lightning's tqdm bar does without are optional

    def on_train_start(self, trainer: Trainer | None = None, pl_module: LightningModule | None = None) -> None:
        """Show the train bar, in a resumed epoch with the batches done before."""
        self._open("train")
        self._train_pace = self._new_pace()
        self._epoch_shown = False
        fit_loop = self.trainer.fit_loop
        if fit_loop.restarted_mid_epoch:  # then the epoch is not announced again
            self._begin_epoch(fit_loop.batch_progress.current.completed)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule | None = None) -> None:
        """Begin to count the batches of an epoch."""
        self._finish_epoch()
        if self._leave and self._epoch_shown:
            self._leave_behind("train")
        self._begin_epoch(0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw if it is time to."""
        self._train_done = done = batch_idx + 1
        if self._train_pace.due(done):
            self._show_train()
            if self._plain:
                self._print_line("train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the whole epoch."""
        self._in_epoch = False
        self._end("train")
        if self.is_enabled:
            self._line_due = True
            if not self._is_brief("train"):
                self._show_train()

    def on_train_end(self, trainer: Trainer | None = None, pl_module: LightningModule | None = None) -> None:
        """Close the train bar; its last state stays on the screen."""
        self._finish_epoch(last=True)
        self._close("train")

    def _begin_epoch(self, done: int) -> None:
        self._train_done = done
        self._train_pace.restart(done)
        self._begin("train", self._epoch_description(self.trainer), self.total_train_batches, done)
        self._epoch_shown = self._in_epoch = True

    def _show_train(self) -> None:
        started_s = monotonic()
        # sync: reading metrics may wait for the device
        self._draw("train", self._train_done, self.get_metrics(self.trainer, self.trainer.lightning_module))
        self._train_pace.drawn(self._train_done, started_s)

    def _finish_epoch(self, *, last: bool = False) -> None:
        """Show an ended epoch with what the module logged in its own `on_train_epoch_end`, which runs after ours."""
        if not self._line_due:
            return
        self._line_due = False
        if last or self._leave or self._plain:
            self._show_train()
        if self._plain:
            self._print_line("train")

    # ---- validation, in a fit and by itself

    def on_sanity_check_start(self, trainer: Trainer | None = None, pl_module: LightningModule | None = None) -> None:
        """Show a bar for the trial of validation."""
        self._open("sanity")

    def on_sanity_check_end(self, trainer: Trainer | None = None, pl_module: LightningModule | None = None) -> None:
        """Take the bar of the trial away."""
        self._close("sanity")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation bar, within a fit beside the train bar."""
        self.reset_dataloader_idx_tracker()
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit" and self.is_enabled and not self._is_brief("train"):
            self._show_train()
        self._open("val")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to count anew where another loader begins."""
        if self.has_dataloader_changed(dataloader_idx):
            sanity = trainer.sanity_checking
            counts = trainer.num_sanity_val_batches if sanity else trainer.num_val_batches
            description = self.sanity_check_description if sanity else self.validation_description
            total = self.total_val_batches_current_dataloader
            self._begin_loader("sanity" if sanity else "val", description, dataloader_idx, counts, total)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Redraw if it is time to."""
        self._eval_done = done = batch_idx + 1
        if self._eval_pace.due(done):
            self._show_evaluation("sanity" if trainer.sanity_checking else "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the validation bar, and show the new metrics."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._end("val")
            self._close("val")
            if self.is_enabled and not self._is_brief("train"):
                self._show_train()
        else:
            self._end_evaluation("val")

    # ---- testing

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the test bar."""
        self.reset_dataloader_idx_tracker()
        self._open("test")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to count anew where another loader begins."""
        if self.has_dataloader_changed(dataloader_idx):
            total = self.total_test_batches_current_dataloader
            self._begin_loader("test", self.test_description, dataloader_idx, trainer.num_test_batches, total)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Redraw if it is time to."""
        self._eval_done = done = batch_idx + 1
        if self._eval_pace.due(done):
            self._show_evaluation("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the test bar; its last state stays on the screen."""
        self._end_evaluation("test")

    # ---- prediction

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar of the predictions."""
        self.reset_dataloader_idx_tracker()
        self._open("predict")

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to count anew where another loader begins."""
        if self.has_dataloader_changed(dataloader_idx):
            total = self.total_predict_batches_current_dataloader
            self._begin_loader("predict", self.predict_description, dataloader_idx, trainer.num_predict_batches, total)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Redraw if it is time to."""
        self._eval_done = done = batch_idx + 1
        if self._eval_pace.due(done):
            self._show_evaluation("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; its last state stays on the screen."""
        self._end_evaluation("predict")

    # ---- evaluation of any kind

    def _begin_loader(
        self, stage: str, description: str, dataloader_idx: int, counts: list[int | float], total: int | float
    ) -> None:
        if dataloader_idx > 0:
            self._finish_loader(stage)
        self._eval_done = 0
        self._eval_pace = self._new_pace()
        self._begin(stage, self._loader_description(description, dataloader_idx, len(counts)), total, 0)

    def _show_evaluation(self, stage: str) -> None:
        started_s = monotonic()
        self._draw(stage, self._eval_done, None)
        self._eval_pace.drawn(self._eval_done, started_s)
        if self._plain:
            self._print_line(stage)

    def _finish_loader(self, stage: str) -> None:
        """Show a loader to its end; beside the train bar nothing of it would stay."""
        if self.is_enabled and stage != "sanity" and not self._in_epoch:
            self._freeze(stage)
            self._show_evaluation(stage)

    def _end_evaluation(self, stage: str) -> None:
        self._finish_loader(stage)
        self._close(stage)

    # ---- time

    def _new_pace(self) -> RefreshPace:
        if self.is_disabled:
            return RefreshPace(_NEVER, shortest_s=_NEVER, longest_s=_NEVER)
        if self._plain:
            return RefreshPace(_NEVER, shortest_s=_PLAIN_WAIT_S, longest_s=_PLAIN_WAIT_S)
        return RefreshPace(self.refresh_rate, shortest_s=_SHORTEST_WAIT_S, longest_s=_LONGEST_WAIT_S)

    def _begin(self, stage: str, description: str, total: int | float, done: int) -> None:
        """Restart a bar, and draw it unless the last one of its kind was gone before anyone could read it."""
        self._restart(stage, description, total, done)
        self._began_s[stage] = monotonic()
        if self.is_enabled and not self._was_brief.get(stage, False):
            self._draw(stage, done, None)

    def _end(self, stage: str) -> None:
        self._was_brief[stage] = self._is_brief(stage)
        self._freeze(stage)

    def _is_brief(self, stage: str) -> bool:
        """Whether what is shown began a moment ago: very short epochs cost less than their drawing would."""
        return monotonic() - self._began_s.get(stage, 0.0) < _SHORTEST_WAIT_S

    # ---- the end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal clean, so that the traceback can be read."""
        with suppress(OSError, ValueError):  # a terminal that is gone must not hide the exception
            if self._in_epoch and self.is_enabled:
                self._draw("train", self._train_done, None)
                if self._plain:
                    self._print_line("train")
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close whatever is still open."""
        self._stop()

    def _stop(self) -> None:
        self._line_due = self._in_epoch = False
        self._close_all()
