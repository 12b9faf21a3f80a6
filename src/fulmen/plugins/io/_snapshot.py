"""A copy of a checkpoint in host memory that is kept, and filled again by the next checkpoint.

Copying into memory that is there already is several times faster than into new memory, which the system must find and
clear page by page; a thread can have that done before the first checkpoint. All large tensors share one region, so
whatever their shapes, the next ones fit if they are not larger as a whole.
"""

from __future__ import annotations

import copy
import functools
import logging
import mmap
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

__all__ = ["HostCopies", "Snapshot"]

log = logging.getLogger(__name__)
_SMALL_BYTES = 2**16  # counters, biases: copied one by one, beside the region
_ALIGNMENT = 64
_TOUCHED_AT_ONCE = 2**24  # bytes; whoever needs the memory before it is ready waits for no more than that
_device_of_copy = threading.local()  # `tags`: address of a copy to the name of the device that it was copied from


class Snapshot:
    """A checkpoint that later training does not reach.

    Its large tensors belong to the region, so it is only good until `HostCopies` is given back and filled again.

    Attributes:
        content: The checkpoint, all tensors in host memory. What was shared between tensors still is.
    """

    def __init__(self, content: Any, tags: dict[int, str]) -> None:
        self.content = content
        self._tags = tags

    @contextmanager
    def written_as_original(self) -> Iterator[None]:
        """Context in which `torch.save` writes down the devices that the tensors come from, as without a copy."""
        _device_of_copy.tags = self._tags
        try:
            yield
        finally:
            _device_of_copy.tags = {}


class HostCopies:
    """Makes snapshots in a region of host memory that it keeps; page-locked if there are tensors of a GPU."""

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None
        self._is_page_locked = False  # or that was tried in vain
        self._in_use: list[Tensor] = []  # bytes of the large storages of the last snapshot
        self._preparation: threading.Thread | None = None
        self._is_needed = threading.Event()

    def prepare(self, checkpoint: Any) -> None:
        """Make room in a thread, if there is none yet; `take` waits for nothing, and goes on from what is done by then.

        Args:
            checkpoint: Holds tensors of about the size of those to come. Their values do not matter.
        """
        if self._region is not None or self._preparation is not None:
            return
        sources = [_bytes_of(storage) for storage in _large(_storages_in(checkpoint)).values()]
        size = _layout(sources)[1]
        if size > 0:
            self._is_needed.clear()
            arguments = (size, any(source.is_cuda for source in sources))
            self._preparation = threading.Thread(
                target=self._make_ready, args=arguments, name="checkpoint-memory", daemon=True
            )
            self._preparation.start()

    def take(self, checkpoint: Any, *, is_free: bool, wait_until_free: Callable[[], None]) -> Snapshot:
        """Copy a checkpoint.

        Args:
            checkpoint: Dicts, lists, tensors, anything that can be copied.
            is_free: Nobody reads earlier snapshots any more.
            wait_until_free: Called if somebody does, unless the new snapshot's large tensors equal those of the
                earlier one, as when two files are written of one state: then both share them.
        """
        storages = _storages_in(checkpoint)
        large = _large(storages)
        sources = [_bytes_of(storage) for storage in large.values()]
        if is_free or not self._holds(sources):
            if not is_free:
                wait_until_free()
            self._fill(sources)
        copies = dict(zip(large, (kept.untyped_storage() for kept in self._in_use), strict=True))
        for key, storage in storages.items():
            if key not in copies:
                copies[key] = _bytes_of(storage).to("cpu", copy=True).untyped_storage()
        tags = {
            copies[key].data_ptr(): torch.serialization.location_tag(storage)
            for key, storage in storages.items()
            if storage.device.type != "cpu"
        }
        if tags:
            _write_original_devices()
        return Snapshot(_copied(checkpoint, copies, {}), tags)

    def release(self) -> None:
        """Give the memory back to the system, as soon as nobody uses a snapshot in it."""
        self._end_preparation()
        self._in_use = []
        self._region = None
        self._is_page_locked = False

    def _holds(self, sources: list[Tensor]) -> bool:
        if [source.numel() for source in sources] != [kept.numel() for kept in self._in_use]:
            return False
        return all(map(_is_same, sources, self._in_use))

    def _fill(self, sources: list[Tensor]) -> None:
        starts, size = _layout(sources)
        self._in_use = []
        self._make_room(size, page_locked=any(source.is_cuda for source in sources))
        for start, source in zip(starts, sources, strict=True):
            kept = torch.frombuffer(self._region, dtype=torch.uint8, offset=start, count=source.numel())
            kept.copy_(source, non_blocking=True)
            self._in_use.append(kept)
        for device in {source.device for source in sources if source.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # sync: the copies must be there before training goes on

    def _make_room(self, size: int, *, page_locked: bool) -> None:
        self._end_preparation()
        if self._region is not None and len(self._region) < size and not self._has_grown(size):
            self._region = None  # before the new one is there, so that there are never two
        if self._region is None and size > 0:
            self._region = _new_region(size)
            self._is_page_locked = False
        if page_locked and not self._is_page_locked:
            self._page_lock()

    def _has_grown(self, size: int) -> bool:
        """Tell if the region could be made larger so that it keeps the memory it has."""
        if self._region is None or self._is_page_locked:
            return False
        try:
            self._region.resize(size)
        except (OSError, ValueError, BufferError, SystemError):  # the last one where the system cannot do it
            return False
        return True

    def _page_lock(self) -> None:
        if self._region is None:
            return
        self._is_page_locked = True
        address, size = torch.frombuffer(self._region, dtype=torch.uint8).data_ptr(), len(self._region)
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(address, size, 0)) == 0:
            weakref.finalize(self._region, runtime.cudaHostUnregister, address).atexit = False
        else:
            log.debug("%d bytes could not be page-locked; copying to them takes longer", size)

    # ---- in a thread

    def _make_ready(self, size: int, page_locked: bool) -> None:
        try:
            self._region = _new_region(size)
        except MemoryError as error:  # a save will say so, if there is one
            log.debug("%s", error)
            return
        pages = torch.frombuffer(self._region, dtype=torch.uint8)[:: mmap.PAGESIZE]
        at_once = _TOUCHED_AT_ONCE // mmap.PAGESIZE
        for begin in range(0, len(pages), at_once):
            if self._is_needed.is_set():
                return
            # lets other threads use Python meanwhile; torch starts threads of its own only for more elements
            pages[begin : begin + at_once].zero_()
        if page_locked and not self._is_needed.is_set():
            self._page_lock()

    def _end_preparation(self) -> None:
        if self._preparation is not None:
            self._is_needed.set()
            self._preparation.join()
            self._preparation = None


# ---- the region


def _new_region(size: int) -> mmap.mmap:
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        region = mmap.mmap(-1, size, **private)
    except OSError as error:
        raise MemoryError(
            f"`AsyncCheckpointIO` needs {size / 1e9:.1f} GB of host memory for its copy of a checkpoint, and there is"
            f" not so much ({error}). Use the default `TorchCheckpointIO`, which writes without a copy."
        ) from error
    if hasattr(mmap, "MADV_DONTFORK"):
        region.madvise(mmap.MADV_DONTFORK)  # else filling it while loader workers live would copy it once more
    return region


def _layout(sources: list[Tensor]) -> tuple[list[int], int]:
    """Return where each one begins in the region, and the size of all."""
    starts, size = [], 0
    for source in sources:
        starts.append(size)
        size += -(-source.numel() // _ALIGNMENT) * _ALIGNMENT
    return starts, size


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _is_same(source: Tensor, kept: Tensor) -> bool:
    dtype = torch.int64 if source.numel() % 8 == 0 else torch.uint8  # comparing eight bytes at once is faster
    return torch.equal(source.view(dtype), kept.to(source.device).view(dtype))


# ---- the copy


def _storages_in(checkpoint: Any) -> dict[int, UntypedStorage]:
    storages: dict[int, UntypedStorage] = {}
    _find_storages(checkpoint, storages, set())
    return storages


def _large(storages: dict[int, UntypedStorage]) -> dict[int, UntypedStorage]:
    return {key: storage for key, storage in storages.items() if storage.nbytes() >= _SMALL_BYTES}


def _find_storages(value: Any, storages: dict[int, UntypedStorage], seen: set[int]) -> None:
    """Collect the storages of all tensors that can be copied as a whole, in the order in which they are written."""
    if isinstance(value, Tensor):
        local = _local(value)
        if _is_plain(local):
            storage = local.untyped_storage()
            storages[storage._cdata] = storage
    elif id(value) not in seen and (isinstance(value, dict) or _is_sequence(value)):
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            _find_storages(item, storages, seen)


def _is_sequence(value: Any) -> bool:
    return type(value) in (list, tuple, set, frozenset) or _is_named_tuple(value)


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _copied(value: Any, copies: dict[int, UntypedStorage], memo: dict[int, Any]) -> Any:
    """Copy as `copy.deepcopy` does, tensors to host memory; what is one object stays one, as the file shows it."""
    if id(value) in memo:
        return memo[id(value)]
    result: Any
    if isinstance(value, Tensor):
        result = _tensor(value, copies, memo)
    elif isinstance(value, dict):
        result = copy.copy(value)  # keeps type and attributes, e.g. `_metadata` of a state_dict
        memo[id(value)] = result
        result.update({key: _copied(item, copies, memo) for key, item in value.items()})
        if getattr(value, "__dict__", None):
            vars(result).update(copy.deepcopy(vars(value), memo))
    elif _is_sequence(value):
        items = [_copied(item, copies, memo) for item in value]
        result = type(value)(*items) if _is_named_tuple(value) else type(value)(items)
    else:
        result = copy.deepcopy(value, memo)
    memo[id(value)] = result
    return result


def _tensor(tensor: Tensor, copies: dict[int, UntypedStorage], memo: dict[int, Any]) -> Tensor:
    if tensor.is_meta:
        return tensor
    if (local := _local(tensor)) is not tensor:
        return _sharded_like(tensor, _tensor(local, copies, memo))
    if not _is_plain(tensor):
        return tensor.detach().to("cpu", copy=True)
    result = torch.empty(0, dtype=tensor.dtype)
    storage = copies[tensor.untyped_storage()._cdata]
    result.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, nn.Parameter):
        result = nn.Parameter(result, tensor.requires_grad)
    elif tensor.requires_grad:
        result.requires_grad_()
    if vars(tensor):
        vars(result).update(copy.deepcopy(vars(tensor), memo))
    return result


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor in shards; any other tensor itself."""
    defining = sys.modules.get("torch.distributed.tensor")  # not loaded: there is none
    if defining is None or not isinstance(tensor, defining.DTensor):
        return tensor
    local: Tensor = tensor._local_tensor.detach()
    return local


def _sharded_like(tensor: Any, local: Tensor) -> Tensor:
    """Return a tensor in shards with another local part, which stays where it is: `from_local` would move it."""
    from torch.distributed.tensor import DTensor

    return DTensor(local, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]  # torch's own


# ---- devices in the file


@functools.cache
def _write_original_devices() -> None:
    """Have `torch.save` ask `_original_device` first for the device that it writes down with a tensor."""
    torch.serialization.register_package(0, _original_device, lambda storage, location: None)


def _original_device(storage: Any) -> str | None:
    tags: dict[int, str] = getattr(_device_of_copy, "tags", {})
    return tags.get(storage.data_ptr()) if tags and storage.device.type == "cpu" else None
