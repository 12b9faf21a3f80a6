"""Recognizing that memory ran out, and freeing it."""

import pytest
import torch

from fulmen.utilities.memory import (
    garbage_collection_cuda,
    is_cuda_out_of_memory,
    is_cudnn_snafu,
    is_oom_error,
    is_out_of_cpu_memory,
    recursive_detach,
)


@pytest.mark.parametrize(
    ("error", "recognize"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), is_cuda_out_of_memory),
        (RuntimeError("CUDA error: out of memory"), is_cuda_out_of_memory),
        (torch.cuda.OutOfMemoryError("no more"), is_cuda_out_of_memory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. Non-contiguous"), is_cudnn_snafu),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), is_out_of_cpu_memory),
        (MemoryError(), is_out_of_cpu_memory),
    ],
)
def test_errors_of_memory_are_recognized(error, recognize):
    assert recognize(error)
    assert is_oom_error(error)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device lost"), ValueError("CUDA out of memory")])
def test_other_errors_are_not(error):
    assert not is_oom_error(error)


def test_a_real_allocation_that_is_too_big_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)

    assert is_out_of_cpu_memory(caught.value)


def test_detaching_keeps_the_structure_and_the_values():
    weight = torch.ones(2, requires_grad=True)

    detached = recursive_detach({"loss": weight.sum(), "nested": [weight], "name": "x"}, to_cpu=True)

    assert not detached["loss"].requires_grad
    assert not detached["nested"][0].requires_grad
    assert (float(detached["loss"]), detached["name"]) == (2.0, "x")


def test_collecting_garbage_works_without_a_gpu():
    garbage_collection_cuda()
