"""Tensors that ranks have changed each for itself, made the same again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fulmen.utilities.sharded_gradients import has_shards

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["take_from_first_rank"]


@torch.no_grad()
def take_from_first_rank(trainer: Trainer, tensors: Iterable[Tensor]) -> None:
    """Give all ranks the values of rank 0, in place; all must call.

    Args:
        trainer: The running Trainer.
        tensors: As many, and of the same shapes, on each rank. Those that are divided among ranks are left alone: what
            a rank has of them is not meant to be what rank 0 has.
    """
    mine = [tensor for tensor in tensors if not has_shards([tensor])]
    of_first = trainer.strategy.broadcast([tensor.detach().cpu() for tensor in mine])
    for tensor, value in zip(mine, of_first, strict=True):
        tensor.copy_(value)
