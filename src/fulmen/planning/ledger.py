"""Keeps account of what the operations of a step hold, compute and send; on imagined tensors and on real ones.

Operations are seen one level below autograd, by a `TorchDispatchMode`, as torch's own `MemTracker` and
`FlopCounterMode` see them. What is counted is storage: a view costs nothing, and storage that is resized (FSDP frees
gathered weights so) is counted as it is.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["ROLES", "Collective", "Holdings", "Ledger", "local_tensors"]

# what storage is for; of several the first counts
ROLES = ("weights", "optimizer state", "gradients", "communication", "batch", "activations", "temporaries")
_UNKNOWN = "temporaries"
_COLLECTIVES = (  # part of an operation's name -> what people call it; the first that fits
    ("reduce_scatter", "reduce-scatter"), ("allgather", "all-gather"), ("all_gather", "all-gather"),
    ("allreduce", "all-reduce"), ("all_reduce", "all-reduce"), ("alltoall", "all-to-all"), ("all_to_all", "all-to-all"),
    ("broadcast", "broadcast"), ("send", "send"), ("recv", "receive"), ("gather", "gather"), ("scatter", "scatter"),
    ("reduce", "reduce"),
)  # fmt: skip
# what a rank sends for one byte of the largest tensor of a collective over n ranks, by the ring algorithms
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "receive": lambda n: 0.0,
}
_IN_PLACE = ("c10d", "fsdp")  # their tensors are buffers; the functional collectives work on the user's


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of exchange over one group."""

    kind: str
    group: str
    num_ranks: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is held at one moment, in bytes."""

    by_role: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.by_role.values())


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Notes each storage that comes and goes while the context is open, each exchange, and the FLOPs.

    Args:
        group_names: Names of process groups (as torch calls them) and what to call them.
        read_value: Called when a program asks for the value of an imagined tensor; returns one, or raises.
    """

    def __init__(
        self, group_names: dict[str, str] | None = None, read_value: Callable[[Tensor], Any] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self._group_names = group_names or {}
        self._read_value = read_value
        self._events: list[tuple[int, int]] = []  # number of the storage, bytes more or less
        self._sizes: dict[int, int] = {}  # of those that are there
        self._numbers: dict[int, tuple[int, Any]] = {}  # address of a storage -> its number, and a reference to it
        self._num_storages = 0
        self._roles: dict[int, int] = {}
        self._fake_mode: Any = None
        self._patch: AbstractContextManager[None] | None = None
        self.flops = 0
        self.calls: Counter[Collective] = Counter()
        self.payload: Counter[Collective] = Counter()
        self.sent: Counter[Collective] = Counter()

    # ---- the context

    def __enter__(self) -> Ledger:
        self._fake_mode = active_fake_mode()
        self._patch = self._noting_resizes()
        self._patch.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]  # of torch
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # of torch
        if self._patch is not None:
            self._patch.__exit__(None, None, None)

    @contextmanager
    def _noting_resizes(self) -> Iterator[None]:
        """`UntypedStorage.resize_` is no operation that a mode sees."""
        original = torch.UntypedStorage.resize_
        ledger = self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            known = ledger._numbers.get(storage._cdata)
            if known is not None:
                ledger._change(known[0], storage.nbytes())
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it leaves."""
        if any(kind is DTensor for kind in types):
            return NotImplemented  # it is taken apart first, into operations on what this rank holds
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        if active_fake_mode() is not self._fake_mode:  # DTensor tries out shapes
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        if func.namespace in ("c10d", "_c10d_functional", "fsdp"):
            self._note_exchange(func, args, kwargs, result)
        count = _FLOPS.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=result))
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and self._read_value is not None:
            return self._value_of(args[0])
        if func is torch.ops._c10d_functional.wait_tensor.default and self._fake_mode is not None:
            return args[0]  # imagined, it would return a copy
        if func.namespace == "c10d" and self._fake_mode is not None:
            return _imagined_exchange(func, args, kwargs)
        return func(*args, **kwargs)

    def _value_of(self, tensor: Tensor) -> Any:
        from torch._subclasses.fake_tensor import DataDependentOutputException

        try:
            return torch.ops.aten._local_scalar_dense.default(tensor)
        except DataDependentOutputException:
            assert self._read_value is not None  # noqa: S101 - asked by the caller
            return self._read_value(tensor)

    # ---- storage

    def _enter(self, tensor: Tensor) -> int | None:
        """Note a tensor's storage; return its number, `None` if the tensor has none."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse, or a wrapper
            return None
        address = storage._cdata
        known = self._numbers.get(address)
        if known is not None:
            self._change(known[0], storage.nbytes())
            return known[0]
        number = self._num_storages = self._num_storages + 1
        self._numbers[address] = number, weakref.ref(storage, lambda _: self._leave(address, number))
        self._change(number, storage.nbytes())
        return number

    def _leave(self, address: int, number: int) -> None:
        self._change(number, 0)
        self._numbers.pop(address, None)
        self._sizes.pop(number, None)

    def _change(self, number: int, size: int) -> None:
        before = self._sizes.get(number, 0)
        if size != before:
            self._sizes[number] = size
            self._events.append((number, size - before))

    def assign(self, tensors: Iterable[Tensor], role: str) -> None:
        """Say what tensors are for; also what was noted of their storage before gets that role.

        Args:
            tensors: Tensors as they are held here, no `DTensor`.
            role: One of `ROLES`; one that stands before it there stays.
        """
        rank = ROLES.index(role)
        for tensor in tensors:
            number = self._enter(tensor)
            if number is not None:
                self._roles[number] = min(rank, self._roles.get(number, rank))

    def assign_rest(self, role: str) -> None:
        """Give a role to all storage that is there and has none."""
        rank = ROLES.index(role)
        for number in self._sizes:
            self._roles.setdefault(number, rank)

    # ---- exchanges

    def _note_exchange(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if func.namespace in _IN_PLACE:
            self.assign((leaf for leaf in tree_leaves((args, kwargs, result)) if _has_storage(leaf)), "communication")
        name = func.overloadpacket.__name__
        kind = next((kind for part, kind in _COLLECTIVES if part in name), None)
        group = _group_of(args, kwargs)
        if kind is None or group is None or func.namespace == "fsdp":
            return
        size = group.size()
        collective = Collective(kind, self._group_names.get(group.group_name, f"{size} ranks"), size)
        payload = max(_num_bytes(each) for each in (*args, *kwargs.values(), result))
        self.calls[collective] += 1
        self.payload[collective] += payload
        self.sent[collective] += int(payload * _SENT.get(kind, _whole)(size))

    def forget_work(self) -> None:
        """Count FLOPs and exchanges from nothing; what is held stays."""
        self.flops = 0
        for counter in (self.calls, self.payload, self.sent):
            counter.clear()

    # ---- what was held

    def moment(self) -> int:
        """Return a mark for this moment."""
        return len(self._events)

    def held(self, moment: int | None = None) -> Holdings:
        """Return what was held at a moment, now by default."""
        sums: Counter[str] = Counter(dict.fromkeys(ROLES, 0))
        for number, delta in self._events[:moment]:
            sums[self._role_of(number)] += delta
        return Holdings(dict(sums))

    def peak(self, begin: int, end: int | None = None) -> tuple[Holdings, int]:
        """Return the most that was held between two moments, and the moment."""
        end = self.moment() if end is None else end
        total, most, when = 0, -1, begin
        for index, (_, delta) in enumerate(self._events[:end]):
            total += delta
            if index >= begin - 1 and total > most:
                most, when = total, index + 1
        return self.held(when), when

    def most_of(self, role: str, begin: int) -> int:
        """Return the most that one role held at a time since a moment, in bytes."""
        total = most = 0
        for index, (number, delta) in enumerate(self._events):
            if self._role_of(number) == role:
                total += delta
            if index >= begin - 1:
                most = max(most, total)
        return most

    def _role_of(self, number: int) -> str:
        rank = self._roles.get(number)
        return _UNKNOWN if rank is None else ROLES[rank]


def _imagined_exchange(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Exchange nothing, and return the tensors of the call: torch before 2.9 cannot exchange imagined ones."""
    originals: dict[int, tuple[Tensor, Tensor]] = {}  # by the address of what stands for it, which is kept, too

    def emptied(tensor: Tensor) -> Tensor:
        empty = torch.empty(0, dtype=tensor.dtype)
        originals[id(empty)] = empty, tensor
        return empty

    with unset_fake_temporarily():
        args, kwargs = tree_map_only(Tensor, emptied, (args, kwargs))
        result = func(*args, **kwargs)
    return tree_map_only(Tensor, lambda tensor: originals[id(tensor)][1], result)


def _whole(_: int) -> float:
    return 1.0


def local_tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a collection as this rank holds them."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, DTensor):
            yield leaf.to_local().detach()
        elif isinstance(leaf, Tensor):
            yield leaf


def _has_storage(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, DTensor)


def _num_bytes(argument: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(argument) if _has_storage(leaf))


def _group_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the process group that a collective was called with; `None` if there is none."""
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(argument)
            except RuntimeError:  # an operator of reduction
                continue
    names = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, str)]
    return torch._C._distributed_c10d._resolve_process_group(names[-1]) if names else None  # type: ignore[arg-type]  # a name


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]  # of torch


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]  # of torch


# attention on a CPU, which torch's own table leaves out
_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
