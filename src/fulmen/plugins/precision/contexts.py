"""Contexts that are made once and entered at every step, also inside themselves."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fulmen.utilities.tree import apply_to_collection

__all__ = ["DefaultDtype", "ReusableAutocast", "convert_floats"]


class DefaultDtype:
    """Makes new float tensors of one type inside the block.

    Args:
        dtype: A floating point type.
    """

    __slots__ = ("_previous", "dtype")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._previous: list[torch.dtype] = []

    def __enter__(self) -> None:
        """Set the default type."""
        self._previous.append(torch.get_default_dtype())
        torch.set_default_dtype(self.dtype)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the previous default type back."""
        torch.set_default_dtype(self._previous.pop())


class ReusableAutocast:
    """`torch.autocast` that may be entered again and inside itself.

    One `torch.autocast` object remembers one previous state only, so each level of nesting gets its own.

    Args:
        device_type: "cuda", "cpu", "mps" ...
        dtype: The lower precision.
        cache_enabled: Keep the converted weights until the outermost block ends.
    """

    __slots__ = ("_entered", "_idle", "_settings")

    def __init__(self, device_type: str, dtype: torch.dtype, *, cache_enabled: bool) -> None:
        self._settings: dict[str, Any] = {"device_type": device_type, "dtype": dtype, "cache_enabled": cache_enabled}
        self._idle: list[torch.autocast] = [torch.autocast(**self._settings)]
        self._entered: list[torch.autocast] = []

    def __enter__(self) -> None:
        """Switch autocast on."""
        context = self._idle.pop() if self._idle else torch.autocast(**self._settings)
        context.__enter__()  # type: ignore[no-untyped-call]  # of torch
        self._entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the previous state back."""
        context = self._entered.pop()
        self._idle.append(context)
        context.__exit__(kind, error, traceback)


def convert_floats(data: Any, dtype: torch.dtype) -> Any:
    """Convert the floating point tensors of a collection; integers, booleans and everything else stay.

    Args:
        data: Tensors nested in collections.
        dtype: The type they get.

    Returns:
        The collection; a tensor of that type already is not copied.
    """
    return apply_to_collection(data, Tensor, _convert_float, dtype)


def _convert_float(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
