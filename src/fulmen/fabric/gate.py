"""A guard against `loss.backward()` where the strategy or the precision must run the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from typing_extensions import Self

from fulmen.utilities.tree import apply_to_collection

__all__ = ["BackwardGate"]


class BackwardGate:
    """Knows whether a backward pass was started by `fabric.backward`; one object per Fabric.

    Args:
        is_needed: Whether a plain `loss.backward()` would be wrong.
    """

    __slots__ = ("is_needed", "is_open")

    def __init__(self, is_needed: bool) -> None:
        self.is_needed = is_needed
        self.is_open = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy of a module belongs to the same Fabric

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let gradients pass inside the block."""
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def watch(self, output: Any) -> None:
        """Check the gradients that reach the tensors of a module's output.

        Args:
            output: Tensors nested in collections.
        """
        apply_to_collection(output, Tensor, self._watch_tensor)

    def _watch_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:  # not for parameters, which would collect hooks
            tensor.register_hook(self._check)  # type: ignore[no-untyped-call]  # of torch
        return tensor

    def _check(self, gradient: Tensor) -> None:
        if not self.is_open:
            raise RuntimeError(
                "`loss.backward()` was called, but the strategy or precision in use must run the backward pass itself,"
                " e.g. to scale the loss. Call `fabric.backward(loss)`."
            )
