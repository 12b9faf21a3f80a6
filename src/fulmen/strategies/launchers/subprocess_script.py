"""Runs the user's script once more for each further process of this machine."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fulmen.strategies.fault_report import Report, as_exception, end_process
from fulmen.strategies.fault_watch import GRACE_S, FaultWatch
from fulmen.strategies.launchers.launcher import (
    PARENT_VARIABLE,
    Carrier,
    Launcher,
    end_children,
    threads_per_process,
)
from fulmen.utilities.lazy import require
from fulmen.utilities.parent_death import die_with_parent
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = ["SubprocessScriptLauncher", "command_of_this_program"]

_POLL_S = 0.1
_SAY_WAITING_AFTER_S = 10.0
_INTERRUPT_ASK_S, _INTERRUPT_KILL_S = 10.0, 60.0  # interrupted ranks may save a checkpoint
# debuggers talk to one terminal or port, so the further processes run without
_DEBUGGERS = ("pdb", "ipdb", "pudb", "debugpy", "pydevd")
_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


class SubprocessScriptLauncher(Launcher):
    """Starts the processes of this machine by running the same command again, with the variables of another rank.

    The first launch starts them; they come to the same `launch` by themselves. This process is the first rank of its
    machine. It ends the others if it fails, and fails if one of them does.

    Args:
        strategy: The strategy of this process.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        self.procs: list[subprocess.Popen[bytes]] = []
        self._rank_of: dict[int, subprocess.Popen[bytes]] = {}
        self._is_running_function = False
        self._has_ended_children = False
        self._previous_hook: Callable[..., Any] | None = None

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook; no, there is no script to run again."""
        return False

    def launch(  # noqa: D102 - as in the base class
        self, function: Callable[..., Any], *args: Any, carrier: Carrier | None = None, **kwargs: Any
    ) -> Any:
        if not self.procs:
            self._start()
        self._is_running_function = True
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            culprit = self.explain(error)
            self._end_with(error, culprit)
            if culprit is not None:
                raise as_exception(culprit) from None
            raise
        finally:
            self._is_running_function = False

    # ---- begin

    def _start(self) -> None:
        environment, strategy = self.strategy.cluster_environment, self.strategy
        if environment is None or environment.creates_processes_externally:
            return
        count = strategy.num_processes
        first_rank = strategy.node_rank * count
        shared = {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(strategy.node_rank),
            "WORLD_SIZE": str(count * strategy.num_nodes),
        }
        if "OMP_NUM_THREADS" not in os.environ:
            threads = threads_per_process(count)
            shared["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
        os.environ.update(shared, LOCAL_RANK="0")  # later strategies of this program find the processes there
        for local_rank in range(1, count):
            own = {"LOCAL_RANK": str(local_rank), PARENT_VARIABLE: f"{os.getpid()}:{first_rank}"}
            command, folder = command_of_this_program(local_rank)
            process = _start_process(command, folder, {**os.environ, **own})
            self.procs.append(process)
            self._rank_of[first_rank + local_rank] = process
        if self.procs:
            self._previous_hook, sys.excepthook = sys.excepthook, self._note_uncaught
            atexit.register(self._wait_at_exit)
            threading.Thread(target=self._watch_children, name="fulmen-children-watch", daemon=True).start()

    # ---- a child ends

    def _watch_children(self) -> None:
        """Notice, in a thread, when a child ends before its time."""
        while True:
            ended = {rank: child for rank, child in self._rank_of.items() if child.poll() is not None}
            for rank, child in ended.items():
                if child.returncode != 0 or (self._is_running_function and not _has_taken_part(rank)):
                    self._note_death(rank, child)
                    return
            if len(ended) == len(self._rank_of):
                return
            time.sleep(_POLL_S)

    def _note_death(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        report = Report.of_exit_code(child.returncode, rank, child.pid)
        watch = FaultWatch.running()
        if watch is not None:
            if watch.wait_for_report(0.2) is None:  # what the child said of itself says more
                watch.announce(report)
            return
        self._local_report = report
        time.sleep(GRACE_S / 2)
        watch = FaultWatch.running()
        if watch is not None:  # it began just now
            watch.announce(report)
            return
        if self._is_running_function:  # most probably in `init_process_group`, where nothing wakes it
            end_children(self._rank_of, culprit=rank, ask_after_s=0.0, kill_after_s=2.0)
            end_process(report)

    # ---- this process ends

    def _end_with(self, error: BaseException, culprit: Report | None) -> None:
        """Wait for the children, so that what this process prints stands last."""
        self._has_ended_children = True
        is_interrupt = isinstance(error, (KeyboardInterrupt, SystemExit))
        ask, kill = (_INTERRUPT_ASK_S, _INTERRUPT_KILL_S) if is_interrupt else (GRACE_S + 1, GRACE_S + 5)
        try:
            end_children(self._rank_of, culprit=culprit.rank if culprit else None, ask_after_s=ask, kill_after_s=kill)
        except KeyboardInterrupt:  # a second time: at once
            end_children(self._rank_of, culprit=None, ask_after_s=0.0, kill_after_s=0.0)

    def _note_uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Let the children end first when an error ends this program."""
        self._end_with(error, self._local_report)
        (self._previous_hook or sys.__excepthook__)(kind, error, trace)

    def _wait_at_exit(self) -> None:
        """Wait for the children at the regular end of the program; fail if one of them fails."""
        if self._has_ended_children:
            return
        begin, has_said = time.monotonic(), False
        while any(child.poll() is None for child in self.procs):
            if any(child.poll() for child in self.procs):
                end_children(self._rank_of, culprit=None)
            elif not has_said and time.monotonic() - begin > _SAY_WAITING_AFTER_S:
                has_said = True
                rank_zero_info(f"Waiting for the processes {[c.pid for c in self.procs if c.poll() is None]} to end.")
            time.sleep(0.02)
        failed = {rank: child for rank, child in self._rank_of.items() if child.returncode != 0}
        if failed:
            rank, child = next(iter(failed.items()))
            report = self._local_report or Report.of_exit_code(child.returncode, rank, child.pid)
            if report.kind != "leave":
                sys.stdout.flush()
                end_process(report)


def _has_taken_part(rank: int) -> bool:
    watch = FaultWatch.running()
    return watch is not None and watch.has_met(rank)


def _start_process(command: list[str], folder: str | None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # until the script comes to our code, only the system can end it together with this process. The signal is tied to
    # the thread that starts it, so not from a thread that may end early.
    is_main = threading.current_thread() is threading.main_thread()
    before = functools.partial(die_with_parent, signal.SIGTERM) if is_main and sys.platform == "linux" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forks while other threads run
        return subprocess.Popen(command, env=environment, cwd=folder, preexec_fn=before)


# ---- the command


def command_of_this_program(local_rank: int = 0) -> tuple[list[str], str | None]:
    """Return the command that runs this program again, and the folder to run it in.

    Options of the interpreter, `-m` and tools that run a script are kept, debuggers are not.

    Args:
        local_rank: For which process; Hydra gives each a job name of its own.

    Raises:
        RuntimeError: There is no script, as in a console or with `python -c`.
    """
    options, program, arguments = _split(sys.orig_argv[1:])
    script = _script()
    if program[:1] == ["-c"] or (not program and script is None) or sys.argv[0] in ("", "-c", "-"):
        raise RuntimeError(
            "`strategy='ddp'` starts its processes by running the script again, and there is none: this program runs"
            " in a console, a notebook or by `python -c`. Put it into a file and run that, or choose"
            " `strategy='ddp_notebook'` (in a notebook) or `strategy='ddp_spawn'`."
        )
    is_debugger = any(name in Path(part).parts or name == part for part in program for name in _DEBUGGERS)
    count = len(sys.argv) - 1
    if is_debugger and script is not None:
        tail = [script]
    elif arguments[len(arguments) - count :] == sys.argv[1:] and len(arguments) >= count:
        tail = [*_absolute(program, script), *arguments[: len(arguments) - count]]
    elif sys.argv[0] in arguments:  # a tool that runs a script, which changed its arguments
        tail = [*_absolute(program, script), *arguments[: arguments.index(sys.argv[0]) + 1]]
    else:
        tail = _absolute(program, script)
    command = [sys.executable, *options, *tail]
    hydra = _hydra_overrides(local_rank)
    if hydra is None:
        return [*command, *sys.argv[1:]], None
    end = _end_of_overrides(sys.argv)
    return [*command, *sys.argv[1:end], *hydra[0], *sys.argv[end:]], hydra[1]


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split a command line of Python in options, program (a script, or `-m` and a module) and its arguments."""
    idx = 0
    while idx < len(arguments) and arguments[idx].startswith("-") and arguments[idx] != "-":
        option = arguments[idx]
        # single letters may stand together and the last may have its value attached: -um package, -Wignore
        letters = "" if option.startswith("--") else option[1:]
        for position, letter in enumerate(letters):
            if letter in "WX":
                break
            if letter in "mc":
                before = [f"-{letters[:position]}"] if position else []
                attached = letters[position + 1 :]
                name = [attached] if attached else arguments[idx + 1 : idx + 2]
                rest = arguments[idx + (1 if attached else 2) :]
                return [*arguments[:idx], *before], [f"-{letter}", *name], rest
        idx += 2 if option in _OPTIONS_WITH_VALUE or letters[-1:] in ("W", "X") else 1
    return arguments[:idx], arguments[idx : idx + 1], arguments[idx + 1 :]


def _script() -> str | None:
    """Return the path of the running script, absolute as it was at the start."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return None if file is None or spec is not None else file


def _absolute(program: list[str], script: str | None) -> list[str]:
    """Name a script so that it is found after a change of the folder, too."""
    if program[:1] == ["-m"] or not program:
        return program or [script or sys.argv[0]]
    if script is not None and Path(script).name == Path(program[0]).name:
        return [script]
    return [os.path.abspath(program[0])]


def _hydra_overrides(local_rank: int) -> tuple[list[str], str] | None:
    """Return what gives a Hydra application the same configuration and folder, and the folder to start in."""
    if "hydra" not in sys.modules:
        return None
    config = require("hydra.core.hydra_config", extra=None, for_="Hydra").HydraConfig
    if not config.initialized():
        return None
    settings, start = config.get(), require("hydra.utils", extra=None, for_="Hydra").get_original_cwd()
    is_sweep = getattr(settings.get("mode"), "name", "RUN") == "MULTIRUN"  # each process goes through all its jobs
    folder = os.path.join(start, settings.sweep.dir) if is_sweep else settings.runtime.output_dir
    quoted = folder.replace("'", "\\'")
    overrides = [
        f"hydra.{'sweep' if is_sweep else 'run'}.dir='{quoted}'",
        f"hydra.job.name=train_ddp_process_{local_rank}",
        "hydra.output_subdir=null",  # the first process has written the configuration there
    ]
    return overrides, start


def _end_of_overrides(argv: list[str]) -> int:
    """Return the index behind the last `key=value`: Hydra wants them together, before or behind its options."""
    found = [idx for idx, word in enumerate(argv) if idx and word[:1] != "-" and ("=" in word or word[:1] == "~")]
    return found[-1] + 1 if found else len(argv)
