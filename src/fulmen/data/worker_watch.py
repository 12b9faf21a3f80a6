"""Watches the worker processes of data loaders from the main process.

Workers that are started by `open_watched` end with this process and say what they do (`worker_board.py`). A thread
looks there every few seconds and warns of one that takes very long for a batch. It costs the loop nothing, and is there
only while there are workers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from fulmen.data.worker_board import WorkerBoard, boards, prepare_worker
from fulmen.data.worker_report import describe_waiting
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = ["WAIT_S", "name_loader", "open_watched"]

log = logging.getLogger(__name__)

WAIT_S = 120.0
"""A worker that takes longer than this for one batch is worth a warning, in seconds; the next ones come more seldom."""

_POLL_S = 5.0

_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def name_loader(loader: Any, name: str) -> None:
    """Give a loader the name under which messages speak of it.

    Args:
        loader: The loader.
        name: Its name, e.g. "val dataloader 1".
    """
    if isinstance(loader, DataLoader):  # others have no workers to speak of
        _names[loader] = name


def open_watched(loader: Any) -> Iterator[Any]:
    """Return `iter(loader)`, and have the workers watched that are started for it.

    Args:
        loader: Anything that can be iterated.
    """
    if not isinstance(loader, DataLoader) or loader.num_workers == 0 or _has_workers_for_next_pass(loader):
        return iter(loader)
    board = WorkerBoard(_names.get(loader, f"dataloader over `{type(loader.dataset).__name__}`"), loader.num_workers)
    own = loader.worker_init_fn
    loader.worker_init_fn = partial(_begin, board, own)
    try:
        iterator: Iterator[Any] = iter(loader)
    finally:
        loader.worker_init_fn = own
    if hasattr(iterator, "_workers"):
        board.started(iterator)
        _watch()
    return iterator


def _has_workers_for_next_pass(loader: Any) -> bool:
    """Tell if workers are there that the next pass goes on with; torchdata's loaders keep the iterator of any pass."""
    goes_on = loader.persistent_workers or getattr(loader, "_initial_iter_for_state_dict", False)
    return goes_on and loader._iterator is not None


# ---- in a worker


def _begin(board: WorkerBoard, init_fn: Callable[[int], object] | None, worker_id: int) -> None:
    prepare_worker(board)
    if init_fn is not None:
        init_fn(worker_id)


# ---- in the main process


_lock = threading.Lock()
_watchers: list[threading.Thread] = []  # none or one


def _watch() -> None:
    with _lock:
        if not _watchers:
            _watchers.append(threading.Thread(target=_look_for_waiting, name="fulmen-data-watch", daemon=True))
            _watchers[0].start()


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # the thread that holds it may not be in this process
    _watchers.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is inherited
    os.register_at_fork(after_in_child=_forget_in_child)


def _look_for_waiting() -> None:
    told: dict[tuple[object, ...], float] = {}
    while True:
        time.sleep(_POLL_S)
        with _lock:
            if not any(board.iterator is not None for board in boards()):
                _watchers.clear()
                return
        _look(told)


def _look(told: dict[tuple[object, ...], float]) -> None:
    """Warn about workers that take too long; holds on to no iterator when it returns, as its workers would stay."""
    for board in boards():
        if board.iterator is None:
            continue
        for worker_id, pid, batch, seconds in board.busy():
            key = pid, batch
            if seconds > max(WAIT_S, 2 * told.get(key, 0.0)):
                told[key] = seconds
                _warn(describe_waiting(board, worker_id, seconds))
                break  # the others of the loader are described as well


def _warn(text: str) -> None:
    try:
        warnings.warn(text, category=PossibleUserWarning, stacklevel=2)
    except PossibleUserWarning:  # warnings are errors here, but there is nobody to catch one of this thread
        log.warning(text)
