"""Says in words what is known of the workers of a data loader that died, failed, or let the main process wait."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fulmen.data.worker_board import WorkerBoard, boards, is_running, listed
from fulmen.utilities.user_code import is_user_code

__all__ = ["describe_waiting", "end_workers_behind", "explain_worker_failure", "raise_explained"]

log = logging.getLogger(__name__)

_SILENT_S = 5.0  # a worker whose Python runs has written more recently
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_TIMED_OUT = re.compile(r"DataLoader timed out after")
_FAILED = re.compile(r"^Caught \w+ in DataLoader worker process (\d+)")

_AFTER_DEATH = {
    signal.SIGKILL: "If nobody killed it, the machine or its container ran out of memory: see the kernel's log"
    " (`dmesg`). Use fewer `num_workers`, a smaller `prefetch_factor` or smaller samples.",
    signal.SIGSEGV: "Native code crashed: a library that the dataset uses, often one that does not bear `fork`. Its"
    " Python stack stands above. Try `multiprocessing_context='spawn'`, or `num_workers=0` to find the sample.",
    signal.SIGBUS: "There is too little shared memory (`df -h /dev/shm`). Give the container more (`--shm-size`), or"
    " use fewer `num_workers` and smaller batches.",
}
_AFTER_EXIT = (
    "Something in it called `sys.exit` or `os._exit`, or a library did. What it printed stands above; `num_workers=0`"
    " runs the dataset in the main process, where a debugger sees it."
)


def explain_worker_failure(
    error: BaseException, *, epoch: int | None = None, train_batch_idx: int | None = None
) -> BaseException:
    """Add to an error what is known of the data loader's workers, if it is about them.

    Args:
        error: What left the loop. Its message is changed in place, so that type and traceback stay.
        epoch: The epoch in which it happened.
        train_batch_idx: Index of the training batch that the loop worked on, or waited for.

    Returns:
        What to raise: the error, or a `RuntimeError` in the place of one that only says that a connection broke.
    """
    if not isinstance(error, Exception):
        return error
    try:
        return _explained(error, epoch, train_batch_idx)
    except Exception as second:
        if _DEAD.search(str(second)) is not None:  # torch raises it wherever this process hears of a worker's end
            second.__traceback__ = None  # that is here
            with suppress(Exception):
                return _explained(second, epoch, train_batch_idx)
        log.debug("could not say more about a data loader's workers", exc_info=True)
    return error  # never hidden by what was to explain it


def end_workers_behind(error: BaseException) -> None:
    """End the workers of the loader that an error came from: they would stay as long as somebody keeps the error.

    Args:
        error: What left the loop.
    """
    iterator = _iterator_in(error)
    if iterator is not None and not iterator._persistent_workers:
        iterator._shutdown_workers()  # torch has no public way


def _let_go_of_iterator(error: BaseException) -> None:
    """Keep an error of a worker from holding torch's iterator, which would end only when garbage is collected."""
    trace = error.__traceback__ if _iterator_in(error) is not None else None
    while trace is not None:
        with suppress(RuntimeError):  # a frame that still runs
            trace.tb_frame.clear()
        trace = trace.tb_next


def raise_explained(error: Exception) -> NoReturn:
    """Raise an error that a loader has just raised; if it is about the workers, with what is known of them.

    Args:
        error: The error that is being handled.
    """
    explained = explain_worker_failure(error)
    _let_go_of_iterator(error)
    try:
        if explained is not error:
            raise explained from error
        raise error
    finally:
        del explained, error  # an error that refers to itself would keep the workers


def _explained(error: Exception, epoch: int | None, train_batch_idx: int | None) -> Exception:
    message, iterator = str(error), _iterator_in(error)
    where = _where(iterator, epoch, train_batch_idx)
    if (failed := _FAILED.match(message)) is not None:
        _add(error, before=f"{_name_of(int(failed[1]), iterator)} failed{where}.\n")
    elif iterator is not None and _TIMED_OUT.match(message):
        advice = (
            f"A batch of the {_loader_name(iterator)} took longer than the `timeout` of the `DataLoader`{where}. Raise"
            " it if the samples are only slow; `timeout=0` waits, and says after two minutes what the workers do."
        )
        _add(error, after=f"\n\n{_workers_text(_board_of(iterator))}\n{advice}")
    elif dead := _dead_workers(error, iterator):
        text = "\n".join(_death_text(pid, code, iterator, where) for pid, code in dead.items())
        if not _DEAD.search(message):  # e.g. "connection reset", as the batch was being handed over
            return RuntimeError(f"A DataLoader worker ended while it handed over a batch.\n\n{text}")
        _add(error, after=f"\n\n{text}")
    return error


def _where(iterator: Any, epoch: int | None, train_batch_idx: int | None) -> str:
    batch_idx = None if iterator is None else iterator._rcvd_idx
    if iterator is None or _loader_name(iterator).startswith("train"):  # a resumed pass is opened in the middle
        batch_idx = train_batch_idx if train_batch_idx is not None else batch_idx
    known = {"epoch": epoch, "batch": batch_idx}
    words = ", ".join(f"{name} {number}" for name, number in known.items() if number is not None)
    return f" ({words})" if words else ""


def _add(error: Exception, *, before: str = "", after: str = "") -> None:
    """Lengthen the message of an error; what torch rebuilt from a worker's error has one argument, a text."""
    message = error.args[0] if error.args else ""
    if isinstance(message, str):
        error.args = (
            type(message)(before + message.rstrip() + after),
            *error.args[1:],
        )  # torch's own kind for KeyError
    if (before + after).strip() not in str(error) and hasattr(error, "add_note"):
        error.add_note((before + after).strip())


def describe_waiting(board: WorkerBoard, worker_id: int, seconds: float) -> str:
    """Return a warning about a worker that takes very long.

    Args:
        board: The board of its loader.
        worker_id: Number of the worker.
        seconds: For how long already.
    """
    return (
        f"Worker {worker_id} of the {board.name} has not finished a batch for {seconds:.0f} s.\n"
        f"{_workers_text(board)}\n"
        "If the samples are only slow, nothing is wrong, and more `num_workers` may help. If the worker always shows"
        " the same line, it hangs there: set `DataLoader(timeout=...)` to get an error instead, or `num_workers=0` to"
        " find out whether the dataset does not bear `fork` (then `multiprocessing_context='spawn'`)."
    )


# ---- which loader, which worker


def _iterator_in(error: BaseException) -> Any:
    """Return torch's iterator over the loader from the frames that the error went through; `None` if there is none."""
    for each in _chain(error):
        trace = each.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_name == "_next_data":
                iterator = trace.tb_frame.f_locals.get("self")
                if hasattr(iterator, "_workers"):
                    return iterator
            trace = trace.tb_next
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _board_of(iterator: Any) -> WorkerBoard | None:
    return next((board for board in boards() if board.iterator is iterator), None)


def _found(pid: int) -> tuple[WorkerBoard, int, dict[str, Any]] | None:
    """Return the board of a worker, its number and what it wrote last."""
    for board in boards():
        if (found := board.notes().get(pid)) is not None:
            return board, *found
    return None


def _loader_name(iterator: Any) -> str:
    board = _board_of(iterator)
    return f"dataloader over `{type(iterator._dataset).__name__}`" if board is None else board.name


def _name_of(worker_id: int, iterator: Any) -> str:
    if iterator is None:
        return f"Worker {worker_id} of a dataloader"
    return f"Worker {worker_id} (pid {iterator._workers[worker_id].pid}) of the {_loader_name(iterator)}"


# ---- how it died


def _dead_workers(error: BaseException, iterator: Any) -> dict[int, int | None]:
    """Return process ids and exit codes of the workers that an error is about."""
    pids: dict[int, int | None] = {}
    for each in _chain(error):
        if (match := _DEAD.search(str(each))) is not None:
            pids.update((int(pid), _code_in(str(each))) for pid in match[1].split(","))
    if iterator is not None and (pids or isinstance(error, (OSError, EOFError))):
        for worker in iterator._workers:
            worker.join(0.1 if not pids else 0)
            if worker.exitcode is not None and (worker.pid in pids or not pids):
                pids[worker.pid] = worker.exitcode
    return pids


def _code_in(message: str) -> int | None:
    """Return the exit code that torch's message tells, negative for a signal."""
    if (match := re.search(r"exit code (\d+)", message)) is not None:
        return int(match[1])
    if (match := re.search(r"killed by signal: ([^.]+)\.", message)) is not None:
        names = {signal.strsignal(number): number for number in signal.valid_signals()}
        number = names.get(match[1].strip())
        return -int(number) if number is not None else None
    return None


def _death_text(pid: int, code: int | None, iterator: Any, where: str) -> str:
    found = _found(pid)
    if found is not None:
        who = f"Worker {found[1]} (pid {pid}) of the {found[0].name}"
    else:
        numbers = [i for i, worker in enumerate(getattr(iterator, "_workers", ())) if worker.pid == pid]
        who = _name_of(numbers[0], iterator) if numbers else f"A dataloader's worker (pid {pid})"
    advice = _AFTER_EXIT
    if code is None:
        how = "ended"
    elif code < 0:
        names = {int(each): each.name for each in signal.Signals}
        how = f"was ended by {names.get(-code, f'signal {-code}')}"
        advice = _AFTER_DEATH.get(-code, _AFTER_EXIT)  # type: ignore[call-overload]  # a number is equal to its name
    else:
        how = f"ended with exit code {code}"
    doing = ""
    if found is not None and found[2].get("batch") is not None:
        doing = f" When last seen it was {_doing(found[2])}."
    return f"{who} {how}{where}.{doing} {advice}"


# ---- what they do


def _workers_text(board: WorkerBoard | None) -> str:
    """Return a line or more about each worker of a loader."""
    iterator = None if board is None else board.iterator
    if board is None or iterator is None:
        return "  It is not known what its workers do."
    awaited = iterator._task_info.get(iterator._rcvd_idx, (None,))
    return "\n".join(
        _worker_text(worker_id, pid, note, is_awaited=awaited == (worker_id,))
        for pid, (worker_id, note) in board.notes().items()
    )


def _worker_text(worker_id: int, pid: int, note: dict[str, Any], *, is_awaited: bool) -> str:
    who = f"  worker {worker_id} (pid {pid}){', whose batch comes next' if is_awaited else ''}: "
    if not is_running(pid):
        return f"{who}not alive."
    if not note:
        return f"{who}alive, but it has not said what it does{_state_of(pid)}."
    silent = time.monotonic() - note["at"]
    idle = "waits for work" if note["is_ready"] else "is being started"
    text = who + (f"alive, {_doing(note)}" if note["batch"] is not None else f"alive, {idle}")
    if silent > _SILENT_S:
        text += f"; but its Python has not run for {silent:.0f} s, so it is busy or stuck in native code"
        text += _state_of(pid)
        if note["dump_signal"] is not None:
            os.kill(pid, note["dump_signal"])
            text += ". Its stack is printed by itself"
    elif note["batch"] is not None or not note["is_ready"]:
        text += "".join(f"\n      {line}" for line in note["stack"])
    return text


def _doing(note: dict[str, Any]) -> str:
    indices = f" (dataset indices {listed(note['indices'])})" if note["indices"] else ""
    line = next((each for each in note["stack"] if is_user_code(each.rsplit(":", 1)[0])), "")
    at = f" at {line}" if line else ""
    return f"loading batch {note['batch']}{indices} for {time.monotonic() - note['since']:.0f} s{at}"


def _state_of(pid: int) -> str:
    """Return what the system says of a process, where it does."""
    words = {"R": "runs", "S": "sleeps", "D": "waits for a disk or network drive", "T": "was stopped", "Z": "is dead"}
    with suppress(OSError, IndexError):
        letter = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return f" (the system says that it {words.get(letter, letter)})"
    return ""
