"""A world of many ranks that exists in one process only: a fake process group, and tensors without memory."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.strategies import model_parallel
from fulmen.strategies.peers import PeerCheck
from fulmen.strategies.process_group import leave_group
from fulmen.utilities.tree import apply_to_collection

__all__ = ["ImaginedCluster", "RealNumbers", "imagined_copy", "imagined_tensors", "imagined_world"]

# what computes with numbers of ranks, which must be real ones
_MESH_METHODS = ("__getitem__", "_get_root_mesh", "_flatten", "_unflatten", "_concatenate", "get_local_rank",
                 "get_coordinate")  # fmt: skip


class ImaginedCluster(ClusterEnvironment):
    """The environment of rank 0 among processes that nobody has started.

    Args:
        num_ranks: How many there are.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    @property
    def creates_processes_externally(self) -> bool:
        """True: there is nothing to start."""
        return True

    @property
    def main_address(self) -> str:
        """The address of rank 0, where nobody listens."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Its port."""
        return 1

    @staticmethod
    def detect() -> bool:
        """False: it is used only where it is asked for."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks."""
        return self._num_ranks

    def set_world_size(self, size: int) -> None:
        """Change nothing: the plan says how many."""

    def global_rank(self) -> int:
        """Return 0."""
        return 0

    def set_global_rank(self, rank: int) -> None:
        """Change nothing: this is rank 0."""

    def local_rank(self) -> int:
        """Return 0."""
        return 0

    def node_rank(self) -> int:
        """Return 0."""
        return 0


@contextmanager
def imagined_world(num_ranks: int, notes: list[str]) -> Iterator[FakeTensorMode]:
    """Make this process rank 0 of a world in which the others do what it does.

    Args:
        num_ranks: Ranks of the world.
        notes: Takes what the plan cannot take into account.

    Yields:
        A mode in which tensors have no memory; to be entered when the process groups are there.

    Raises:
        RuntimeError: This process is in a real world already.
    """
    if dist.is_initialized():
        raise RuntimeError(
            f"This process is in a process group of {dist.get_world_size()} ranks, and cannot imagine to be in another."
            " Plan in a process of its own, before any training: with `fulmen plan`, or in a script that does nothing"
            " else."
        )
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        with ExitStack() as stack:
            for owner, name, replacement in _replacements(notes):
                stack.enter_context(_replaced(owner, name, replacement))
            yield FakeTensorMode(allow_non_fake_inputs=True)
    finally:
        leave_group()
        dist.destroy_process_group()


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    is_own, original = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def _replacements(notes: list[str]) -> Iterator[tuple[Any, str, Any]]:
    """What cannot be done with tensors that have no values: objects are not sent, and rank 0's are those of all."""
    for name in _MESH_METHODS:
        if name in vars(DeviceMesh):
            yield DeviceMesh, name, _with_real_tensors(vars(DeviceMesh)[name])
    yield dist, "all_gather_object", _gather_own
    yield dist, "broadcast_object_list", _do_nothing
    yield dist, "barrier", _do_nothing
    yield torch.nn.parallel.distributed, "_verify_param_shape_across_processes", _do_nothing
    yield _fsdp_param, "_chunk_with_empty", _Chunks
    propagate = ShardingPropagator._propagate_tensor_meta_non_cached
    yield ShardingPropagator, "_propagate_tensor_meta_non_cached", _unseen(propagate)
    yield model_parallel, "drawing_as_first", nullcontext  # compares states of generators
    yield PeerCheck, "after_backward", _do_nothing  # compares numbers of ranks, now and then
    yield nn.Module, "_apply", _applying()
    yield FakeTensor, "__format__", _format
    yield DistributedDataParallel, "__init__", _with_python_hook(DistributedDataParallel.__init__)
    yield DistributedDataParallel, "register_comm_hook", functools.partial(_refuse_hook, notes)


def _with_real_tensors(method: Any) -> Any:
    function = method.__func__ if isinstance(method, staticmethod) else method

    @functools.wraps(function)
    def computed(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return staticmethod(computed) if isinstance(method, staticmethod) else computed


def _unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let DTensor try out the shapes of whole tensors where nothing is counted: a rank computes with its part only."""

    @functools.wraps(function)
    def computed(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return computed


def _applying() -> Callable[..., nn.Module]:
    """Return a `Module._apply` that puts new parameters in, as torch's own cannot change imagined ones in place."""
    replaced = WeakIdKeyDictionary()  # for tied parameters: the same new one

    def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in self.children() if recurse else ():
            child._apply(fn)  # type: ignore[no-untyped-call]  # of torch
        for name, parameter in self._parameters.items():
            if parameter is None:
                continue
            known = replaced.get(parameter)  # type: ignore[no-untyped-call]  # of torch
            new = None if known is None else known()
            if new is None:
                with torch.no_grad():
                    applied = fn(parameter)
                if applied is parameter:
                    continue
                new = nn.Parameter(applied, requires_grad=parameter.requires_grad)
                replaced[parameter] = weakref.ref(new)
            self._parameters[name] = new
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
        return self

    return _apply


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def _gather_own(object_list: list[Any], obj: Any, group: Any = None) -> None:
    object_list[:] = [obj] * len(object_list)


def _with_python_hook(make: Callable[..., None]) -> Callable[..., None]:
    """Let torch's wrapper average gradients by a hook: its own waits for a result, which a fake group has not."""
    register = DistributedDataParallel.register_comm_hook

    def init(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        with RealNumbers():
            make(self, *args, **kwargs)
        register(self, None, _average)
        self.reducer = _Reducer(self.reducer)  # type: ignore[assignment]  # it does all that one does

    return init


class _Chunks:
    """The parts of a tensor, as `_chunk_with_empty` of FSDP makes them, each when it is asked for: one of thousands."""

    def __init__(self, tensor: Tensor, num_chunks: int, dim: int) -> None:
        self._tensor, self._dim = tensor, dim
        self._rows = -(-tensor.size(dim) // num_chunks)

    def __getitem__(self, index: int) -> Tensor:
        begin = index * self._rows
        rows = min(self._rows, self._tensor.size(self._dim) - begin)
        return self._tensor.narrow(self._dim, begin, rows) if rows > 0 else self._tensor.new_empty(0)


class _Reducer:
    """The reducer of DDP, which notes in numbers what is used, and in which order gradients are there."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        with RealNumbers():
            return bool(self._reducer._rebuild_buckets())

    def prepare_for_backward(self, outputs: list[Tensor]) -> None:
        with RealNumbers():
            self._reducer.prepare_for_backward(outputs)


class RealNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Keeps the numbers real by which DDP's reducer decides, for its set-up and for backward passes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, for real if it is on numbers of the reducer."""
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_on_numbers = all(each.dtype == torch.int32 and not isinstance(each, FakeTensor) for each in tensors)
        if func.namespace == "c10d" or not (is_on_numbers and (tensors or kwargs.get("dtype") == torch.int32)):
            return func(*args, **kwargs)
        with _disable_current_modes():
            return func(*args, **kwargs)


def _average(_: object, bucket: Any) -> Future[Tensor]:
    buffer = bucket.buffer().div_(dist.get_world_size())
    dist.all_reduce(buffer)
    future: Future[Tensor] = Future()
    future.set_result(buffer)
    return future


_average.__annotations__ = {"bucket": torch._C._distributed_c10d.GradBucket, "return": Future[Tensor]}  # torch looks


def _format(self: Tensor, spec: str) -> str:
    return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)


def _refuse_hook(notes: list[str], *_: Any, **__: Any) -> None:
    notes.append("The communication hook of DDP is not planned: gradients are exchanged as they are.")


# ---- tensors without memory


def imagined_tensors(tree: Any) -> Any:
    """Return a collection with tensors of the same shapes that have no memory; to be called inside the mode."""
    return apply_to_collection(tree, Tensor, _imagined)


def imagined_copy(module: nn.Module, mode: FakeTensorMode, memo: dict[int, Any]) -> Any:
    """Copy a module, all parameters and buffers without memory; the original may be on any device, also "meta".

    Args:
        module: The module; it is not changed.
        mode: Where the copy will live.
        memo: Objects (by `id`) and what stands in their place in the copy.
    """
    with mode:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in memo:
                memo[id(tensor)] = _imagined(tensor)
    return copy.deepcopy(module, memo)


def _imagined(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty.requires_grad_(tensor.requires_grad)
