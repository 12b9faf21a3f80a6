"""The random state of a DataLoader's workers after every batch, without asking them.

Each worker writes its generators into shared memory after a batch; the main process reads there when a checkpoint is
taken, and pays nothing per batch. A later run gives the states to its own workers as they start.
"""

from __future__ import annotations

import ctypes
import json
import random
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fulmen.data.rng import NumpySnapshot, find_generators, generator_state, set_generator_state
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["RecordedWorkers", "WorkerPosition"]

_HEAD = struct.Struct("=QQq")  # number of batches + 1, length of what follows the fixed parts, base seed
_PYTHON = struct.Struct("=625Id?")
_NUMPY = struct.Struct("=i?d")
_NUMPY_KEYS = 624 * 4
_NUMPY_SIZE = 1 + _NUMPY_KEYS + _NUMPY.size
_ROOM_FOR_OTHERS = 8192  # for generators that the dataset makes in the worker
_UNREADABLE = 2**63  # as length: the generators of the dataset did not fit
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerPosition:
    """Where the workers of a loader stand.

    Attributes:
        base_seed: The number from which the seeds of the workers were made; `None` if torch draws it anew.
        first_id: Number of the worker that has the next batch; the others follow it in turn.
        states: The random states in that order; `None` for a worker as it was when it started.
    """

    base_seed: int | None
    first_id: int
    states: list[Tensor | None]

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"base_seed": self.base_seed, "first_id": self.first_id, "states": list(self.states)}


class RecordedWorkers:
    """The workers of one loader, from their start to their end.

    Args:
        loader: A DataLoader with workers that are not running.
        position: How they begin; `None`: as torch starts them.
        num_behind: By how many batches what is asked for may lie behind what was fetched.

    Attributes:
        num_workers: Number of workers.
    """

    def __init__(self, loader: Any, *, position: WorkerPosition | None, num_behind: int) -> None:
        # settings
        self.num_workers: int = loader.num_workers
        self._first_id = 0 if position is None else position.first_id
        self._given = [None] * self.num_workers if position is None else position.states
        self._base_seed = None if position is None else position.base_seed
        # state
        self._rows = list(range(self.num_workers))  # of the memory, in the order in which workers get batches
        self._num_before = [0] * self.num_workers  # by row: batches of earlier passes
        others = len(_others(find_generators([loader.dataset, loader.collate_fn]))) * 3 + _ROOM_FOR_OTHERS
        self._memory = _RandomMemory(self.num_workers, (loader.prefetch_factor or 2) + num_behind + 2, others)

    def wrapped(self, collate_fn: Callable[[Any], Any], worker_init_fn: Callable[[int], Any] | None) -> dict[str, Any]:
        """Return what to put in place of these attributes of the loader while it starts its workers."""
        start = _WorkerStart(worker_init_fn, self._memory, self._base_seed, self._first_id, self._given)
        return {"collate_fn": _Recording(collate_fn, self._memory), "worker_init_fn": start}

    def next_pass(self, iterator: Any) -> None:
        """Prepare another pass of workers that are alive. Torch gives its first batch to the first worker.

        Args:
            iterator: Torch's iterator, not yet reset.
        """
        self._count_all(iterator._send_idx)
        shift = -self._first_id % self.num_workers
        if shift:  # a resumed pass began with another worker
            for queues in (iterator._index_queues, iterator._workers):
                queues[:] = _rotated(queues, shift)
            self._rows = _rotated(self._rows, shift)
            self._first_id = 0

    def _count_all(self, num_sent: int) -> None:
        for turn, row in enumerate(self._rows):
            self._num_before[row] += _share(num_sent, turn, self.num_workers)

    def position_after(self, num_done: int) -> WorkerPosition | None:
        """Return where they stood when so many batches of this pass were done.

        Args:
            num_done: Number of batches, counted from where this run opened the pass.

        Returns:
            The position; `None` if it is not known any more.
        """
        states = []
        for i in range(self.num_workers):
            turn = (num_done + i) % self.num_workers
            row = self._rows[turn]
            states.append(self._state(row, self._num_before[row] + _share(num_done, turn, self.num_workers)))
        return self._position((self._first_id + num_done) % self.num_workers, states)

    def position_of_each(self, num_done: list[int]) -> WorkerPosition | None:
        """Return where each worker stood after so many batches of its own.

        Args:
            num_done: Number of batches by worker.
        """
        states = [self._state(row, done) for row, done in enumerate(num_done)]
        return self._position(0, states)

    def position_for_next_pass(self, iterator: Any) -> WorkerPosition | None:
        """Return how living workers will begin their next pass: after all that they were asked for.

        Args:
            iterator: Torch's iterator.
        """
        num_sent = iterator._send_idx
        states: list[Any] = [None] * self.num_workers
        for turn, row in enumerate(self._rows):
            number = self._num_before[row] + _share(num_sent, turn, self.num_workers)
            self._wait_for(row, number, iterator)
            states[(self._first_id + turn) % self.num_workers] = self._state(row, number)
        return self._position(0, states)

    def _position(self, first_id: int, states: list[Any]) -> WorkerPosition | None:
        if any(state is False for state in states):
            return None
        return WorkerPosition(self._memory.base_seed if self._base_seed is None else self._base_seed, first_id, states)

    def _wait_for(self, row: int, number: int, iterator: Any) -> None:
        end = time.monotonic() + _LONGEST_WAIT_S
        while self._memory.number_in(row) < number and time.monotonic() < end:
            if not all(worker.is_alive() for worker in iterator._workers):
                return
            time.sleep(0.002)

    def _state(self, row: int, number: int) -> Any:
        """The state of a worker after so many batches; `False` if it is not there."""
        return self._given[row] if number == 0 else self._memory.read(row, number)


def _share(number: int, turn: int, num_workers: int) -> int:
    """How many of so many batches go to the worker whose turn comes at this place."""
    return max(0, -((turn - number) // num_workers))


def _rotated(items: list[Any], shift: int) -> list[Any]:
    return items[shift:] + items[:shift]


# ---- memory


class _RandomMemory:
    """A ring of random states for each worker.

    Args:
        num_workers: Number of workers.
        depth: How many states of each are kept.
        num_others: Bytes for generators that the dataset holds.
    """

    def __init__(self, num_workers: int, depth: int, num_others: int) -> None:
        self._torch_size = len(torch.get_rng_state())
        self._depth = depth
        fixed = _HEAD.size + self._torch_size + _PYTHON.size + _NUMPY_SIZE
        size = -(-(fixed + num_others) // 8) * 8
        self._memory = torch.zeros((num_workers, depth, size), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]  # in torch
        self.base_seed: int | None = None  # as the workers tell it
        self._writer: _Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_writer": None}

    def start(self, worker_id: int, given: Tensor | None) -> None:
        """In the worker: take the state that was given, and be ready to write."""
        info = get_worker_info()
        assert info is not None  # noqa: S101 - torch has set it before
        if given is not None:
            _restore(given.numpy().tobytes() if "numpy" in sys.modules else bytes(given.tolist()), info.dataset)
        self._writer = _Writer(self._memory[worker_id], self._torch_size, info.dataset, info.seed - info.id)

    def write(self) -> None:
        """In the worker: keep the random state after a batch."""
        if self._writer is not None:
            self._writer.write()

    def number_in(self, row: int) -> int:
        """The most batches of which a state was written."""
        return max(0, max(int(_HEAD.unpack(bytes(slot[: _HEAD.size].tolist()))[0]) for slot in self._memory[row]) - 1)

    def read(self, row: int, number: int) -> Tensor | bool:
        """The state after so many batches; `False` if it was overwritten or could not be written."""
        copy: Tensor = self._memory[row, number % self._depth].clone()
        written, length, self.base_seed = _HEAD.unpack(bytes(copy[: _HEAD.size].tolist()))
        if written != number + 1 or length == _UNREADABLE:
            return False
        fixed = self._torch_size + _PYTHON.size + _NUMPY_SIZE
        state: Tensor = copy[_HEAD.size : _HEAD.size + fixed + length].clone()
        return state


class _Writer:
    """Writes into the ring of one worker."""

    def __init__(self, slots: Tensor, torch_size: int, dataset: Any, base_seed: int) -> None:
        self._slots = slots  # keeps the memory alive
        self._torch_parts = [slot[_HEAD.size : _HEAD.size + torch_size] for slot in slots]
        address = slots.data_ptr()
        self._bytes = memoryview((ctypes.c_ubyte * slots.numel()).from_address(address)).cast("B")
        self._size = slots.shape[1]
        self._torch_size = torch_size
        self._dataset = dataset
        self._others: list[Any] | None = None
        self._numpy = NumpySnapshot()
        self._numpy_state: Any = None
        self._numpy_bytes = bytes(_NUMPY_SIZE)
        self._number = 0
        self._base_seed = base_seed

    def write(self) -> None:
        self._number += 1
        if self._others is None:  # now, so that what the dataset made for its first batch is there
            self._others = find_generators([self._dataset])
        slot = self._number % len(self._torch_parts)
        start = slot * self._size
        memory = self._bytes
        _HEAD.pack_into(memory, start, 0, 0, 0)  # not valid while it is written
        self._torch_parts[slot].copy_(torch.get_rng_state())
        at = start + _HEAD.size + self._torch_size
        _, numbers, gauss = random.getstate()
        _PYTHON.pack_into(memory, at, *numbers, gauss or 0.0, gauss is not None)
        at += _PYTHON.size
        state = self._numpy.take()
        if state is not self._numpy_state:
            self._numpy_state, self._numpy_bytes = state, _packed(state)
        memory[at : at + _NUMPY_SIZE] = self._numpy_bytes
        at += _NUMPY_SIZE
        length = 0
        if self._others:
            others = _others(self._others)
            length = len(others)
            if at + length > start + self._size:
                length = _UNREADABLE
            else:
                memory[at : at + length] = others
        _HEAD.pack_into(memory, start, self._number + 1, length, self._base_seed)


def _packed(numpy_state: Any) -> bytes:
    if numpy_state is None or numpy_state[0] != "MT19937":
        return bytes(_NUMPY_SIZE)
    _, keys, position, has_gauss, gauss = numpy_state
    return b"\1" + bytes(keys.tobytes()) + _NUMPY.pack(position, bool(has_gauss), gauss)


def _others(generators: list[Any]) -> bytes:
    """The states of a dataset's generators. Not pickled: a checkpoint must not be able to run code."""
    if not generators:
        return b""
    return json.dumps([generator_state(each) for each in generators], default=lambda each: each.tolist()).encode()


def _restore(state: bytes, dataset: Any) -> None:
    at = len(torch.get_rng_state())
    torch.set_rng_state(torch.tensor(list(state[:at]), dtype=torch.uint8))
    *numbers, gauss, has_gauss = _PYTHON.unpack_from(state, at)
    random.setstate((3, tuple(numbers), gauss if has_gauss else None))
    at += _PYTHON.size
    if state[at]:
        import numpy as np

        keys = np.frombuffer(state, dtype=np.uint32, count=624, offset=at + 1).copy()
        position, has_gauss, gauss = _NUMPY.unpack_from(state, at + 1 + _NUMPY_KEYS)
        np.random.set_state(("MT19937", keys, position, int(has_gauss), gauss))
    at += _NUMPY_SIZE
    if len(state) > at:
        states, generators = json.loads(state[at:]), find_generators([dataset])
        if len(states) != len(generators):
            rank_zero_warn(
                f"The dataset of a worker holds {len(generators)} generators, but there were {len(states)} when the"
                " checkpoint was written, so their random numbers begin anew. Make them in the dataset's `__init__`."
            )
            return
        for generator, each in zip(generators, states, strict=True):
            set_generator_state(generator, each)


# ---- what runs in the workers


class _Recording:
    """A collate function after which the worker's random state is kept: it is the last that happens to a batch."""

    def __init__(self, collate_fn: Callable[[Any], Any], memory: _RandomMemory) -> None:
        self.collate_fn, self.memory = collate_fn, memory

    def __call__(self, samples: Any) -> Any:
        batch = self.collate_fn(samples)
        self.memory.write()
        return batch


class _WorkerStart:
    """Starts a worker as the one whose place it takes in a resumed run."""

    def __init__(
        self,
        worker_init_fn: Callable[[int], Any] | None,
        memory: _RandomMemory,
        base_seed: int | None,
        first_id: int,
        given: list[Any],
    ) -> None:
        self.worker_init_fn, self.memory = worker_init_fn, memory
        self.base_seed, self.first_id, self.given = base_seed, first_id, given

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        assert info is not None  # noqa: S101 - torch has set it before
        base_seed = info.seed - worker_id if self.base_seed is None else self.base_seed
        place = (worker_id + self.first_id) % len(self.given)
        if info.seed != base_seed + place:
            _become(place, base_seed)
        if self.worker_init_fn is not None:
            self.worker_init_fn(place)
        self.memory.start(worker_id, self.given[worker_id])


def _become(place: int, base_seed: int) -> None:
    """Be known and seeded as torch does it for the worker with this number."""
    from torch.utils.data._utils import worker as torch_worker

    info = torch_worker._worker_info
    assert info is not None  # noqa: S101 - torch has set it before
    known = {name: getattr(info, name) for name in type(info).__annotations__}  # torch 2.8: no dataclass
    torch_worker._worker_info = torch_worker.WorkerInfo(**{**known, "id": place, "seed": base_seed + place})
    random.seed(base_seed + place)
    torch.manual_seed(base_seed + place)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(torch_worker._generate_state(base_seed, place))  # type: ignore[no-untyped-call]  # in torch
