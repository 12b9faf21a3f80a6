"""What happens on CPU and GPU during a few steps, by `torch.profiler`.

Each kind of step (training, validation ...) has its own schedule. A *window* is the recording of one cycle of it:

start("...training_step")  -> another kind than before: end its window, begin one for this kind
  actions, modules, torch operations are recorded while the schedule says so
stop("...training_step")   -> next step of the schedule; a window that is complete is kept for the report and exported
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerAction

from fulmen.profilers.profiler import Profiler
from fulmen.profilers.schedule import ScheduleWrapper as ScheduleWrapper
from fulmen.profilers.schedule import kind_of
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_number
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["PyTorchProfiler", "RegisterRecordFunction", "ScheduleWrapper"]

_ON = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
_OWN_KWARGS = {"export_to_flame_graph", "metric", "memory_snapshot"}
_Schedule: TypeAlias = Callable[[int], ProfilerAction]
_WAIT, _WARMUP, _ACTIVE = 1, 1, 3
_MOST_ALLOCATIONS = 100_000  # the latest; some 100 MB of host memory


class RegisterRecordFunction:
    """While entered, name the submodules of a model in traces, as `[pl][module]<class>: <name>`.

    Args:
        model: The model; scripted submodules, which have no Python hooks, are left out.
        is_on: Tells whether a recording runs; asked at each forward.

    Example::

        with RegisterRecordFunction(model):
            model(batch)
    """

    def __init__(self, model: nn.Module, is_on: Callable[[], bool] = lambda: True) -> None:
        self._model = model
        self._is_on = is_on
        self._handles = ExitStack()
        self._open: list[tuple[str, record_function]] = []

    def __enter__(self) -> None:
        """Register the hooks."""
        for name, module in self._model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                label = f"[pl][module]{type(module).__module__}.{type(module).__qualname__}: {name}"
                self._handles.enter_context(module.register_forward_pre_hook(partial(self._begin, label)))
                self._handles.enter_context(module.register_forward_hook(partial(self._end, label)))

    def __exit__(self, *exc_info: object) -> None:
        """Remove them."""
        self._handles.close()
        self._end_down_to(0)

    def _begin(self, label: str, *_: Any) -> None:
        if self._is_on():
            self._open.append((label, _entered(label)))

    def _end(self, label: str, *_: Any) -> None:
        labels = [one for one, _ in self._open]
        if label in labels:  # what lies above it was left by a forward that raised
            self._end_down_to(labels.index(label))

    def _end_down_to(self, depth: int) -> None:
        while len(self._open) > depth:
            self._open.pop()[1].__exit__(None, None, None)


@dataclass(slots=True)
class _Run:
    """What is forgotten when a run ends."""

    schedule: ScheduleWrapper | None
    module: nn.Module | None = None
    kind: str | None = None
    """Kind of step that is recorded now."""
    step_action: str = ""
    """Name of the last step; files are named by it."""
    has_begun: bool = False
    window_is_empty: bool = True
    contexts: ExitStack = field(default_factory=ExitStack)
    """What lives as long as the run: names of modules, NVTX marks."""


class PyTorchProfiler(Profiler):
    """Report the operations of some steps, and write traces for `chrome://tracing` or Perfetto into `dirpath`.

    Recording is scheduled for each kind of step on its own: by default one training step is passed over, one warms up
    and three are recorded, then the same for validation steps. If fewer than five steps will run, all are recorded.

    Args:
        dirpath: Folder of report and traces; default the log folder of the run.
        filename: Name of the report's file, without extension; `None` prints the report to the log.
        group_by_input_shapes: List an operation once for each shape of its inputs; records shapes.
        emit_nvtx: Only mark all actions for NVIDIA's profilers, and write no report; run the program under `nsys`.
        export_to_chrome: Write a trace file for each window.
        row_limit: How many operations a table shows; -1 for all.
        sort_by_key: Column that tables are sorted by; default total time on the GPU if there is one, else on the CPU.
        record_module_names: Name the submodules in traces.
        table_kwargs: Further arguments of the table, e.g. `{"max_name_column_width": 100}`.
        profiler_kwargs: Arguments of `torch.profiler.profile`, e.g. `schedule`, `activities`, `profile_memory`;
            `schedule=None` records everything. With `emit_nvtx`, arguments of `torch.autograd.profiler.emit_nvtx`.
            Also `export_to_flame_graph=True`, with `metric="self_cpu_time_total"`, to write `.stack` files; and
            `memory_snapshot=True` to write, for each window, every allocation of GPU memory with the lines of code that
            made it, as a `.memory.pickle` file for https://pytorch.org/memory_viz.

    Raises:
        MisconfigurationException: An unknown `sort_by_key`, or a `schedule` that is not a callable from step number to
            `torch.profiler.ProfilerAction`.
        TypeError: An argument that the profiler does not have.

    Example::

        trainer = Trainer(profiler=PyTorchProfiler(filename="operations", profile_memory=True))
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"training_step", "validation_step", "test_step", "predict_step"}
    AVAILABLE_SORT_KEYS: ClassVar[set[str]] = {
        "cpu_time",
        "cuda_time",
        "cpu_time_total",
        "cuda_time_total",
        "cpu_memory_usage",
        "cuda_memory_usage",
        "self_cpu_memory_usage",
        "self_cuda_memory_usage",
        "count",
    }

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        _check_kwargs(profiler_kwargs, emit_nvtx)
        _check_sort_key(sort_by_key, self.AVAILABLE_SORT_KEYS)
        check_number(
            "PyTorchProfiler", "row_limit", row_limit, "the rows of the table; -1 is all.", least=-1, whole=True
        )
        kwargs = dict(profiler_kwargs)
        self._group_by_input_shapes = group_by_input_shapes
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._export_to_flame_graph = kwargs.pop("export_to_flame_graph", False)
        self._flame_graph_metric = kwargs.pop("metric", "self_cpu_time_total")
        self._memory_snapshot = kwargs.pop("memory_snapshot", False)
        self._sort_by_key = sort_by_key
        self._record_module_names = record_module_names
        self._table_kwargs = {"row_limit": row_limit, **(table_kwargs or {})}
        self._has_default_schedule = "schedule" not in kwargs
        self._schedule = _checked_schedule(kwargs.pop("schedule", _default_schedule()))
        self._on_trace_ready: Callable[[Any], Any] | None = kwargs.pop("on_trace_ready", None)
        if group_by_input_shapes:
            kwargs["record_shapes"] = True
        if self._export_to_flame_graph:
            kwargs["with_stack"] = True
        self._kwargs = kwargs

        self.profiler: torch.profiler.profile | None = None
        self.function_events: Any = None  # `EventList` of the last window
        self._run = _Run(self._schedule)
        self._windows: dict[str, Any] = {}  # `EventList` of the last one of each kind
        self._recordings: dict[str, record_function] = {}

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a run, and forget the one before.

        Args:
            stage: What runs.
            local_rank: Put into file names; `None` when there is only one process.
            log_dir: Folder of report and traces if no `dirpath` was given.
        """
        super().setup(stage, local_rank, log_dir)
        self.teardown(stage)
        if self._schedule is not None:
            self._schedule.reset()
        self._windows.clear()

    def connect(self, module: nn.Module, *, num_steps: float) -> None:
        """Learn what is about to run.

        Args:
            module: The model whose submodules are named in traces.
            num_steps: How many batches will run; if the default schedule needs more, all steps are recorded.
        """
        self._run.module = module
        if self._has_default_schedule and num_steps < _WAIT + _WARMUP + _ACTIVE:
            self._run.schedule = None

    def start(self, action_name: str) -> None:
        """Begin to record an action, and the whole profile if this is the first step.

        Args:
            action_name: Name of the action; what follows its last dot tells whether it is a step.
        """
        kind = kind_of(action_name)
        if kind in self.STEP_FUNCTIONS:
            self._run.step_action = action_name
            if kind != self._run.kind:
                self._change_kind(kind)
        if self._is_on() and action_name not in self._recordings:
            self._recordings[action_name] = _entered(f"[pl][profile]{action_name}")
            self._run.window_is_empty = False

    def stop(self, action_name: str) -> None:
        """End the recording of an action; the end of a step is a step of the schedule.

        Args:
            action_name: Name it was started with; one that was not recorded is passed over.
        """
        recording = self._recordings.pop(action_name, None)
        if recording is not None:
            recording.__exit__(None, None, None)
        function = action_name.rpartition(".")[2]
        if function not in self.STEP_FUNCTIONS or self.profiler is None:
            return
        if self._run.schedule is not None:
            self._run.schedule.pre_step(action_name)
        if self.profiler.current_action == ProfilerAction.RECORD_AND_SAVE:
            self._end_recordings()
        self.profiler.step()

    def summary(self) -> str:
        """Return a table of operations for each kind of step that was recorded; ends the recording."""
        self._close_window()
        if self._emit_nvtx:
            return ""
        sections = [self._title()]
        sort_by = self._sort_by_key or ("cuda_time_total" if torch.cuda.is_available() else "cpu_time_total")
        for kind, events in self._windows.items():
            averages = events.key_averages(self._group_by_input_shapes)
            sections.append(f"Profile stats for: {kind}\n{averages.table(sort_by=sort_by, **self._table_kwargs)}")
        if not self._windows:
            num_steps = {} if self._schedule is None else self._schedule.num_steps
            sections.append(
                f"Nothing was recorded: steps that ran are {num_steps}, and the schedule did not come to record"
                " one. Pass a `schedule` that records earlier, or `schedule=None` for all steps.\n"
                if num_steps
                else f"Nothing was recorded: no step ran, that is, no action named {sorted(self.STEP_FUNCTIONS)}.\n"
            )
        return "\n".join(sections)

    def teardown(self, stage: str | None) -> None:
        """Stop recording; the report stays until the next `setup`.

        Args:
            stage: As in `setup`.
        """
        self._close_window()
        self._run.contexts.close()
        self._run = _Run(self._schedule)

    def _is_on(self) -> bool:
        if self.profiler is None:
            return self._emit_nvtx and self._run.kind is not None
        return self.profiler.current_action in _ON

    def _change_kind(self, kind: str) -> None:
        """Begin to record another kind of step than before."""
        if not self._run.has_begun:
            self._run.has_begun = True
            self._enter_contexts()
        schedule = self._run.schedule
        records_everything = schedule is None
        if self._emit_nvtx or (records_everything and self.profiler is not None):
            self._run.kind = kind
            return
        self._close_window()
        self._run.kind = kind
        if schedule is not None:
            schedule.setup(kind)
        self.profiler = torch.profiler.profile(
            schedule=schedule,
            on_trace_ready=partial(self._keep_window, "all steps" if records_everything else kind),
            **self._kwargs,
        )
        if self._memory_snapshot:
            _record_memory(True)
        self.profiler.start()

    def _enter_contexts(self) -> None:
        if self._record_module_names and self._run.module is not None:
            self._run.contexts.enter_context(RegisterRecordFunction(self._run.module, self._is_on))
        if self._emit_nvtx:
            if not torch.cuda.is_available():
                raise MisconfigurationException(
                    "`PyTorchProfiler(emit_nvtx=True)` marks work on NVIDIA GPUs, and this process sees none."
                    " Leave `emit_nvtx` out to profile on the CPU."
                )
            self._run.contexts.enter_context(_cuda_profiler())
            nvtx: Any = torch.autograd.profiler.emit_nvtx
            self._run.contexts.enter_context(nvtx(**self._kwargs))

    def _close_window(self) -> None:
        """End the recording of the current kind of step; what was recorded of an incomplete window is kept."""
        self._end_recordings()
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None
            if self._memory_snapshot:
                _record_memory(False)
        self._run.kind = None

    def _end_recordings(self) -> None:
        while self._recordings:
            self._recordings.popitem()[1].__exit__(None, None, None)

    def _keep_window(self, kind: str, profiler: Any) -> None:
        """Keep what was recorded for the report, and export it."""
        if self._run.window_is_empty:  # it was closed when its first step to be recorded was yet to come
            return
        self._run.window_is_empty = True
        self.function_events = self._windows[kind] = profiler.events()
        if self._on_trace_ready is not None:
            self._on_trace_ready(profiler)
            return
        if not (self._export_to_chrome or self._export_to_flame_graph or self._memory_snapshot):
            return
        if self.dirpath is None:
            rank_zero_warn(
                "`PyTorchProfiler` has no folder for its traces, because neither `dirpath` was given nor a logger with"
                " a log folder. Pass `dirpath=...`, or `export_to_chrome=False` if you only want the table."
            )
            return
        path = os.path.join(self._folder(), f"{self._file_name(self._run.step_action)}.{time.time_ns()}")
        if self._export_to_chrome:
            profiler.export_chrome_trace(f"{path}.pt.trace.json")
        if self._memory_snapshot:
            memory: Any = torch.cuda.memory
            memory._dump_snapshot(f"{path}.memory.pickle")
        if self._export_to_flame_graph:
            profiler.export_stacks(f"{path}.stack", metric=self._flame_graph_metric)


def _entered(label: str) -> record_function:
    recording = record_function(label)
    recording.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return recording


def _default_schedule() -> _Schedule:
    return torch.profiler.schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1)


def _record_memory(is_on: bool) -> None:
    """Begin or end to record allocations of GPU memory.

    Args:
        is_on: Whether to record from now on.

    Raises:
        MisconfigurationException: There is no GPU.
    """
    if not torch.cuda.is_available():
        raise MisconfigurationException(
            "`PyTorchProfiler(memory_snapshot=True)` records the memory of NVIDIA GPUs, and this process sees none."
            " For the CPU use `profile_memory=True`, which lists memory in the table."
        )
    torch.cuda.memory._record_memory_history("all" if is_on else None, max_entries=_MOST_ALLOCATIONS)


@contextmanager
def _cuda_profiler() -> Iterator[None]:
    """Tell `nsys`, started with `--capture-range=cudaProfilerApi`, what to record."""
    cuda: Any = torch.cuda.profiler
    cuda.start()
    try:
        yield
    finally:
        cuda.stop()


def _check_sort_key(key: str | None, available: set[str]) -> None:
    if key is not None and key not in available:
        raise MisconfigurationException(
            f"`PyTorchProfiler(sort_by_key={key!r})` names no column of the table. Choose one of {sorted(available)}."
        )


def _checked_schedule(schedule: Any) -> ScheduleWrapper | None:
    if schedule is None:
        return None
    if not callable(schedule):
        raise MisconfigurationException(
            f"`PyTorchProfiler(schedule={schedule!r})` is not callable. Pass a function from the step's number to a"
            " `torch.profiler.ProfilerAction`, e.g. `torch.profiler.schedule(wait=1, warmup=1, active=3)`."
        )
    action = schedule(0)
    if not isinstance(action, ProfilerAction):
        raise MisconfigurationException(
            f"The `schedule` of `PyTorchProfiler` returned {action!r} for step 0, which is no"
            " `torch.profiler.ProfilerAction`. Pass e.g. `torch.profiler.schedule(wait=1, warmup=1, active=3)`."
        )
    return ScheduleWrapper(schedule)


def _check_kwargs(kwargs: Mapping[str, Any], emit_nvtx: bool) -> None:
    target: Any = torch.autograd.profiler.emit_nvtx if emit_nvtx else torch.profiler.profile
    known = {*inspect.signature(target).parameters} | _OWN_KWARGS | {"schedule", "on_trace_ready"}
    unknown = sorted(kwargs.keys() - known)
    if unknown:
        raise TypeError(
            f"`PyTorchProfiler` has no arguments {unknown!r}, and neither has `{target.__name__}`, which they would be"
            f" passed to. It takes {sorted(known)!r}."
        )
