"""What is known of a rank that failed, and what the others make of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from fulmen.utilities.exceptions import RankFailedError, SIGTERMException
from fulmen.utilities.rank_zero import rank_prefixed_message, rank_zero_only

__all__ = [
    "LAUNCH_FOLDER_VARIABLE",
    "Report",
    "as_exception",
    "end_process",
    "is_consequence",
    "is_launched",
    "mark_launched",
    "write_report",
]

LAUNCH_FOLDER_VARIABLE = "FULMEN_LAUNCH_FOLDER"
"""Where spawned processes find their task, and leave their results and reports."""

_LAUNCHED_VARIABLE = "FULMEN_LAUNCHED"  # see `mark_launched`

_LONGEST_TEXT = 40_000

# What the others see of a dead process: gloo, NCCL, the store. All are RuntimeErrors, told apart by their text.
_CONSEQUENCE = re.compile(
    "connection (was )?(likely )?(closed|reset|refused|aborted)|broken pipe|socket (closed|timeout)"
    "|connectfullmesh failed|remote process exited|nccl (error|communicator)|processgroup\\w* (was|is) aborted"
    "|recvvalue failed|failed to recv|timed out (waiting|initializing)|wait timeout after|monitoredbarrier"
    "|\\[gloo|gloo/transport|watchdog caught collective",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Report:
    """Why a rank leaves a run.

    Attributes:
        kind: "error": an exception; "death": the process is gone; "leave": it was interrupted or called `sys.exit`;
            "hang": it, or all, stood still for too long.
        rank: Which one.
        host: Name of its machine.
        pid: Its process id; 0 if that is not known.
        time: When, in seconds since 1970.
        text: Traceback, or what is known instead.
        exit_code: What it ended with; for a "leave", what the others shall end with.
        is_consequence: It looks as if another process had failed before.
    """

    kind: Literal["error", "death", "leave", "hang"]
    rank: int
    host: str
    pid: int
    time: float
    text: str
    exit_code: int = 1
    is_consequence: bool = False

    @classmethod
    def of_error(cls, error: BaseException, rank: int) -> Report:
        """Describe the exception that leaves this process."""
        text = "".join(traceback.format_exception(error)).rstrip()
        kind: Literal["error", "leave"] = "error"
        exit_code = 1
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            kind, exit_code = "leave", _exit_code_of(error)
            text = _words_for_leaving(error, exit_code)
        who = (rank, socket.gethostname(), os.getpid(), time.time())
        return cls(kind, *who, text[-_LONGEST_TEXT:], exit_code, is_consequence(error))

    @classmethod
    def of_exit_code(cls, exit_code: int, rank: int, pid: int, *, host: str = "") -> Report:
        """Describe a process that ended; negative codes are signals, as in `subprocess`."""
        host = host or socket.gethostname()
        if exit_code in (-signal.SIGINT, 128 + signal.SIGINT):
            return cls("leave", rank, host, pid, time.time(), "It was interrupted (Ctrl-C).", 128 + signal.SIGINT)
        if exit_code < 0:
            text = f"The process was ended by {_signal_name(-exit_code)}."
            if exit_code == -signal.SIGKILL:
                text += " If nobody killed it, the machine ran out of memory: see the kernel's log."
        else:
            text = f"The process ended with exit code {exit_code}"
            text += "." if exit_code else " before it had joined the others."
            text += " What it printed stands above."
        return cls("death", rank, host, pid, time.time(), text, exit_code)

    def message(self) -> str:
        """Return what to show: who failed, and last its own words."""
        place = " on ".join(filter(None, (f"process {self.pid}" if self.pid else "", self.host)))
        who = f"Rank {self.rank} ({place})" if place else f"Rank {self.rank}"
        verb = {"error": "failed", "death": "died", "leave": "left the run", "hang": "stands still"}[self.kind]
        return f"{who} {verb}, so all ranks end.\n\n{self.text}"


def as_exception(report: Report) -> BaseException:
    """Return what a rank raises because another one ended.

    Args:
        report: About the other one.
    """
    if report.kind == "leave" and report.exit_code == 128 + signal.SIGTERM:
        return SIGTERMException(report.exit_code)
    if report.kind == "leave" and report.exit_code == 128 + signal.SIGINT:
        return SystemExit(report.exit_code)
    return RankFailedError(report.message(), report.rank)


def is_consequence(error: BaseException) -> bool:
    """Tell whether an error looks as if another process, or the network, caused it.

    Args:
        error: The error; also the errors that it was raised from are looked at.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, (ConnectionError, dist.DistNetworkError, dist.DistBackendError, RankFailedError)):
            return True
        if isinstance(current, RuntimeError) and _CONSEQUENCE.search(str(current)):
            return True
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return False


def mark_launched(parent: int) -> None:
    """Note that a launcher started this process and shows what happened when all have ended.

    Args:
        parent: Its process id.
    """
    os.environ[_LAUNCHED_VARIABLE] = f"{os.getpid()}:{parent}"


def is_launched() -> bool:
    """Tell whether a launcher started this process, and is still there to show what happened."""
    return os.environ.get(_LAUNCHED_VARIABLE) == f"{os.getpid()}:{os.getppid()}"


def end_process(report: Report) -> None:
    """Print why and end this process at once, without any clean-up.

    Args:
        report: About the process that failed.
    """
    if report.kind == "hang":  # the whole was shown before, once
        folder = os.environ.get(LAUNCH_FOLDER_VARIABLE)
        if folder is not None and is_launched():
            write_report(Path(folder, f"report_{rank_zero_only.rank}.json"), report)
        if rank_zero_only.rank:
            os._exit(1)
        text = _prefix() + "ended by `HangWatchdog`: " + report.text.rstrip().rsplit("\n", 1)[-1]
    elif is_launched():
        line = report.text.rstrip().rsplit("\n", 1)[-1]
        text = f"{_prefix()}ends because rank {report.rank} ended: {line}"
    else:
        text = _prefix() + report.message()
    # ourselves, as the main thread may hold the lock of `sys.stderr` for ever
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode(errors="replace"))
    is_quiet = report.kind == "leave" and report.exit_code > 0
    os._exit(report.exit_code if is_quiet else 1)


def write_report(path: Path, report: Report) -> None:
    """Leave a report to the process that started this one.

    Args:
        path: The file.
        report: The report.
    """
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(report)))
    unfinished.replace(path)


def _exit_code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    code = getattr(error, "code", None)
    if code is None:
        return 128 + signal.SIGTERM if isinstance(error, SIGTERMException) else 0
    return code if isinstance(code, int) else 1


def _words_for_leaving(error: BaseException, exit_code: int) -> str:
    if exit_code == 128 + signal.SIGINT:
        return "It was interrupted (Ctrl-C)."
    if isinstance(error, SIGTERMException):
        return "It received SIGTERM."
    return f"It called `sys.exit({getattr(error, 'code', exit_code)!r})`."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _prefix() -> str:
    return rank_prefixed_message("", rank_zero_only.rank)
