"""The tensor parallel strategy as `lightning.fabric.strategies` has it; apart, as it loads torch's sharded tensors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fulmen.compat._fabric_strategies import _AsInFabric
from fulmen.compat.other_name import OtherName
from fulmen.strategies import model_parallel
from fulmen.strategies.process_group import DEFAULT_TIMEOUT

__all__ = ["ModelParallelStrategy"]


class ModelParallelStrategy(_AsInFabric, model_parallel.ModelParallelStrategy, metaclass=OtherName):  # type: ignore[misc]  # as in Fabric
    """As `fulmen.strategies.ModelParallelStrategy`, with the function that divides the module as first argument.

    Args:
        parallelize_fn: Gets the module and the mesh, and divides the module in place.
        data_parallel_size: Number of groups of processes with batches of their own.
        tensor_parallel_size: Number of processes that have a model together.
        save_distributed_checkpoint: Write folders of shards rather than files.
        process_group_backend: What moves the tensors.
        timeout: How long a process waits for the others.
    """

    is_other_name = True

    def __init__(
        self,
        parallelize_fn: Callable[[nn.Module, DeviceMesh], nn.Module],
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
            timeout,
            parallelize=parallelize_fn,
        )
