"""`trainer.history`: a table of what a run has logged, kept in memory."""

from __future__ import annotations

import functools
import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.metrics.curve_names import curve_group
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from fulmen.core.states import TrainerState

__all__ = ["History"]

_STAGES = ("train", "validate", "test", "predict", "sanity_check")
_RESERVED = ("step", "epoch", "stage")  # columns of every row
_NO_EPOCH = -1
_MOST_PENDING = 256  # values on a device that wait to be read
_SHOWN_ROWS = 6


class History:
    """The logged values of a Trainer as a table: one row for each row that the loggers get, also without a logger.

    A row has `step` and `epoch` as the loggers get them (`epoch` is None in the rows of single validation batches),
    `stage` (`"train"`, `"validate"` or `"test"`) and the single numbers that were published then: those logged per step
    every `log_every_n_steps`, those logged per epoch at its end, learning rates of a `LearningRateMonitor`. Values
    logged with `logger=False` are in it, too. It is kept by the first process, and a checkpoint carries it: a resumed
    run goes on with the rows that the table had when the checkpoint was written.

    A row takes 26 bytes and a value 16. Beyond `most_rows` the memory stays bounded: every second row is dropped,
    evenly over the whole run, of the rows per step or of those per epoch, whichever are more; the loggers keep all.

    Args:
        state: The state of the Trainer, for the `stage` of new rows.
        most_rows: How many rows are kept.

    Raises:
        ValueError: `most_rows` is less than 4.

    Example::

        trainer.fit(model)
        trainer.history.plot(["train_loss", "val_loss"])
        trainer.history.to_pandas().to_csv("curves.csv")
    """

    def __init__(self, state: TrainerState | None = None, *, most_rows: int = 100_000) -> None:
        if most_rows < 4:
            raise ValueError(
                f"`History(most_rows={most_rows!r})` is too few: half of the rows are dropped when it is reached."
                " Pass 4 or more."
            )
        self.most_rows = most_rows
        self._state = state
        self._is_paused = False
        self._clear()

    def _clear(self) -> None:
        self._steps, self._epochs, self._stages = array("q"), array("q"), array("b")
        self._per_step, self._numbers = array("b"), array("q")  # kind of each row, and which of its kind it was
        self._columns: dict[str, tuple[array[int], array[float]]] = {}  # name -> index of the row, value
        self._pending: list[tuple[str, int, Tensor]] = []
        self._counts = [0, 0]  # rows ever, per epoch and per step
        self._every = [1, 1]  # every how many-th of them is kept

    # ---- writing
    def add(
        self, values: Mapping[str, Any], step: int, epoch: int | None = None, *, stage: str = "", per_step: bool = True
    ) -> None:
        """Append a row. The Trainer calls it; call it to have values of your own in the table.

        Nothing waits for a device: a tensor is read when somebody reads the table.

        Args:
            values: Name to number or one-element tensor; others, and the names of the fixed columns, are left out.
            step: The row's `step`.
            epoch: The row's `epoch`.
            stage: Its `stage`; by default what the Trainer is doing.
            per_step: Whether it is one of many rows within an epoch, of which some may be dropped for those of epochs.
        """
        values = {name: each for name, each in values.items() if name not in _RESERVED and _is_number(each)}
        if not values or self._is_paused:
            return
        number = self._counts[per_step]
        self._counts[per_step] += 1
        if number % self._every[per_step]:
            return
        row_idx = len(self._steps)
        self._steps.append(int(step))
        self._epochs.append(_NO_EPOCH if epoch is None else int(epoch))
        self._stages.append(_STAGES.index(stage or self._stage_now()))
        self._per_step.append(per_step)
        self._numbers.append(number)
        for name, value in values.items():
            self._put(name, row_idx, value)
        if len(self._pending) >= _MOST_PENDING:
            self._read_pending()
        if len(self._steps) > self.most_rows:
            self._thin_out()

    def _stage_now(self) -> str:
        stage = None if self._state is None else self._state.stage
        return "train" if stage is None else str(stage.value)

    def _put(self, name: str, row_idx: int, value: Any) -> None:
        rows, numbers = self._columns.setdefault(name, (array("q"), array("d")))
        if isinstance(value, Tensor) and not value.is_cpu:
            self._pending.append((name, len(numbers), value.detach()))
            value = float("nan")
        rows.append(row_idx)
        numbers.append(float(value))

    def _read_pending(self) -> None:
        """Read the values that are still on a device, all at once."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        read = torch.stack([value.reshape(()).to(torch.float64) for *_, value in pending])  # sync: somebody reads
        for (name, position, _), value in zip(pending, read.tolist(), strict=True):
            self._columns[name][1][position] = value

    def _thin_out(self) -> None:
        """Drop every second row of the kind that has more."""
        kind = int(2 * sum(self._per_step) >= len(self._per_step))
        self._every[kind] *= 2
        every = self._every[kind]
        self._keep([each != kind or n % every == 0 for each, n in zip(self._per_step, self._numbers, strict=True)])

    def _keep(self, is_kept: Sequence[bool]) -> None:
        self._read_pending()
        moved: dict[int, int] = {}
        for row_idx, kept in enumerate(is_kept):
            if kept:
                moved[row_idx] = len(moved)
        for column in ("_steps", "_epochs", "_stages", "_per_step", "_numbers"):
            old = getattr(self, column)
            setattr(self, column, array(old.typecode, (old[row_idx] for row_idx in moved)))
        for name, (rows, values) in list(self._columns.items()):
            pairs = [(moved[row], value) for row, value in zip(rows, values, strict=True) if row in moved]
            if pairs:
                self._columns[name] = array("q", (row for row, _ in pairs)), array("d", (value for _, value in pairs))
            else:
                del self._columns[name]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take no rows inside the context: for trial runs, whose values are not those of the training."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    # ---- reading
    def __len__(self) -> int:
        """Number of rows."""
        return len(self._steps)

    def __bool__(self) -> bool:
        """True: it exists, though it may be empty."""
        return True

    @property
    def names(self) -> list[str]:
        """Names of the values, in the order in which they were first logged."""
        return list(self._columns)

    def __contains__(self, name: object) -> bool:
        """Whether something was logged under this name."""
        return name in self._columns

    def __getitem__(self, name: str) -> list[tuple[int, float]]:
        """The curve of a name as pairs of step and value.

        Raises:
            KeyError: Nothing was logged under this name.
        """
        if name not in self._columns:
            raise KeyError(
                f"`trainer.history` has no {name!r}: nothing was logged under this name. It has {self.names}."
                " Values logged per step come every `log_every_n_steps` steps only."
            )
        self._read_pending()
        rows, values = self._columns[name]
        return [(self._steps[row], value) for row, value in zip(rows, values, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, each with `step`, `epoch`, `stage` and the values that it has."""
        self._read_pending()
        rows: list[dict[str, Any]] = [
            {"step": step, "epoch": None if epoch == _NO_EPOCH else epoch, "stage": _STAGES[stage]}
            for step, epoch, stage in zip(self._steps, self._epochs, self._stages, strict=True)
        ]
        for name, (indices, values) in self._columns.items():
            for row_idx, value in zip(indices, values, strict=True):
                rows[row_idx][name] = value
        return rows

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the table by columns: name to one entry per row, None where a row has no such value."""
        rows = self.rows()
        return {name: [row.get(name) for row in rows] for name in (*_RESERVED, *self._columns)}

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`; cells without a value are NaN.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = require("pandas", extra="history", for_="trainer.history.to_pandas()")
        table = pandas.DataFrame(self.to_dict(), columns=[*_RESERVED, *self._columns])
        types = dict.fromkeys(self._columns, "float64")
        return table.astype({"step": "int64", "epoch": "Int64", **types})

    def __repr__(self) -> str:
        """The last rows as a table of plain text."""
        shown = self.rows()[-_SHOWN_ROWS:]
        names = [name for name in (*_RESERVED, *self._columns) if any(name in row for row in shown)]
        count = f"{len(self)} row{'' if len(self) == 1 else 's'}"
        dropped = sum(self._counts) - len(self)
        kept = f" ({dropped} dropped, evenly)" if dropped else ""
        if not shown:
            return f"History: {count}"
        cells = [names, *([_cell(row.get(name)) for name in names] for row in shown)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        above = ["  ..."] if len(self) > len(shown) else []
        return "\n".join([f"History: {count}{kept}, {len(self._columns)} names", lines[0], *above, *lines[1:]])

    def plot(
        self,
        names: str | Iterable[str] | None = None,
        *,
        x: str = "step",
        log_y: bool = False,
        columns: int = 2,
        path: Any = None,
    ) -> Any:
        """Draw the curves; those that measure the same, e.g. `train_loss` and `val_loss`, into one panel.

        Args:
            names: What to draw; all by default.
            x: The horizontal axis: `"step"` or `"epoch"`.
            log_y: Logarithmic vertical axes.
            columns: Panels side by side.
            path: Also save the figure there; the ending says the format.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            KeyError: Nothing was logged under a name.
            ValueError: `x` is neither `"step"` nor `"epoch"`, or there is nothing to draw.
        """
        if x not in ("step", "epoch"):
            raise ValueError(f"`plot(x={x!r})` is no axis of the table. Choose `x='step'` or `x='epoch'`.")
        wanted = self.names if names is None else [names] if isinstance(names, str) else list(names)
        panels: dict[str, list[str]] = {}
        for name in wanted:
            panels.setdefault(curve_group(name), []).append(name)
        if not panels:
            raise ValueError("`plot` has nothing to draw: no values were logged yet. Log some with `self.log(...)`.")
        new_figure = _figure_class()
        columns = max(1, min(columns, len(panels)))
        lines = -(-len(panels) // columns)
        figure = new_figure(figsize=(5.2 * columns, 3.2 * lines), layout="constrained")
        for position, (title, curves) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(lines, columns, position)
            for name in curves:
                points = self._points(name, x)
                axes.plot(
                    *zip(*points, strict=True), marker="o" if len(points) < 30 else None, ms=3, lw=1.4, label=name
                )
            axes.set(title=title, xlabel=x, yscale="log" if log_y else "linear")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if len(curves) > 1 or curves[0] != title:
                axes.legend(frameon=False, fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    def _points(self, name: str, x: str) -> list[tuple[float, float]]:
        points = self[name]  # an error says what there is
        if x == "step":
            return [(step, value) for step, value in points]
        rows, values = self._columns[name]
        epochs = ((self._epochs[row], value) for row, value in zip(rows, values, strict=True))
        return [(epoch, value) for epoch, value in epochs if epoch != _NO_EPOCH] or [(float("nan"), float("nan"))]

    # ---- checkpoints
    def position(self) -> tuple[int, int]:
        """Return how far the table is, for `state_dict` later on."""
        return self._counts[0], self._counts[1]

    def state_dict(self, until: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return the table as plain data; empty for an empty table.

        Args:
            until: What `position` returned: rows added since are left out.
        """
        self._read_pending()
        if until is not None and until != self.position():
            earlier = History(most_rows=self.most_rows)
            earlier.load_state_dict(self.state_dict())
            earlier._keep([n < until[kind] for kind, n in zip(self._per_step, self._numbers, strict=True)])
            earlier._counts = list(until)
            return earlier.state_dict()
        if not self._steps:
            return {}
        return {
            "step": torch.tensor(self._steps, dtype=torch.int64),
            "epoch": torch.tensor(self._epochs, dtype=torch.int64),
            "stage": torch.tensor(self._stages, dtype=torch.int8),
            "per_step": torch.tensor(self._per_step, dtype=torch.int8),
            "number": torch.tensor(self._numbers, dtype=torch.int64),
            "columns": {
                name: (torch.tensor(rows, dtype=torch.int64), torch.tensor(values, dtype=torch.float64))
                for name, (rows, values) in self._columns.items()
            },
            "counts": list(self._counts),
            "every": list(self._every),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a table in the place of this one.

        Args:
            state: What `state_dict` returned.
        """
        self._clear()
        if not state:
            return
        self._steps = array("q", state["step"].tolist())
        self._epochs = array("q", state["epoch"].tolist())
        self._stages = array("b", state["stage"].tolist())
        self._per_step = array("b", state["per_step"].tolist())
        self._numbers = array("q", state["number"].tolist())
        self._columns = {
            str(name): (array("q", rows.tolist()), array("d", values.tolist()))
            for name, (rows, values) in state["columns"].items()
        }
        self._counts, self._every = list(state["counts"]), list(state["every"])


@functools.cache
def _figure_class() -> type[Any]:
    """Make our kind of figure on first use: one that a notebook shows, though `pyplot` does not know it."""
    figure_module = require("matplotlib.figure", extra="history", for_="trainer.history.plot()")

    class HistoryFigure(figure_module.Figure):  # type: ignore[name-defined, misc]  # known at run time only
        """A figure that needs no window and is not kept alive by `pyplot`."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return HistoryFigure


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, (int, float))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
