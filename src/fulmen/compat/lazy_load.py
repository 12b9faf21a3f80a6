"""Reading large files of weights piece by piece, and giving memory to modules that have none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.strategies.late_weights import LateWeights
from fulmen.utilities.plain_data import explain_refusal
from fulmen.utilities.tree import apply_to_collection
from fulmen.utilities.types import _PATH

__all__ = ["NotYetLoadedTensor", "lazy_load", "materialize", "materialize_meta"]


class NotYetLoadedTensor:
    """What programs compare tensors of `lazy_load` with; none is one, as all can be used at once."""


def lazy_load(filename: _PATH) -> Any:
    """Load a file whose tensors are read from it only as they are used.

    The tensors are mapped into memory, on the CPU: usable at once, and the file must stay as it is while they are used.

    Args:
        filename: A local file of `torch.save`, with tensors and plain data only.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: There is no such file.
        pickle.UnpicklingError: It holds something else, which could run code.
    """
    if not Path(filename).is_file():
        raise FileNotFoundError(
            f"The path {str(filename)!r} does not exist or is not a file, so there is nothing to load. Check the name."
        )
    try:
        return torch.load(filename, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise explain_refusal(error, filename) from error


def materialize(collection: Any) -> Any:
    """Read all tensors of a collection into memory, so that the file they come from is not needed any more.

    Args:
        collection: What `lazy_load` returned, or a part of it.

    Returns:
        The collection with tensors of its own.
    """
    return apply_to_collection(collection, Tensor, _own_copy)


def materialize_meta(module: nn.Module, device: torch.device) -> None:
    """Give the tensors of a module that was made on the meta device memory, and values by `reset_parameters`.

    Args:
        module: Modified in place.
        device: Where to.

    Raises:
        RuntimeError: A layer has no `reset_parameters`.
    """
    weights = LateWeights(module, device)
    for name, layer in module.named_modules():
        weights.fill(layer, name)
    weights.refuse_unfilled()


def _own_copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)
