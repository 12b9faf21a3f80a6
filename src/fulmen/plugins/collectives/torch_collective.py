"""Communication by torch.distributed."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from fulmen.plugins.collectives.collective import Collective
from fulmen.utilities.variables import variables_set

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

__all__ = ["TorchCollective", "default_pg_timeout"]

default_pg_timeout = datetime.timedelta(seconds=1800)
"""How long torch lets a collective operation wait, if nothing else is said."""

_OPERATIONS = ("avg", "band", "bor", "bxor", "max", "min", "product", "sum")


class TorchCollective(Collective):
    """Collective operations of a `torch.distributed` process group.

    Ranks given to the operations are those of the default group. Operations are named as in torch: "sum", "avg", "max",
    "min", "product", "band", "bor", "bxor", or a `ReduceOp`.

    Raises:
        RuntimeError: This build of torch has no `torch.distributed`.

    Example::

        collective = TorchCollective().setup(backend="gloo")
        collective.create_group(ranks=[0, 1])
        collective.all_reduce(tensor, op="max")
        collective.teardown()
    """

    manages_default_group = False
    """Whether this object made the default group, and so ends it."""
    addr_key = "MASTER_ADDR"
    port_key = "MASTER_PORT"

    def __init__(self) -> None:
        if not dist.is_available():
            raise RuntimeError(
                "`TorchCollective` needs `torch.distributed`, which this build of torch lacks. Install another build,"
                " or use `SingleDeviceCollective`."
            )
        super().__init__()

    @property
    def group(self) -> Any:
        """The process group: the one of `create_group`, else the default group after `setup`.

        Raises:
            RuntimeError: Neither was called.
        """
        return super().group

    @property
    def rank(self) -> int:
        """Number of this process in the group; -1 if it has no part in it."""
        return dist.get_rank(self.group)

    @property
    def world_size(self) -> int:
        """Number of processes in the group; -1 if this one has no part in it."""
        return dist.get_world_size(self.group)

    # ---- tensors
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """Overwrite `tensor` with that of rank `src`."""
        dist.broadcast(tensor, src, group=self.group)
        return tensor

    def all_reduce(self, tensor: Tensor, op: str | dist.ReduceOp | dist.ReduceOp.RedOpType = "sum") -> Tensor:
        """Overwrite `tensor` with the reduction of all ranks' tensors."""
        dist.all_reduce(tensor, op=_operation(op), group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, dst: int, op: str | dist.ReduceOp | dist.ReduceOp.RedOpType = "sum") -> Tensor:
        """As `all_reduce`, but only rank `dst` gets the result."""
        dist.reduce(tensor, dst, op=_operation(op), group=self.group)
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """Fill `tensor_list` with all ranks' tensors, by rank."""
        dist.all_gather(tensor_list, tensor, group=self.group)
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """Fill `gather_list` with all ranks' tensors on rank `dst`; the others pass an empty list."""
        dist.gather(tensor, gather_list, dst, group=self.group)
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Overwrite `tensor` with this rank's of `scatter_list` of rank `src`; the others pass an empty list."""
        dist.scatter(tensor, scatter_list, src, group=self.group)
        return tensor

    def reduce_scatter(
        self, output: Tensor, input_list: list[Tensor], op: str | dist.ReduceOp | dist.ReduceOp.RedOpType = "sum"
    ) -> Tensor:
        """Reduce the lists of all ranks, entry by entry, and put the entry of this rank into `output`."""
        dist.reduce_scatter(output, input_list, op=_operation(op), group=self.group)
        return output

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Send entry i of `input_tensor_list` to rank i, and put what rank i sent at place i of the output."""
        dist.all_to_all(output_tensor_list, input_tensor_list, group=self.group)
        return output_tensor_list

    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send `tensor` to rank `dst`, which must call `recv` with the same tag."""
        dist.send(tensor, dst, group=self.group, tag=tag)

    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Overwrite `tensor` with what rank `src` sends; with `None`, with what comes first from anyone."""
        dist.recv(tensor, src, group=self.group, tag=tag)
        return tensor

    # ---- any objects that can be pickled
    def all_gather_object(self, object_list: list[Any], obj: Any) -> list[Any]:
        """Fill `object_list`, as long as the group is large, with all ranks' objects, by rank."""
        dist.all_gather_object(object_list, obj, group=self.group)
        return object_list

    def broadcast_object_list(self, object_list: list[Any], src: int, device: torch.device | None = None) -> list[Any]:
        """Overwrite the entries of `object_list` with those of rank `src`, sent through `device`."""
        dist.broadcast_object_list(object_list, src, group=self.group, device=device)
        return object_list

    def gather_object(self, obj: Any, object_gather_list: list[Any] | None, dst: int = 0) -> list[Any] | None:
        """Fill `object_gather_list` with all ranks' objects on rank `dst`; the others pass `None`."""
        dist.gather_object(obj, object_gather_list, dst, group=self.group)
        return object_gather_list

    def scatter_object_list(
        self, scatter_object_output_list: list[Any], scatter_object_input_list: list[Any] | None, src: int = 0
    ) -> list[Any]:
        """Put this rank's entry of the input list of rank `src` at place 0 of the output list."""
        dist.scatter_object_list(scatter_object_output_list, scatter_object_input_list, src, group=self.group)
        return scatter_object_output_list

    # ---- waiting
    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes are here; `device_ids` is for NCCL."""
        dist.barrier(group=self.group, device_ids=device_ids)

    def monitored_barrier(self, timeout: datetime.timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Wait until all processes are here, and say who is missing after `timeout`; for gloo only."""
        dist.monitored_barrier(group=self.group, timeout=timeout, wait_all_ranks=wait_all_ranks)

    # ---- groups
    def setup(self, main_address: str | None = None, main_port: str | int | None = None, **kwargs: Any) -> Self:
        """Make the default group, unless it is there, and work with it.

        Args:
            main_address: Where rank 0 is; by default the environment variable `MASTER_ADDR`.
            main_port: A free port there; by default `MASTER_PORT`.
            kwargs: For `torch.distributed.init_process_group`, e.g. `backend="gloo"`.

        Returns:
            This object.
        """
        if self._group is not None:
            return self
        if not self.is_initialized():
            with variables_set({self.addr_key: main_address, self.port_key: main_port}):
                self.init_group(**kwargs)
            self.manages_default_group = True
        self._group = dist.group.WORLD
        return self

    def create_group(self, **kwargs: Any) -> Self:
        """Make the group that this object works with; all processes of the default group must call it.

        Args:
            kwargs: For `torch.distributed.new_group`, e.g. `ranks=[0, 1]`.

        Returns:
            This object.

        Raises:
            RuntimeError: There is no default group, or this object has a group of its own.
        """
        if not self.is_initialized():
            raise RuntimeError(
                "`TorchCollective.create_group()` needs the default process group, which has not been initialized."
                " Call `collective.setup(...)` first."
            )
        if self._group is dist.group.WORLD:  # from `setup`: not a group of its own
            self._group = None
        return super().create_group(**kwargs)

    def teardown(self) -> Self:
        """Give back the group of `create_group`, and the default group if `setup` made it.

        Returns:
            This object.

        Raises:
            RuntimeError: There is nothing to give back.
        """
        if self.group is dist.group.WORLD:
            self._group = None
        else:
            super().teardown()
        if self.manages_default_group:
            self.manages_default_group = False
            if self.is_initialized():
                dist.destroy_process_group()
        return self

    @classmethod
    def is_available(cls) -> bool:
        """Tell whether this build of torch can communicate."""
        return dist.is_available()

    @classmethod
    def is_initialized(cls) -> bool:
        """Tell whether the default process group exists."""
        return cls.is_available() and dist.is_initialized()

    @classmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Make the default process group; the arguments are those of `torch.distributed.init_process_group`."""
        dist.init_process_group(**kwargs)

    @classmethod
    def new_group(cls, **kwargs: Any) -> Any:
        """Return a new process group; the arguments are those of `torch.distributed.new_group`."""
        return dist.new_group(**kwargs)

    @classmethod
    def destroy_group(cls, group: Any) -> None:
        """Give a group back; nothing happens on processes that have no part in it."""
        # `None` would end the default group, and with it all others
        if group is not None and group is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)


def _operation(op: str | dist.ReduceOp | dist.ReduceOp.RedOpType) -> Any:
    if isinstance(op, (dist.ReduceOp, dist.ReduceOp.RedOpType)):
        return op
    if isinstance(op, str) and op.lower() in _OPERATIONS:
        return getattr(dist.ReduceOp, op.upper())
    raise ValueError(
        f"`op={op!r}` is not an operation that `torch.distributed` reduces with."
        f" Choose one of {', '.join(map(repr, _OPERATIONS))}, or pass a member of `torch.distributed.ReduceOp`."
    )
