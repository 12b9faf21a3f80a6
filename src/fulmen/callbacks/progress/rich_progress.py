"""RichProgressBar: the bar of `rich`, on terminals and in notebooks."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.progress.live import LiveProgressBar
from fulmen.callbacks.progress.rich_columns import (
    COUNTED_FROM,
    NARROWEST_BAR,
    WIDEST_BAR,
    WITH_METRICS,
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomTimeColumn,
    MetricsTextColumn,
    ProcessingSpeedColumn,
    plain_line,
    progress_class,
)
from fulmen.callbacks.progress.streams import LogStreams
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.style import Style

    from fulmen.trainer.trainer import Trainer

__all__ = [
    "BatchesProcessedColumn",
    "CustomBarColumn",
    "CustomTimeColumn",
    "MetricsTextColumn",
    "ProcessingSpeedColumn",
    "RichProgressBar",
    "RichProgressBarTheme",
]


@dataclass
class RichProgressBarTheme:
    """Colors and formats of `RichProgressBar`; styles as in rich, e.g. "bold red" or "#6206E0".

    Args:
        description: Style of the description, e.g. of "Epoch 0".
        progress_bar: Style of the done part of the bar.
        progress_bar_finished: Style of a finished bar.
        progress_bar_pulse: Style of a bar of unknown length.
        batch_progress: Style of the counts.
        time: Style of the times.
        processing_speed: Style of the speed.
        metrics: Style of the metrics.
        metrics_text_delimiter: Text between metrics.
        metrics_format: Format of metrics that are floats, e.g. ".3f" or ".3e".
    """

    description: str | Style = ""
    progress_bar: str | Style = "#6206E0"
    progress_bar_finished: str | Style = "#6206E0"
    progress_bar_pulse: str | Style = "#6206E0"
    batch_progress: str | Style = ""
    time: str | Style = "dim"
    processing_speed: str | Style = "dim underline"
    metrics: str | Style = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


_DEFAULT_THEME = RichProgressBarTheme()


class RichProgressBar(LiveProgressBar):
    """Shows progress with `rich`: a train bar, and below it a validation bar while validation runs.

    Where the output is a file or a pipe, each epoch gives one line instead.

    Args:
        refresh_rate: Redraw after so many batches, at most ten times and at least once a second; 0 shows nothing.
        leave: Keep the finished bar of each epoch on the screen.
        theme: Colors and formats.
        console_kwargs: Arguments of an own `rich.console.Console`; without them rich's global console is used.

    Raises:
        ModuleNotFoundError: `rich` is not installed.

    Example::

        trainer = Trainer(callbacks=[RichProgressBar(theme=RichProgressBarTheme(metrics_format=".2e"))])
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme = _DEFAULT_THEME,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        require("rich", extra="rich", for_="RichProgressBar")
        super().__init__(refresh_rate, leave)
        self.theme = theme
        self._console_kwargs = console_kwargs or {}
        self._console: Console | None = None
        self._metrics_column: MetricsTextColumn | None = None
        self._logs = LogStreams()
        self.progress: Progress | None = None
        self.train_progress_bar_id: TaskID | None = None
        self.val_sanity_progress_bar_id: TaskID | None = None
        self.val_progress_bar_id: TaskID | None = None
        self.test_progress_bar_id: TaskID | None = None
        self.predict_progress_bar_id: TaskID | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds the terminal."""
        return {**self.__dict__, "_console": None, "_metrics_column": None, "progress": None, "_logs": LogStreams()}

    # ---- the bars, for those who want to read or change them

    @property
    def train_progress_bar(self) -> Task:
        """The rich task of training.

        Raises:
            TypeError: Training has not begun.
        """
        return self._task("train")

    @property
    def val_sanity_check_bar(self) -> Task:
        """The rich task of the sanity check.

        Raises:
            TypeError: It is not running.
        """
        return self._task("sanity")

    @property
    def val_progress_bar(self) -> Task:
        """The rich task of validation.

        Raises:
            TypeError: It is not running.
        """
        return self._task("val")

    @property
    def test_progress_bar(self) -> Task:
        """The rich task of testing.

        Raises:
            TypeError: It is not running.
        """
        return self._task("test")

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return the columns left of the metrics; override it to have others.

        Args:
            trainer: The Trainer.

        Returns:
            Rich progress columns, or objects that behave like them.
        """
        from rich.progress import TextColumn

        theme = self.theme
        bar = CustomBarColumn(
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        )
        columns: list[Any] = [
            TextColumn("{task.description}", style=theme.description),
            bar,
            BatchesProcessedColumn(style=theme.batch_progress),
            CustomTimeColumn(style=theme.time),
            ProcessingSpeedColumn(style=theme.processing_speed),
        ]
        return columns

    def refresh(self, hard: bool = False) -> None:
        """Redraw now.

        Args:
            hard: Accepted for compatibility; every redraw is a full one.
        """
        if self.progress is not None and self.is_enabled:
            self.progress.refresh()

    def print(self, *args: Any, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = False) -> None:
        """Print above the bar.

        Args:
            args: What to print.
            sep: Text between the arguments.
            end: Text after them.
            file: Where to, if not to the standard output.
            flush: As of the built-in `print`.
        """
        if self.progress is None or not self.progress.live.is_started or file is not None:
            builtins.print(*args, sep=sep, end=end, file=file, flush=flush)
            return
        from rich.text import Text

        text = Text.from_ansi(sep.join(map(str, args)))
        self.progress.console.print(text, end=end, soft_wrap=True, highlight=False)

    # ---- the verbs

    @property
    def _plain(self) -> bool:
        console = self._get_console()
        return not (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal))

    def _get_console(self) -> Console:
        if self._console is None:
            import rich.console

            own = self._console_kwargs
            # Without own arguments the global console, so that `rich.print` in a hook gets above the bar.
            self._console = rich.console.Console(**own) if own else rich.get_console()
        return self._console

    def _open(self, stage: str) -> None:
        if self.is_disabled:
            return
        if self.progress is None:
            self._start()
        with self._undrawn() as progress:
            task_id = progress.add_task(self._description(stage), total=None, **{WITH_METRICS: stage == "train"})
        setattr(self, _IDS[stage], task_id)

    def _start(self) -> None:
        theme = self.theme
        self._metrics_column = MetricsTextColumn(
            self.trainer, theme.metrics, theme.metrics_text_delimiter, theme.metrics_format
        )
        columns: list[Any] = [*self.configure_columns(self.trainer), self._metrics_column]
        # No refreshing thread: worker processes are forked while the bar is on, and steps should not share the GIL.
        self.progress = progress_class()(*columns, console=self._get_console(), auto_refresh=False)
        if not self._plain:
            stdout, stderr = sys.stdout, sys.stderr
            self.progress.start()  # rich replaces the two streams
            self._logs.follow({stdout: sys.stdout, stderr: sys.stderr})

    @contextmanager
    def _undrawn(self) -> Iterator[Progress]:
        """Change tasks without the redraw that rich adds to some changes."""
        progress = self.progress
        assert progress is not None  # noqa: S101 - opened before it is changed
        progress.disable = True
        try:
            yield progress
        finally:
            progress.disable = False

    def _task(self, stage: str) -> Task:
        task_id = getattr(self, _IDS[stage])
        if self.progress is None or task_id is None:
            raise TypeError(
                f"The {stage} bar of `{type(self).__name__}` does not exist: it is there while that stage runs."
                " Read it from a hook of that stage."
            )
        return next(task for task in self.progress.tasks if task.id == task_id)

    def _restart(self, stage: str, description: str, total: int | float, done: int) -> None:
        if self.progress is None:
            return
        task = self._task(stage)
        with self._undrawn() as progress:
            task.total = None if total == float("inf") else total
            task.stop_time = None
            task.fields[COUNTED_FROM] = done
            progress.reset(task.id, total=task.total, completed=done, description=description, **task.fields)

    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None) -> None:
        if self.progress is None or self._metrics_column is None:
            return
        task = self._task(stage)
        self.progress.update(task.id, completed=done)
        if metrics is not None:
            self._metrics_column.update(metrics)
        if self.progress.live.is_started:
            self._fit(self.progress, self._metrics_column)
            self.progress.refresh()

    def _fit(self, progress: Progress, metrics: MetricsTextColumn) -> None:
        """Make the bar as wide as the other columns leave room for; move the metrics below it if that is too little."""
        for below in (False, True):
            metrics.below = below
            room = min(progress.console.width - 1 - len(plain_line(progress, task)) for task in progress.tasks)
            if room >= NARROWEST_BAR:
                break
        for column in progress.columns:
            if isinstance(column, CustomBarColumn):
                column.width = max(NARROWEST_BAR, min(WIDEST_BAR, room))

    def _freeze(self, stage: str) -> None:
        if self.progress is not None:
            self.progress.stop_task(self._task(stage).id)

    def _print_line(self, stage: str) -> None:
        if self.progress is not None:
            file = self._get_console().file
            file.write(plain_line(self.progress, self._task(stage)) + "\n")
            file.flush()

    def _leave_behind(self, stage: str) -> None:
        if self.progress is not None and self.progress.live.is_started:
            self.progress.console.print(self.progress.get_renderable())

    def _close(self, stage: str) -> None:
        if self.progress is None:
            return
        beside_train = stage == "val" and self.train_progress_bar_id is not None
        if stage == "sanity" or beside_train:
            with self._undrawn() as progress:
                progress.remove_task(self._task(stage).id)
            setattr(self, _IDS[stage], None)
        else:
            self._close_all()

    def _close_all(self) -> None:
        if self.progress is not None:
            if self.progress.live.is_started:
                self._logs.restore()
                self.progress.stop()
            self.progress = None
        for name in _IDS.values():
            setattr(self, name, None)

    def _epoch_description(self, trainer: Trainer) -> str:
        max_epochs = trainer.max_epochs
        of = f"/{max_epochs - 1}" if max_epochs is not None and max_epochs > 0 else ""
        return f"Epoch {trainer.current_epoch}{of}"

    def _loader_description(self, description: str, dataloader_idx: int, num_dataloaders: int) -> str:
        return f"{description} DataLoader {dataloader_idx}" if num_dataloaders > 1 else description


_IDS = {
    "train": "train_progress_bar_id",
    "sanity": "val_sanity_progress_bar_id",
    "val": "val_progress_bar_id",
    "test": "test_progress_bar_id",
    "predict": "predict_progress_bar_id",
}
