"""Gradients of an optimizer as a whole, averaged over ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.strategies.strategy import Strategy

__all__ = ["average_gradients"]

_BUCKET_BYTES = 25 * 2**20  # exchanged at once, as by torch's wrapper


def average_gradients(strategy: Strategy, optimizer: Optimizer) -> None:
    """Average gradients over ranks that were accumulated without doing so; all ranks must call it.

    Args:
        strategy: What the ranks talk through.
        optimizer: Whose parameters are meant. One that no rank has used keeps having no gradient.
    """
    if strategy.average_accumulated():
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    used = strategy.agree([int(parameter.grad is not None) for parameter in parameters], op="max")
    gradients: list[Tensor] = []
    for parameter in (each for each, is_used in zip(parameters, used, strict=True) if is_used):
        if parameter.grad is None:  # only other ranks have used it
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = bucket[0] if len(bucket) == 1 else torch.cat([gradient.reshape(-1) for gradient in bucket])
        mean = strategy.all_reduce(flat, reduce_op="mean")
        parts = [mean] if len(bucket) == 1 else mean.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Divide gradients into groups of one type and device, of a size that is worth a copy; sparse ones stay alone."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for gradient in gradients:
        if bucket and (num_bytes >= _BUCKET_BYTES or not _go_together(bucket[0], gradient)):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(gradient)
        num_bytes += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket


def _go_together(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and not one.is_sparse and not other.is_sparse
