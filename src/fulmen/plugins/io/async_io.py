"""Checkpoints written while the training goes on.

`save_checkpoint`: raise the error of an earlier write -> copy tensors to host memory -> hand over to the writer thread
`load_checkpoint`, `wait`, `teardown`: wait until everything is written
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO

__all__ = ["AsyncCheckpointIO"]

# Each checkpoint that waits is a whole copy in host memory, so saving faster than the disk writes must end in waiting.
_MAX_UNWRITTEN = 2


class AsyncCheckpointIO(CheckpointIO):
    """Hands checkpoints to one writer thread, which passes them to another `CheckpointIO` in order.

    When `save_checkpoint` returns, the checkpoint is a copy: training may change the weights, the file gets the old
    ones. An error of the writer is raised by the next `save_checkpoint`, by `wait` or by `teardown`. Removals wait in
    line too, and after a failed write nothing is removed, so the last good checkpoint stays. At most two checkpoints
    wait in memory; a third one makes the training wait.

    Args:
        checkpoint_io: Does the writing and reading; a `TorchCheckpointIO` by default.

    Example::

        Trainer(plugins=[AsyncCheckpointIO()])
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self._checkpoint_io = checkpoint_io or TorchCheckpointIO()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        self._free_places = threading.Semaphore(_MAX_UNWRITTEN)
        self._failed = threading.Event()

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
        self._raise_errors_of_finished()
        if kwargs.get("storage_options") is None:
            kwargs.pop("storage_options", None)
        self._free_places.acquire()
        try:
            if args:
                args = (_snapshot(args[0], {}), *args[1:])
            else:
                kwargs["checkpoint"] = _snapshot(kwargs["checkpoint"], {})
            self._submit(partial(self._write, *args, **kwargs))
        except BaseException:
            self._free_places.release()
            raise

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
        self._submit(partial(self._remove, *args, **kwargs))

    def publish(self, action: Callable[[], None]) -> None:
        """Run an action in the writer's thread, in turn after the writes before it, and only if those did not fail.

        Args:
            action: Takes nothing and returns nothing. An error it raises comes out as that of a write does.
        """
        self._submit(partial(self._unless_failed, action))

    def raise_pending(self) -> None:
        """Raise what a write in the background raised, once; returns at once if there is nothing.

        Raises:
            Exception: Whatever a write raised, the first one if there were several.
        """
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
        """Write everything, end the thread, and tear the other `CheckpointIO` down.

        Raises:
            Exception: Whatever a write raised, the first one if there were several.
        """
        if self._writer is not None:
            self._writer.shutdown(wait=True)
            self._writer = None
        self._checkpoint_io.teardown()
        self._raise_errors_of_finished()

    # ---- in the writer thread

    def _write(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._checkpoint_io.save_checkpoint(*args, **kwargs)
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._free_places.release()

    def _remove(self, *args: Any, **kwargs: Any) -> None:
        if not self._failed.is_set():
            self._checkpoint_io.remove_checkpoint(*args, **kwargs)

    def _unless_failed(self, action: Callable[[], None]) -> None:
        if not self._failed.is_set():
            action()

    # ---- in the training thread

    def _submit(self, work: Callable[[], None]) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending.append(self._writer.submit(work))

    def _await_writes(self) -> None:
        for future in self._pending:
            future.exception()  # waits, and leaves the error to the next save or teardown

    def _raise_errors_of_finished(self) -> None:
        finished = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        errors = [error for future in finished if (error := future.exception()) is not None]
        if errors:
            self._failed.clear()
            raise errors[0]


def _snapshot(value: Any, tensors: dict[Any, Tensor]) -> Any:
    """Copy a checkpoint so that later changes do not reach it; tensors go to host memory, shared ones stay shared."""
    if isinstance(value, Tensor):
        return _host_copy(value, tensors)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps type and attributes, e.g. `_metadata` of a state_dict
        copied.update({key: _snapshot(item, tensors) for key, item in value.items()})
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_snapshot(item, tensors) for item in value))
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_snapshot(item, tensors) for item in value)
    return copy.deepcopy(value)


def _host_copy(tensor: Tensor, tensors: dict[Any, Tensor]) -> Tensor:
    if tensor.is_meta:
        return tensor
    if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return tensor.detach().to("cpu", copy=True)
    key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if key not in tensors:
        tensors[key] = tensor.detach().to("cpu", copy=True)
    return tensors[key]
