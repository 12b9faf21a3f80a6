"""Memory of devices: freeing it, and recognizing that it ran out."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from fulmen.utilities.tree import apply_to_collection

__all__ = [
    "copy_to_host",
    "garbage_collection_cuda",
    "is_cuda_out_of_memory",
    "is_cudnn_snafu",
    "is_oom_error",
    "is_out_of_cpu_memory",
    "recursive_detach",
]


def copy_to_host(tensor: Tensor) -> Tensor:
    """Return a copy in host memory that shares nothing with the tensor.

    Args:
        tensor: A tensor on any device.
    """
    return tensor.detach().to("cpu", copy=True)


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """Detach all tensors in a collection from their graph.

    Args:
        in_dict: The collection, usually a dictionary.
        to_cpu: Move the tensors to the CPU as well.

    Returns:
        A collection like it with detached tensors.
    """

    def detach(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if to_cpu else tensor.detach()

    return apply_to_collection(in_dict, Tensor, detach)


def is_oom_error(exception: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on a GPU or on the CPU."""
    return is_cuda_out_of_memory(exception) or is_cudnn_snafu(exception) or is_out_of_cpu_memory(exception)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Tell whether an exception means that the memory of a CUDA device ran out."""
    if isinstance(exception, torch.cuda.OutOfMemoryError):
        return True
    text = str(exception)
    return isinstance(exception, RuntimeError) and "CUDA" in text and "out of memory" in text


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Tell whether an exception is cuDNN's way to say that memory ran out."""
    return isinstance(exception, RuntimeError) and "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in str(exception)


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Tell whether an exception means that the memory of the CPU ran out."""
    if isinstance(exception, MemoryError):
        return True
    return isinstance(exception, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(exception)


def garbage_collection_cuda() -> None:
    """Collect garbage and give cached CUDA memory back to the device."""
    gc.collect()
    try:
        torch.cuda.empty_cache()  # nothing if CUDA was not used
    except RuntimeError as error:
        if not is_oom_error(error):  # freeing may itself report that memory ran out
            raise
