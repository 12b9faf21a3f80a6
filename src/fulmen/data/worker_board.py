"""What a data loader's worker does while it works: it ends with the main process, and says what it is doing.

A thread in the worker writes once a second into shared memory which samples are being loaded, in which line. It also
ends the worker when the main process is gone, even in the middle of a sample that takes for ever.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import multiprocessing.sharedctypes
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from torch.utils.data import get_worker_info

from fulmen.utilities.parent_death import die_with_parent
from fulmen.utilities.stack_dump import register_stack_dump, stack_of

__all__ = ["WorkerBoard", "boards", "is_running", "listed", "prepare_worker"]

_SAMPLE_S = 1.0
_SLOT = 8192  # bytes for what one worker says, twice, as the reader may come while it writes
_MOST_LINES = 12
_MOST_INDICES = 32

_boards: weakref.WeakSet[WorkerBoard] = weakref.WeakSet()  # a board lives as long as torch's iterator over the loader
_recent: deque[WorkerBoard] = deque(maxlen=8)  # an error in a step lets go of the iterator before anybody can ask


def boards() -> list[WorkerBoard]:
    """Return the boards of all loaders whose workers may run, and the most recent of the others, the newest first."""
    while True:
        with suppress(RuntimeError):  # another thread opens a loader at this very moment
            return sorted(_boards, key=lambda board: -board.begin)


class WorkerBoard:
    """Shared memory in which each worker of one loader writes what it does. It can be sent to new processes.

    Args:
        name: Name of the loader.
        num_workers: Number of workers.

    Attributes:
        name: Name of the loader.
        num_workers: Number of workers.
        can_die_with_parent: They are started by the main thread, whose end is the end of the process.
        begin: When it was made, on the clock of `time.monotonic`.
        pids: Process ids of the workers, in the main process; none before they are started.
    """

    def __init__(self, name: str, num_workers: int) -> None:
        self.name = name
        self.num_workers = num_workers
        self.can_die_with_parent = threading.current_thread() is threading.main_thread()
        self.begin = time.monotonic()
        self.pids: list[int] = []
        self._iterator: weakref.ref[Any] | None = None
        self._memory = multiprocessing.sharedctypes.RawArray("c", num_workers * (2 * _SLOT + 1))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None}

    def write(self, worker_id: int, note: dict[str, Any]) -> None:
        """Note what a worker does; called in the worker, by one thread only.

        Args:
            worker_id: Number of the worker.
            note: Plain data.
        """
        text = json.dumps(note).encode()
        if len(text) >= _SLOT:  # a very long path or index: better less than nothing
            text = json.dumps({**note, "stack": note["stack"][:2], "indices": []}).encode()[: _SLOT - 1]
        begin = worker_id * (2 * _SLOT + 1)
        slot = 1 - self._memory[begin][0]
        at = begin + 1 + slot * _SLOT
        self._memory[at : at + len(text) + 1] = text + b"\0"
        self._memory[begin] = bytes([slot])

    def read(self, worker_id: int) -> dict[str, Any]:
        """Return what a worker wrote last; empty if it did not yet.

        Args:
            worker_id: Number of the worker.
        """
        begin = worker_id * (2 * _SLOT + 1)
        at = begin + 1 + self._memory[begin][0] * _SLOT
        text = bytes(self._memory[at : at + _SLOT]).split(b"\0", 1)[0]
        with suppress(ValueError):
            note = json.loads(text)
            return note if isinstance(note, dict) else {}
        return {}

    # ---- in the main process
    def started(self, iterator: Any) -> None:
        """Note that the workers run.

        Args:
            iterator: Torch's iterator, which holds them.
        """
        self.pids = [worker.pid for worker in iterator._workers]
        self._iterator = weakref.ref(iterator)
        _boards.add(self)
        _recent.append(self)

    @property
    def iterator(self) -> Any:
        """Torch's iterator that holds the workers; `None` once it is gone."""
        return None if self._iterator is None else self._iterator()

    def notes(self) -> dict[int, tuple[int, dict[str, Any]]]:
        """Return by process id the number of each worker, and what it wrote last."""
        written = {note["pid"]: (number, note) for number in range(self.num_workers) if (note := self.read(number))}
        return {pid: written.get(pid, (number, {})) for number, pid in enumerate(self.pids)}

    def busy(self) -> list[tuple[int, int, int | None, float]]:
        """Return number, process id and batch of each worker, and since how many seconds it has not gone on."""
        now, found = time.monotonic(), []
        for pid, (number, note) in self.notes().items():
            begin = self.begin  # it is still being started
            if note.get("is_ready"):
                begin = note["at"] if note["batch"] is None else note["since"]
            found.append((number, pid, note.get("batch"), now - begin if is_running(pid) else 0.0))
        return found


def is_running(pid: int) -> bool:
    """Tell whether a child process runs, without collecting its exit code, which is others' to read.

    Args:
        pid: Its process id.
    """
    if not hasattr(os, "waitid"):
        return True
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


# ---- in a worker


def prepare_worker(board: WorkerBoard) -> None:
    """Make this worker end with the main process and say what it does; to be called in it as it starts.

    Args:
        board: Where it says so.
    """
    worker = get_worker_info()
    if worker is None:
        raise RuntimeError("`prepare_worker` was called outside of a data loader's worker. Use `watched_workers`.")
    if board.can_die_with_parent:
        die_with_parent(signal.SIGKILL)
    if hasattr(
        os, "setpgid"
    ):  # terminals and torchrun signal whole groups; the run needs its workers to its checkpoint
        os.setpgid(0, 0)
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)  # a crash shows the line; torch's own handlers are called after that
    loop = _loop_of_worker()
    if loop is not None and isinstance(wrapper := loop.f_globals.get("ExceptionWrapper"), type):
        loop.f_globals["ExceptionWrapper"] = _naming_indices(wrapper)
    arguments = (board, worker.id, loop, threading.get_ident(), os.getppid())
    threading.Thread(target=_note_what_happens, args=arguments, name="fulmen-worker-watch", daemon=True).start()


def _loop_of_worker() -> FrameType | None:
    """Return the frame of torch's loop, whose variables tell the batch that is being loaded."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    return frame


def _naming_indices(wrapper: type[Any]) -> type[Any] | Callable[..., Any]:
    """Let the error of a sample say which samples were being loaded; called once per error."""

    def wrapped(exc_info: Any = None, where: str = "in background") -> Any:
        indices = _plain_indices(sys._getframe(1).f_locals.get("index"))
        text = f" (pid {os.getpid()}), which loaded the dataset indices {listed(indices)}" if indices else ""
        return wrapper(exc_info=exc_info or sys.exc_info(), where=where + text)

    return wrapped


def _note_what_happens(board: WorkerBoard, worker_id: int, loop: FrameType | None, thread: int, parent: int) -> None:
    launcher = multiprocessing.parent_process()
    dump_signal = register_stack_dump()
    batch, since = None, time.monotonic()
    while True:
        now = time.monotonic()
        is_ready, current, indices = _current_batch(loop)
        if current != batch:
            batch, since = current, now
        stack = [str(line._replace(file=line.file[-200:])) for line in stack_of(thread)]
        inside = next((i for i, line in enumerate(stack) if line.endswith("in `_worker_loop`")), len(stack))
        state = {"pid": os.getpid(), "is_ready": is_ready, "at": now, "since": since, "dump_signal": dump_signal}
        work = {"batch": batch, "indices": indices, "stack": stack[: min(inside, _MOST_LINES)]}
        board.write(worker_id, {**state, **work})
        time.sleep(_SAMPLE_S)
        if os.getppid() != parent or (launcher is not None and not launcher.is_alive()):
            os._exit(1)


def _current_batch(loop: FrameType | None) -> tuple[bool, int | None, list[Any]]:
    """Return whether the worker has begun to work, the number of its batch in the pass, and dataset indices."""
    if loop is None:
        return True, None, []
    names = loop.f_locals
    number, indices, is_ready = names.get("idx"), _plain_indices(names.get("index")), "fetcher" in names
    if isinstance(names, dict):  # before Python 3.13 a copy that stays, and would keep a whole batch in memory
        names.clear()
    return is_ready, (number if isinstance(number, int) else None), indices


def _plain_indices(index: Any) -> list[Any]:
    """Return dataset indices as texts or numbers; none for an iterable dataset."""
    several = index if isinstance(index, (list, tuple)) else [index]
    found = [each for each in several[: _MOST_INDICES + 1] if each is not None]
    return [each if isinstance(each, int) else repr(each)[:80] for each in found]


def listed(indices: list[Any]) -> str:
    """Return dataset indices as a text that is not too long."""
    shown = ", ".join(map(str, indices[:_MOST_INDICES]))
    return f"[{shown}, ...]" if len(indices) > _MOST_INDICES else f"[{shown}]"
