"""Where the time of a step goes, in one table whose parts add up to the total."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulmen.profilers.profiler import Profiler
from fulmen.utilities.options import check_number

__all__ = ["StepProfiler"]

_EPOCH = "run_training_epoch"
_WHOLE = {"run_validation": "validation", "save_checkpoint": "checkpoints"}  # what runs inside them is not told apart
_PARTS = {
    "train_dataloader_next": "data wait",
    "val_next": "data wait",
    "predict_next": "data wait",
    "batch_to_device": "transfer to the device",
    "training_step": "forward",
    "validation_step": "forward",
    "test_step": "forward",
    "predict_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimizer step",
    "log_metrics": "logging",
    "run_training_batch": "other",
    _EPOCH: "other",
}
_ORDER = list(dict.fromkeys([*_PARTS.values(), *_WHOLE.values()]))
_STEPS = ("run_training_batch", "validation_step", "test_step", "predict_step")
_ON_GPU = ("transfer to the device", "forward", "backward", "optimizer step")


class StepProfiler(Profiler):
    """Report where the time of a step goes: waiting for data, forward, backward, optimizer, each hook and callback.

    Each moment of the training epochs (of a whole evaluation otherwise) is counted in one row, that of the innermost
    action that runs, so the rows add up to the total. Time that no action accounts for is in "other". It takes some
    microseconds a step.

    Times are by the clock of the process. A GPU works later than it is told to: its own time for transfer, forward,
    backward and optimizer is measured by CUDA events, without waiting for it, in every `gpu_every_n_steps`-th step, and
    listed in a column of its own.

    Args:
        dirpath: Folder of the report; default the log folder of the run.
        filename: Name of the report's file, without extension; `None` prints the report to the log.
        gpu_every_n_steps: How often the GPU is measured; the events of a step take some 30 us.

    A step is one batch, also where several make one optimizer step.

    Attributes:
        seconds: Row to its seconds, in the order of the report.
        num_steps: Number of steps that were measured.

    Raises:
        ValueError: `gpu_every_n_steps` is not a whole number above 0.

    Example::

        trainer = Trainer(profiler=StepProfiler(filename="steps"))  # or `profiler="step"`, to the log
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        *,
        gpu_every_n_steps: int = 10,
    ) -> None:
        super().__init__(dirpath, filename)
        check_number(
            "StepProfiler", "gpu_every_n_steps", gpu_every_n_steps, "1 measures each step.", least=1, whole=True
        )
        self._gpu_every = gpu_every_n_steps
        self._timers: dict[str, _Timer] = {}
        self._clock = _Clock()

    # ---- what is told
    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a run, and forget the one before.

        Args:
            stage: What runs.
            local_rank: Put into the file's name; `None` when there is only one process.
            log_dir: Folder of the report if no `dirpath` was given.
        """
        super().setup(stage, local_rank, log_dir)
        self._timers.clear()
        self._clock = _Clock()

    def connect(self, module: nn.Module, *, num_steps: float) -> None:
        """Begin to count, in an evaluation; in a fit its epochs are counted.

        Args:
            module: The model.
            num_steps: Not used.
        """
        if torch.cuda.is_available() and any(parameter.is_cuda for parameter in module.parameters()):
            self._clock.gpu = _GpuTimes(self._gpu_every)
        if self._stage != "fit":
            self._clock.enter("other")

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]  # not made by a generator, which costs 1 us
        """Record what runs inside the `with` block, also if it raises.

        Args:
            action_name: Name of the action.
        """
        timer = self._timers.get(action_name)
        return self._new_timer(action_name) if timer is None else timer

    def start(self, action_name: str) -> None:
        """Begin to time an action.

        Args:
            action_name: Name of the action.
        """
        self.profile(action_name).__enter__()

    def stop(self, action_name: str) -> None:
        """End it.

        Args:
            action_name: Name it was started with.

        Raises:
            ValueError: It is not the one that was started last.
        """
        row = self._new_timer(action_name).row
        if not self._clock.rows or self._clock.rows[-1] != row:
            raise ValueError(
                f"The action {action_name!r} cannot be stopped, because it is not the one that was started last. Stop"
                f" what was started in it first, or use `with profiler.profile({action_name!r})`."
            )
        self.profile(action_name).__exit__(None, None, None)

    def _new_timer(self, action_name: str) -> _Timer:
        if action_name not in self._timers:
            function = action_name.rpartition(".")[2]
            row = _WHOLE.get(function) or _PARTS.get(function) or _row_of(action_name)
            self._timers[action_name] = _Timer(
                self._clock,
                row,
                is_root=function == _EPOCH,
                is_step=function in _STEPS,
                is_whole=function in _WHOLE,
            )
        return self._timers[action_name]

    # ---- the report
    @property
    def num_steps(self) -> int:
        """Number of steps that were measured."""
        return self._clock.num_steps

    @property
    def seconds(self) -> dict[str, float]:
        """Row to its seconds, the longest hooks and callbacks after the fixed rows; their sum is `total`."""
        spent = self._clock.spent
        fixed = [row for row in _ORDER if row != "other" and row in spent]
        named = sorted(spent.keys() - set(_ORDER), key=lambda row: -spent[row])
        return {row: spent[row] for row in [*fixed, *named, *(["other"] if "other" in spent else [])]}

    @property
    def total(self) -> float:
        """Seconds of all that was measured."""
        return sum(self._clock.spent.values())

    @property
    def gpu_seconds_per_step(self) -> dict[str, float]:
        """Row to the GPU's seconds in one step; empty without a GPU. Waits for the GPU."""
        return {} if self._clock.gpu is None else self._clock.gpu.per_step()

    def summary(self) -> str:
        """Return the table; empty if no step ran."""
        steps, total, gpu = self.num_steps, self.total, self.gpu_seconds_per_step
        if not steps:
            return ""
        header = ["Part of a step", "ms per step", "%", "Total (s)"] + (["GPU ms per step"] if gpu else [])
        rows = [("Total", total), *self.seconds.items()]
        table = [
            [name, f"{1e3 * s / steps:.4f}", f"{100 * s / total:.1f}", f"{s:.3f}"]
            + ([f"{1e3 * gpu[name]:.4f}" if name in gpu else ""] if gpu else [])
            for name, s in rows
        ]
        widths = [max(len(row[i]) for row in [header, *table]) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [header, *table]
        ]
        rule = "-" * len(lines[0])
        return "\n".join([f"{self._title()}{steps} steps", "", lines[0], rule, lines[1], rule, *lines[2:]]) + "\n"

    def teardown(self, stage: str | None) -> None:
        """End the run; the report stays until the next `setup`.

        Args:
            stage: As in `setup`.
        """
        self._clock.leave_all()


class _Clock:
    """Gives each moment to the innermost row that is open. Counts while a root row is open."""

    __slots__ = ("gpu", "is_on", "num_steps", "rows", "since", "spent", "whole")

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.rows: list[str] = []
        self.since = 0.0
        self.is_on = False
        self.whole = 0  # how many rows are open that are not divided
        self.num_steps = 0
        self.gpu: _GpuTimes | None = None

    def enter(self, row: str) -> None:
        now = time.perf_counter()
        if self.rows:
            outer = self.rows[-1]
            self.spent[outer] = self.spent.get(outer, 0.0) + now - self.since
        self.rows.append(row)
        self.since = now

    def leave(self) -> None:
        now = time.perf_counter()
        row = self.rows.pop()
        self.spent[row] = self.spent.get(row, 0.0) + now - self.since
        self.since = now

    def leave_all(self) -> None:
        while self.rows:
            self.leave()


class _Timer(AbstractContextManager[None]):
    """Times one action; made once for each name."""

    __slots__ = ("_clock", "_is_root", "_is_step", "_is_whole", "_on_gpu", "row")

    def __init__(self, clock: _Clock, row: str, *, is_root: bool, is_step: bool, is_whole: bool) -> None:
        self._clock = clock
        self.row = row
        self._is_root, self._is_step, self._is_whole = is_root, is_step, is_whole
        self._on_gpu = row in _ON_GPU

    def __enter__(self) -> None:
        clock = self._clock
        if not clock.rows and not self._is_root:  # outside of what is measured
            clock.whole += 1
            return
        if clock.whole:
            clock.whole += 1
            return
        clock.enter(self.row)
        if self._is_whole:
            clock.whole = 1
        elif self._on_gpu and clock.gpu is not None:
            clock.gpu.begin(self.row, clock.num_steps)

    def __exit__(self, *exc_info: object) -> None:
        clock = self._clock
        if clock.whole > 1 or (clock.whole and not (self._is_whole and clock.rows)):
            clock.whole -= 1
            return
        clock.whole = 0
        if not clock.rows:  # an error has ended all
            return
        if self._on_gpu and clock.gpu is not None:
            clock.gpu.end(self.row)
        if self._is_step:
            clock.num_steps += 1
        clock.leave()


class _GpuTimes:
    """The GPU's own time for some rows, by events that are read when it has passed them."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._steps: set[int] = set()
        self._open: dict[str, Any] = {}
        self._pending: deque[tuple[str, Any, Any]] = deque()
        self._ms: dict[str, float] = {}

    def begin(self, row: str, step: int) -> None:
        if step % self._every == 0 and step > 0:  # the first one compiles and allocates
            self._steps.add(step)
            self._open[row] = _recorded()

    def end(self, row: str) -> None:
        begun = self._open.pop(row, None)
        if begun is not None:
            self._pending.append((row, begun, _recorded()))
            while self._pending and self._pending[0][2].query():
                self._read()

    def _read(self) -> None:
        row, begun, ended = self._pending.popleft()
        self._ms[row] = self._ms.get(row, 0.0) + begun.elapsed_time(ended)

    def per_step(self) -> dict[str, float]:
        if self._pending:
            torch.cuda.synchronize()
        while self._pending:
            self._read()
        return {row: ms / 1e3 / len(self._steps) for row, ms in self._ms.items()}


def _recorded() -> Any:
    make: Callable[..., Any] = torch.cuda.Event
    event = make(enable_timing=True)
    event.record()
    return event


def _row_of(action_name: str) -> str:
    """`[Callback]Timer.on_train_batch_end` to `callback Timer`; hooks of the module keep their names."""
    kind, bracket, rest = action_name.partition("]")
    if not bracket:
        return action_name
    owner, _, hook = rest.rpartition(".")
    if kind == "[Callback":
        return f"callback {owner.partition('{')[0]}"
    return f"hook {owner}.{hook}" if owner else action_name
