"""Checkpoints written while the training goes on.

`expect`: find memory for the copy, in a thread that ends with that
`save_checkpoint`: raise the error of an earlier write -> copy tensors to host memory -> hand over to the writer thread
`publish`, `remove_checkpoint`: queue up behind the writes before, for nothing if one of them failed
`load_checkpoint`, `wait`, `teardown`: wait until everything is written

Why a copy and a thread, and no forked process, which would see the old weights without a copy: only the forking thread
lives on in it, so a lock that another one held (in the allocator, OpenMP, a logger) stays locked for ever; CUDA does
not work in it; and training then pays for each page that it first changes, which is the same copy, only slower.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch.distributed as dist

from fulmen.plugins.io._snapshot import HostCopies, Snapshot
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO

__all__ = ["AsyncCheckpointIO"]

log = logging.getLogger(__name__)
_MOST_UNWRITTEN = (
    8  # small checkpoints, and several of one state, need no waiting; but a dead disk must not fill memory
)


class AsyncCheckpointIO(CheckpointIO):
    """Hands checkpoints to one writer thread, which passes them to another `CheckpointIO` in order.

    When `save_checkpoint` returns, the checkpoint is a copy in host memory: training may change the weights, the file
    gets the old ones, byte for byte as without this class. The memory of the copy, which is that of one checkpoint, is
    kept until the end of the run. So a second checkpoint waits until the first is written, unless its large tensors
    are the same: files that are saved of one state share the copy. To keep a "last" file without any second write, use
    `ModelCheckpoint(save_last="link")`.

    An error of the writer is raised after the next training batch, by the next `save_checkpoint`, by `wait` or by
    `teardown`, whichever comes first. Removals and links wait in line, and after a failed write none is done, so the
    last good checkpoint stays. A program that ends waits for the writer; if it is killed, each path holds what was
    last written to it as a whole.

    Args:
        checkpoint_io: Does the writing and reading; a `TorchCheckpointIO` by default. It must be done with the
            tensors when its `save_checkpoint` returns, as their memory is used again.

    Example::

        Trainer(plugins=[AsyncCheckpointIO()])
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self._checkpoint_io = checkpoint_io or TorchCheckpointIO()
        self._writer: ThreadPoolExecutor | None = None
        self._copies = HostCopies()
        self._pending: list[Future[None]] = []
        self._failed = threading.Event()
        self._group: tuple[Any, dict[Any, Any]] | None = None  # of all processes, and what was made from it
        weakref.finalize(self, _report_unseen, self._pending)  # at exit at the latest, when the writer has ended

    def __getstate__(self) -> dict[str, Any]:
        """Leave thread and copies behind: in another process there is nothing to write."""
        return {"checkpoint_io": self._checkpoint_io}

    def __setstate__(self, state: dict[str, Any]) -> None:
        AsyncCheckpointIO.__init__(self, **state)

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Does the writing and reading; may be exchanged between runs."""
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO) -> None:
        self._await_writes()
        self._checkpoint_io = checkpoint_io

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Copy a checkpoint and have it written in the background.

        Args:
            args: For the other `CheckpointIO`; the first, or the one called `checkpoint`, is what to write.
            kwargs: For the other `CheckpointIO`; `storage_options=None` is left out, as old implementations do not
                take it.

        Raises:
            Exception: Whatever an earlier write raised.
        """
        self.raise_pending()
        if kwargs.get("storage_options") is None:
            kwargs.pop("storage_options", None)
        snapshot = self._taken(args[0] if args else kwargs["checkpoint"])
        if args:
            args = (snapshot.content, *args[1:])
        else:
            kwargs["checkpoint"] = snapshot.content
        self._submit(partial(self._write, snapshot, *args, **kwargs), always=True)

    def save_by(self, write: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]) -> None:
        """Copy a checkpoint and have it written in the background by a function, not by the other `CheckpointIO`.

        Args:
            write: Called in the writer's thread, with the copy.
            checkpoint: What to write. Of a `DTensor`, this rank's part is copied.

        Raises:
            Exception: Whatever an earlier write raised.
        """
        self.raise_pending()
        snapshot = self._taken(checkpoint)
        self._submit(partial(write, snapshot.content), always=True)

    def background_group(self, group: Any | None = None) -> Any | None:
        """Return processes who talk through the CPU, apart from what training says; all of them must ask.

        Args:
            group: Who; all by default.

        Returns:
            A group of the same processes, made at the first call; `None` if there are no other processes.
        """
        if not dist.is_initialized():
            return None
        if self._group is None or self._group[0] is not dist.group.WORLD:
            self._group = dist.group.WORLD, {}
        groups = self._group[1]
        if group not in groups:
            ranks = None if group is None else dist.get_process_group_ranks(group)
            groups[group] = dist.new_group(ranks, backend="gloo")
        return groups[group]

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, after all that was handed over before is written.

        Args:
            args: For the other `CheckpointIO`.
            kwargs: For the other `CheckpointIO`.

        Returns:
            What was written.
        """
        self._await_writes()
        return self._checkpoint_io.load_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Delete a checkpoint, in turn after the writes before it, and only if those did not fail.

        Args:
            args: For the other `CheckpointIO`.
            kwargs: For the other `CheckpointIO`.
        """
        self._submit(partial(self._checkpoint_io.remove_checkpoint, *args, **kwargs))

    def publish(self, action: Callable[[], None]) -> None:
        """Run an action in the writer's thread, in turn after the writes before it, and only if those did not fail.

        Args:
            action: Takes nothing and returns nothing. An error it raises comes out as that of a write does.
        """
        self._submit(action)

    def expect(self, checkpoint: Any) -> None:
        """Find memory for copies in the background, so that the first save is as short as the later ones.

        Args:
            checkpoint: Tensors of about the size of those to be saved.
        """
        self._copies.prepare(checkpoint)

    def raise_pending(self) -> None:
        """Raise what a write in the background raised, once; returns at once if there is nothing.

        Raises:
            Exception: Whatever a write raised, the first one if there were several.
        """
        if self._failed.is_set():
            self._raise_errors_of_finished()

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            Exception: Whatever a write raised, the first one if there were several.
        """
        self._await_writes()
        self._checkpoint_io.wait()
        self._raise_errors_of_finished()

    def teardown(self) -> None:
        """Write everything, end the thread, give the memory back, and tear the other `CheckpointIO` down.

        Raises:
            Exception: Whatever a write raised, the first one if there were several.
        """
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None
        self._copies.release()
        self._checkpoint_io.teardown()
        self._raise_errors_of_finished()

    # ---- in the writer thread

    def _write(self, snapshot: Snapshot, *args: Any, **kwargs: Any) -> None:
        with snapshot.written_as_original():
            self._checkpoint_io.save_checkpoint(*args, **kwargs)

    def _run(self, work: Callable[[], None], *, always: bool) -> None:
        if self._failed.is_set() and not always:
            return
        try:
            work()
        except BaseException:
            self._failed.set()
            raise

    # ---- in the training thread

    def _taken(self, checkpoint: Any) -> Snapshot:
        num_unwritten = sum(not future.done() for future in self._pending)
        if num_unwritten >= _MOST_UNWRITTEN:
            self._await_writes()
        return self._copies.take(checkpoint, is_free=num_unwritten == 0, wait_until_free=self._await_writes)

    def _submit(self, work: Callable[[], None], *, always: bool = False) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending[:] = [future for future in self._pending if not future.done() or future.exception() is not None]
        self._pending.append(self._writer.submit(self._run, work, always=always))

    def _await_writes(self) -> None:
        for future in self._pending:
            future.exception()  # waits, and leaves the error to the next batch, save or teardown

    def _raise_errors_of_finished(self) -> None:
        finished = [future for future in self._pending if future.done()]
        self._pending[:] = [future for future in self._pending if not future.done()]
        errors = [error for future in finished if (error := future.exception()) is not None]
        if errors:
            self._failed.clear()
            raise errors[0]


def _report_unseen(pending: list[Future[None]]) -> None:
    """Say what went wrong in a program that ended without asking."""
    for future in pending:
        if future.done() and (error := future.exception()) is not None:
            log.error("A checkpoint was not written: %s: %s", type(error).__name__, error, exc_info=error)
