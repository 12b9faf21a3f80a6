"""Communication of a process with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.plugins.collectives.collective import Collective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SingleDeviceCollective"]


class SingleDeviceCollective(Collective):
    """A group of one process, so that the same code runs without others. What one process sends, nobody receives."""

    @property
    def rank(self) -> int:
        """0."""
        return 0

    @property
    def world_size(self) -> int:
        """1."""
        return 1

    def broadcast(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the tensor."""
        return tensor

    def all_reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the tensor."""
        return tensor

    def reduce(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the tensor."""
        return tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, **__: Any) -> list[Tensor]:
        """Copy the tensor into the list."""
        tensor_list[0].copy_(tensor)
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor] | None = None, *_: Any, **__: Any) -> list[Tensor]:
        """Copy the tensor into the list; without one return a new list of the tensor itself."""
        if not gather_list:
            return [tensor]
        gather_list[0].copy_(tensor)
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """Copy the entry of the list into the tensor."""
        return tensor.copy_(scatter_list[0])

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], *_: Any, **__: Any) -> Tensor:
        """Copy the entry of the list into the output."""
        return output.copy_(input_list[0])

    def all_to_all(
        self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        """Copy the entry of the input into the output."""
        output_tensor_list[0].copy_(input_tensor_list[0])
        return output_tensor_list

    def send(self, *_: Any, **__: Any) -> None:
        """Nobody to send to."""

    def recv(self, tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the tensor."""
        return tensor

    def barrier(self, *_: Any, **__: Any) -> None:
        """Nobody to wait for."""

    @classmethod
    def is_available(cls) -> bool:
        """Return True."""
        return True

    @classmethod
    def is_initialized(cls) -> bool:
        """Return True."""
        return True

    @classmethod
    def init_group(cls, **_: Any) -> None:
        """Nothing to make ready."""

    @classmethod
    def new_group(cls, **_: Any) -> object:
        """Return something that stands for the group."""
        return object()

    @classmethod
    def destroy_group(cls, group: object) -> None:
        """Nothing to give back."""
