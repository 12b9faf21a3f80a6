"""Runs the function in worker processes, and brings back what it did."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import torch
import torch.multiprocessing

from fulmen.strategies.fault_report import LAUNCH_FOLDER_VARIABLE, Report, as_exception, mark_launched, write_report
from fulmen.strategies.fault_watch import GRACE_S
from fulmen.strategies.launchers.launcher import (
    Carrier,
    Launcher,
    end_children,
    exit_code,
    threads_per_process,
    watch_parent,
)
from fulmen.strategies.launchers.pickling import explain_unpicklable
from fulmen.utilities.exceptions import SIGTERMException
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from fulmen.utilities.variables import variables_set

__all__ = ["MultiProcessingLauncher", "do_task"]

_FORWARDED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_INTERRUPT_ASK_S, _INTERRUPT_KILL_S = 10.0, 60.0  # interrupted ranks may save a checkpoint
_MISSING_GUARD = """\
The processes of `start_method={start_method!r}` import the script `{script}` again, and this started the run once more:
the lines that start it must not run on import. Put them under a main guard:

    def main():
        trainer = Trainer(...)
        trainer.fit(...)

    if __name__ == "__main__":
        main()
"""


class MultiProcessingLauncher(Launcher):
    """Runs the function in new processes, one for each device of this machine, for one launch.

    What the function returns on rank 0 comes back, and what a `Carrier` packs there. With `spawn` and `forkserver` all
    that the function uses is pickled: each process has a copy of its own.

    Args:
        strategy: The strategy; in each process it becomes that of the process.
        start_method: "spawn", "fork" or "forkserver", as in `multiprocessing`.

    Raises:
        ValueError: This system does not have the start method.
    """

    def __init__(self, strategy: Any, start_method: Literal["spawn", "fork", "forkserver"] = "spawn") -> None:
        available = torch.multiprocessing.get_all_start_methods()
        if start_method not in available:
            raise ValueError(
                f"The start method {start_method!r} does not exist on this system, which has {available}."
                f" Choose one of these, e.g. `strategy='ddp_{available[0]}'`."
            )
        super().__init__(strategy)
        self.start_method = start_method
        self.procs: list[BaseProcess] = []
        self._first_codes: dict[int, int] = {}  # of those who ended first, before the others were asked to

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook: with `fork`, as what is defined there can't be imported."""
        return self.start_method == "fork"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "procs": [], "_local_report": None}

    def launch(  # noqa: D102 - as in the base class
        self, function: Callable[..., Any], *args: Any, carrier: Carrier | None = None, **kwargs: Any
    ) -> Any:
        _refuse_import_in_worker()
        self._refuse_fork_with_cuda()
        with tempfile.TemporaryDirectory(prefix="fulmen_") as name, self._environment(name):
            folder = Path(name)
            task = _Task(self, function, args, kwargs, carrier, _ProcessState.of_this_process())
            inherited = task if self.start_method == "fork" else None
            if inherited is None:
                _save_task(task, folder)
            self._run_workers(folder, inherited)
            result, payload = torch.load(folder / "result.pt", map_location="cpu", weights_only=False)
        if carrier is not None:
            carrier.unpack(payload)
        return result

    def _refuse_fork_with_cuda(self) -> None:
        if self.start_method == "fork" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # in torch
            raise RuntimeError(
                "`start_method='fork'` can't be used after CUDA was: a forked process can't use it again. Do not call"
                " `torch.cuda` functions or move anything to a GPU before; in a notebook, restart the kernel. Or choose"
                " `strategy='ddp_spawn'`, or `strategy='ddp'` in a script."
            )

    @contextlib.contextmanager
    def _environment(self, folder: str) -> Iterator[None]:
        """Set what the processes inherit: one port for all, and where to leave results."""
        values = {LAUNCH_FOLDER_VARIABLE: folder}
        environment = self.strategy.cluster_environment
        if environment is not None and not environment.creates_processes_externally:
            values["MASTER_ADDR"] = environment.main_address
            values["MASTER_PORT"] = str(environment.main_port)
        with variables_set(values):
            yield

    # ---- the workers from outside

    def _children(self) -> dict[int, BaseProcess]:
        first_rank = self.strategy.node_rank * self.strategy.num_processes
        return {first_rank + idx: process for idx, process in enumerate(self.procs) if process.pid is not None}

    def _run_workers(self, folder: Path, inherited: _Task | None) -> None:
        """Start the workers, wait until all have ended, and raise what ended them."""
        context: BaseContext = torch.multiprocessing.get_context(self.start_method)
        self.procs = [
            context.Process(  # type: ignore[attr-defined]  # of every context
                target=_work, args=(local_rank, str(folder), os.getpid(), inherited, self.start_method)
            )
            for local_rank in range(self.strategy.num_processes)
        ]
        with _forwarded(self.kill) as received:
            try:
                for process in self.procs:
                    process.start()
                self._wait(folder)
            except BaseException as error:
                self._end_interrupted(error)
                raise
            finally:
                for process in self.procs:
                    if process.pid is not None:
                        process.join()
        self._raise_failure(folder, received)

    def _wait(self, folder: Path) -> None:
        """Wait for the workers; if one fails, see to it that the others end."""
        self._first_codes = {}
        while True:
            codes = {rank: exit_code(child) for rank, child in self._children().items()}
            self._first_codes = {rank: code for rank, code in codes.items() if code}
            if self._first_codes:
                culprit = self._first_failure(folder)
                end_children(self._children(), culprit=culprit.rank if culprit else None, kill_after_s=GRACE_S + 5)
                return
            running = [child for rank, child in self._children().items() if codes[rank] is None]
            if not running:
                return
            wait([child.sentinel for child in running])

    def _end_interrupted(self, error: BaseException) -> None:
        ask_s, kill_s = (_INTERRUPT_ASK_S, _INTERRUPT_KILL_S) if isinstance(error, KeyboardInterrupt) else (0.0, 2.0)
        try:
            end_children(self._children(), culprit=None, ask_after_s=ask_s, kill_after_s=kill_s)
        except KeyboardInterrupt:  # a second time: at once
            end_children(self._children(), culprit=None, ask_after_s=0.0, kill_after_s=0.0)

    def _first_failure(self, folder: Path) -> Report | None:
        """Return why the workers end: what they left in writing, else their exit codes."""
        written = [Report(**json.loads(file.read_text())) for file in sorted(folder.glob("report_*.json"))]
        reports = {report.rank: report for report in sorted(written, key=lambda report: -report.time)}
        for rank, code in self._first_codes.items():
            if rank not in reports or reports[rank].kind == "death":  # the exit code says more
                reports[rank] = Report.of_exit_code(code, rank, self._children()[rank].pid or 0)
        return min(reports.values(), key=_order_of_failures, default=None)

    def _raise_failure(self, folder: Path, received: list[int]) -> None:
        """Raise in this process what ended the workers."""
        if (folder / "no_guard").exists():
            script = getattr(sys.modules["__main__"], "__file__", "the script")
            raise RuntimeError(_MISSING_GUARD.format(start_method=self.start_method, script=script))
        failure = self._first_failure(folder)
        if failure is None:
            if not (folder / "result.pt").exists():
                raise RuntimeError(
                    "The process of rank 0 ended without a result and without an error. Something in it called"
                    " `os._exit(0)`: let the function return instead."
                )
            return
        if received:
            raise SIGTERMException(128 + received[0])
        if failure.kind == "leave":
            if failure.exit_code == 128 + signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(failure.exit_code)
        raise as_exception(failure)


@dataclass(slots=True)
class _Task:
    """What a worker does."""

    launcher: MultiProcessingLauncher
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    carrier: Carrier | None
    state: _ProcessState


@dataclass(slots=True)
class _ProcessState:
    """Settings of torch, Python's warnings and random numbers, which new processes do not share."""

    deterministic: bool
    deterministic_warns: bool
    benchmark: bool
    cudnn_deterministic: bool
    matmul_precision: str
    cudnn_tf32: bool
    dtype: torch.dtype
    threads: int
    rng: dict[str, Any]
    warnings: list[Any]

    @classmethod
    def of_this_process(cls) -> _ProcessState:
        """Collect the state."""
        return cls(
            deterministic=torch.are_deterministic_algorithms_enabled(),
            deterministic_warns=torch.is_deterministic_algorithms_warn_only_enabled(),
            benchmark=torch.backends.cudnn.benchmark,
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            matmul_precision=torch.get_float32_matmul_precision(),
            cudnn_tf32=torch.backends.cudnn.allow_tf32,
            dtype=torch.get_default_dtype(),
            threads=torch.get_num_threads(),
            rng=collect_rng_states(include_cuda=False),
            warnings=list(warnings.filters),
        )

    def restore(self, num_processes: int) -> None:
        """Put the state in place in a worker; the cores are shared."""
        here = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if here != (self.deterministic, self.deterministic_warns):  # the call imports torch's compiler: seconds
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.deterministic_warns)
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.set_default_dtype(self.dtype)
        is_set_by_user = "OMP_NUM_THREADS" in os.environ
        torch.set_num_threads(self.threads if is_set_by_user else min(self.threads, threads_per_process(num_processes)))
        set_rng_states(self.rng)
        warnings.filters[:] = self.warnings  # type: ignore[index]  # a list, declared as a sequence
        warnings._filters_mutated()  # type: ignore[attr-defined]


# ---- in a worker


def _work(local_rank: int, folder: str, parent: int, task: _Task | None, start_method: str) -> None:
    """Be one rank, for the whole life of a process."""
    if threading.current_thread() is threading.main_thread():
        for signum in _FORWARDED:
            if isinstance(signal.getsignal(signum), _Forward):  # of the launching process, which `fork` inherits
                signal.signal(signum, signal.SIG_DFL)
    launching = parent_process()
    if launching is not None and os.getppid() != parent:  # a fork server stands between
        watch_parent(parent, rank=-1, is_alive=lambda: not wait([launching.sentinel], timeout=0))
    else:
        watch_parent(parent, rank=-1)
    code = do_task(local_rank, folder, task)
    if code:
        os._exit(code)  # the process group of a failed run may wait for others when it is taken down
    if start_method == "spawn":
        _end_without_finalizing()


def _end_without_finalizing() -> NoReturn:
    """End this process as forked ones end: with its exit handlers, but not by taking Python down under its threads.

    A thread that is in native code then, of torch or a library, would end the process by SIGABRT, after all was done.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def do_task(local_rank: int, folder_name: str, task: _Task | None) -> int:
    """Run the function as one rank and leave behind what came of it.

    Args:
        local_rank: Which one.
        folder_name: Where to leave it, and where the task is.
        task: The task, if this process inherited it.

    Returns:
        The exit code of the process.
    """
    folder = Path(folder_name)
    mark_launched(os.getppid())
    launcher: MultiProcessingLauncher | None = None
    code = 0
    try:
        if task is None:
            task = torch.load(folder / "task.pt", mmap=True, weights_only=False)
        launcher = task.launcher
        task.state.restore(launcher.strategy.num_processes)
        launcher.strategy.set_local_rank(local_rank)
        result = task.function(*task.args, **task.kwargs)
        payload = task.carrier.pack() if task.carrier is not None else None
        if local_rank == 0:
            _save_result((result, payload), folder)
    except BaseException as error:
        culprit = launcher.explain(error) if launcher is not None else None
        report = culprit or Report.of_error(error, _rank_of(launcher, local_rank))
        write_report(folder / f"report_{local_rank}.json", report)
        code = report.exit_code if report.kind == "leave" else 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _rank_of(launcher: MultiProcessingLauncher | None, local_rank: int) -> int:
    if launcher is None:
        return local_rank
    return launcher.strategy.node_rank * launcher.strategy.num_processes + local_rank


def _order_of_failures(report: Report) -> tuple[bool, bool, float]:
    return report.is_consequence, report.kind == "leave" and report.exit_code == 0, report.time


def _save_result(content: Any, folder: Path) -> None:
    try:
        torch.save(content, folder / "result.pt")
    except Exception as error:
        raise explain_unpicklable(
            error, {"result": content[0], "carrier": content[1]}, "what rank 0 sends back"
        ) from error


def _save_task(task: _Task, folder: Path) -> None:
    try:
        torch.save(task, folder / "task.pt")
    except Exception as error:
        named = _named_parts(task)
        raise explain_unpicklable(
            error, named, f"what the processes of `start_method={task.launcher.start_method!r}` need"
        ) from error


def _named_parts(task: _Task) -> dict[str, Any]:
    """Name the parts of a task as the user knows them."""
    named: dict[str, Any] = {}
    for idx, arg in enumerate(task.args):
        named["model" if isinstance(arg, torch.nn.Module) and "model" not in named else f"argument {idx}"] = arg
    named.update(task.kwargs)
    owner = getattr(task.function, "__self__", None)
    if owner is not None:
        named[type(owner).__name__.lower()] = owner
    return {**named, "function": task.function, "strategy": task.launcher.strategy, "carrier": task.carrier}


def _refuse_import_in_worker() -> None:
    """Notice that the user's script is being imported by one of our own workers.

    Raises:
        RuntimeError: It is, so it lacks a main guard.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            break
        frame = frame.f_back
    if frame is None:
        return
    folder = os.environ.get(LAUNCH_FOLDER_VARIABLE)
    if folder is not None and Path(folder).is_dir():
        Path(folder, "no_guard").touch()
        os._exit(1)  # the launching process says what is wrong, once
    raise RuntimeError(_MISSING_GUARD.format(start_method="spawn", script=frame.f_code.co_filename))


class _Forward:
    """A handler that passes signals on to the workers, who may stop at a safe point."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self.send = send
        self.received: list[int] = []

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)
        self.send(signum)


@contextlib.contextmanager
def _forwarded(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Pass signals on; yields what was received. Handlers of the user's for others than SIGTERM stay."""
    forward = _Forward(send)
    if threading.current_thread() is not threading.main_thread():
        yield forward.received
        return
    taken = [each for each in _FORWARDED if each == signal.SIGTERM or signal.getsignal(each) is signal.SIG_DFL]
    before = {signum: signal.signal(signum, forward) for signum in taken}
    try:
        yield forward.received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
