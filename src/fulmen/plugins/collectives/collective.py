"""What a way of communicating between processes must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

__all__ = ["Collective"]


class Collective(ABC):
    """Collective operations of the processes of one group, which the object owns.

    `setup` prepares communication and `create_group` makes the group; `teardown` gives it back. Each operation must be
    called by all processes of the group, and returns what it filled in place.
    """

    def __init__(self) -> None:
        self._group: Any = None

    @property
    @abstractmethod
    def rank(self) -> int:
        """Number of this process in the group."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Number of processes in the group."""

    @property
    def group(self) -> Any:
        """The group.

        Raises:
            RuntimeError: There is none.
        """
        if self._group is None:
            raise RuntimeError(
                f"`{type(self).__name__}` does not own a group, so there is nobody to communicate with."
                " Call `collective.create_group()` first."
            )
        return self._group

    @abstractmethod
    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """Overwrite `tensor` with that of rank `src`."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor, op: str) -> Tensor:
        """Overwrite `tensor` with the reduction of all ranks' tensors by `op`, e.g. "sum"."""

    @abstractmethod
    def reduce(self, tensor: Tensor, dst: int, op: str) -> Tensor:
        """As `all_reduce`, but only rank `dst` gets the result; the others' tensors hold nothing of use after it."""

    @abstractmethod
    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """Fill `tensor_list` with all ranks' tensors, by rank."""

    @abstractmethod
    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """Fill `gather_list` with all ranks' tensors, by rank, on rank `dst`; the others pass an empty list."""

    @abstractmethod
    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Overwrite `tensor` with this rank's of `scatter_list` of rank `src`; the others pass an empty list."""

    @abstractmethod
    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: str) -> Tensor:
        """Reduce the lists of all ranks, entry by entry, and put the entry of this rank into `output`."""

    @abstractmethod
    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Send entry i of `input_tensor_list` to rank i, and put what rank i sent at place i of the output."""

    @abstractmethod
    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send `tensor` to rank `dst`, which must call `recv` with the same tag."""

    @abstractmethod
    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Overwrite `tensor` with what rank `src` sends; with `None`, with what comes first from anyone."""

    @abstractmethod
    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes are here."""

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Tell whether this way of communicating exists here."""

    @classmethod
    @abstractmethod
    def is_initialized(cls) -> bool:
        """Tell whether it is ready for `new_group`."""

    @classmethod
    @abstractmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Make it ready; called by all processes."""

    @classmethod
    @abstractmethod
    def new_group(cls, **kwargs: Any) -> Any:
        """Return a new group; called by all processes."""

    @classmethod
    @abstractmethod
    def destroy_group(cls, group: Any) -> None:
        """Give a group back."""

    def setup(self, **kwargs: Any) -> Self:
        """Make communication ready, unless it is.

        Args:
            kwargs: For `init_group`.

        Returns:
            This object.
        """
        if not self.is_initialized():
            self.init_group(**kwargs)
        return self

    def create_group(self, **kwargs: Any) -> Self:
        """Make the group that this object works with.

        Args:
            kwargs: For `new_group`.

        Returns:
            This object.

        Raises:
            RuntimeError: It has one.
        """
        if self._group is not None:
            raise RuntimeError(
                f"`{type(self).__name__}` already owns a group, and works with one only."
                " Call `teardown()` first, or make another object."
            )
        self._group = self.new_group(**kwargs)
        return self

    def teardown(self) -> Self:
        """Give the group back.

        Returns:
            This object, which may make another group.

        Raises:
            RuntimeError: It has none.
        """
        if self._group is None:
            raise RuntimeError(
                f"`{type(self).__name__}` does not own a group to destroy."
                " Call `teardown()` once for each `create_group()`."
            )
        self.destroy_group(self._group)
        self._group = None
        return self
