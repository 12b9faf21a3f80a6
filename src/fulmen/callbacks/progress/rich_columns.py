"""The columns of RichProgressBar; like rich's, but not derived from them, because rich is imported on use only."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, Task
    from rich.style import Style
    from rich.table import Column
    from rich.text import Text

    from fulmen.trainer.trainer import Trainer

__all__ = [
    "COUNTED_FROM",
    "NARROWEST_BAR",
    "WIDEST_BAR",
    "WITH_METRICS",
    "BatchesProcessedColumn",
    "CustomBarColumn",
    "CustomTimeColumn",
    "MetricsTextColumn",
    "ProcessingSpeedColumn",
    "plain_line",
    "progress_class",
]

WIDEST_BAR = 40
NARROWEST_BAR = 10
COUNTED_FROM = "counted_from"  # field of a task: batches done before it began, in a resumed epoch
WITH_METRICS = "with_metrics"  # field of a task: the metrics stand beside it


class _Column:
    """What rich asks of a column."""

    max_refresh: float | None = None
    no_wrap = True

    def get_table_column(self) -> Column:
        from rich.table import Column

        return Column(no_wrap=self.no_wrap)

    def __call__(self, task: Task) -> RenderableType:
        return self.render(task)

    def render(self, task: Task) -> RenderableType:
        raise NotImplementedError


class CustomBarColumn(_Column):
    """The bar; it gets narrower to leave room for the metrics.

    Args:
        complete_style: Style of the done part.
        finished_style: Style of a finished bar.
        pulse_style: Style of a bar of unknown length.
    """

    no_wrap = False

    def __init__(
        self,
        *,
        complete_style: str | Style = "bar.complete",
        finished_style: str | Style = "bar.finished",
        pulse_style: str | Style = "bar.pulse",
    ) -> None:
        self.complete_style = complete_style
        self.finished_style = finished_style
        self.pulse_style = pulse_style
        self.width = WIDEST_BAR

    def render(self, task: Task) -> RenderableType:
        """Draw the bar of a task."""
        from rich.progress_bar import ProgressBar as Bar

        return Bar(
            total=task.total,
            completed=max(0, task.completed),
            width=self.width,
            pulse=task.total is None,
            animation_time=task.get_time(),
            complete_style=self.complete_style,
            finished_style=self.finished_style,
            pulse_style=self.pulse_style,
        )


class _StyledColumn(_Column):
    def __init__(self, style: str | Style) -> None:
        self.style = style

    def render(self, task: Task) -> Text:
        """Write the text for a task."""
        from rich.text import Text

        return Text(self.text(task), style=self.style)

    def text(self, task: Task) -> str:
        raise NotImplementedError


class BatchesProcessedColumn(_StyledColumn):
    """Batches done and in all, e.g. `20/64`, or `20/--` where the loader has no length.

    Args:
        style: Style as in rich.
    """

    def text(self, task: Task) -> str:
        """Return the text for a task."""
        return f"{int(task.completed)}/{'--' if task.total is None else int(task.total)}"


class CustomTimeColumn(_StyledColumn):
    """Time gone and time left, e.g. `0:00:05 • 0:01:10`.

    Args:
        style: Style as in rich.
    """

    max_refresh = 0.5

    def text(self, task: Task) -> str:
        """Return the text for a task."""
        elapsed_s = task.elapsed
        speed = _batches_per_s(task)
        left_s = (task.total - task.completed) / speed if task.total is not None and speed else None
        return f"{_clock(elapsed_s)} • {_clock(left_s)}"


class ProcessingSpeedColumn(_StyledColumn):
    """Batches a second, e.g. `83.27it/s`.

    Args:
        style: Style as in rich.
    """

    def text(self, task: Task) -> str:
        """Return the text for a task."""
        return f"{_batches_per_s(task) or 0.0:>.2f}it/s"


class MetricsTextColumn(_StyledColumn):
    """What was logged with `prog_bar=True`, e.g. `train_loss: 0.123 val_loss: 0.456`.

    Args:
        trainer: The Trainer; kept for columns derived from this one.
        style: Style as in rich.
        text_delimiter: Text between metrics.
        metrics_format: Format of floats.
    """

    no_wrap = False

    def __init__(self, trainer: Trainer, style: str | Style, text_delimiter: str, metrics_format: str) -> None:
        super().__init__(style)
        self.trainer = trainer
        self.text_delimiter = text_delimiter
        self.metrics_format = metrics_format
        self.below = False  # no room beside the bar
        self._text = ""

    def update(self, metrics: dict[str, Any]) -> None:
        """Set the metrics to show from now on.

        Args:
            metrics: Name to value.
        """
        self._text = self.text_delimiter.join(f"{name}: {self._format(value)}" for name, value in metrics.items())

    def _format(self, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        text = format(value, self.metrics_format)
        # A small learning rate should not read 0.000.
        return f"{value:.2e}" if value != 0 and not text.strip("-+0.") else text

    def text(self, task: Task) -> str:
        """Return the text for a task; only the train bar has metrics."""
        return self._text if task.fields.get(WITH_METRICS) and not self.below else ""

    def text_below(self) -> str:
        """Return the text for an own line, if that is where the metrics stand."""
        return self._text if self.below else ""


def _batches_per_s(task: Task) -> float | None:
    elapsed_s = task.elapsed
    done: float = task.completed - task.fields.get(COUNTED_FROM, 0)
    return done / elapsed_s if elapsed_s and done > 0 else None


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, int(seconds))))


@functools.cache
def progress_class() -> type[Progress]:
    """Return our kind of `rich.progress.Progress`, made on first use because rich is optional."""
    from rich.progress import Progress
    from rich.text import Text

    class CustomProgress(Progress):
        """Puts the metrics below the bars where there is no room beside them."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for column in self.columns:
                if isinstance(column, MetricsTextColumn) and column.text_below():
                    yield Text(column.text_below(), style=column.style)

    return CustomProgress


def plain_line(progress: Progress, task: Task) -> str:
    """Return what the columns say of a task, without the bar.

    Args:
        progress: The bars.
        task: One of them.
    """
    cells = (column.format(task=task) if isinstance(column, str) else column(task) for column in progress.columns)
    texts = (getattr(cell, "plain", cell) for cell in cells)
    return " ".join(text for text in texts if isinstance(text, str) and text)
