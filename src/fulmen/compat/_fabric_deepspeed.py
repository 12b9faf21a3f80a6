"""`DeepSpeedStrategy` as `lightning.fabric.strategies` has it."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fulmen.compat._fabric_strategies import _AsInFabric, _Filter
from fulmen.compat.other_name import OtherName
from fulmen.strategies import deepspeed
from fulmen.strategies.process_group import DEFAULT_TIMEOUT
from fulmen.utilities.types import _PATH

if TYPE_CHECKING:
    import torch

    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.precision.precision import Precision

__all__ = ["DeepSpeedStrategy"]


class DeepSpeedStrategy(_AsInFabric, deepspeed.DeepSpeedStrategy, metaclass=OtherName):  # type: ignore[misc]  # as in Fabric
    """As `fulmen.strategies.DeepSpeedStrategy`, with `precision` for `precision_plugin`."""

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        zero_optimization: bool = True,
        stage: int = 2,
        remote_device: str | None = None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_params_device: str = "cpu",
        nvme_path: str = "/local_nvme",
        params_buffer_count: int = 5,
        params_buffer_size: int = 100_000_000,
        max_in_cpu: int = 1_000_000_000,
        offload_optimizer_device: str = "cpu",
        optimizer_buffer_count: int = 4,
        block_size: int = 1048576,
        queue_depth: int = 8,
        single_submit: bool = False,
        overlap_events: bool = True,
        thread_count: int = 1,
        pin_memory: bool = False,
        sub_group_size: int = 1_000_000_000_000,
        contiguous_gradients: bool = True,
        overlap_comm: bool = True,
        allgather_partitions: bool = True,
        reduce_scatter: bool = True,
        allgather_bucket_size: int = 200_000_000,
        reduce_bucket_size: int = 200_000_000,
        zero_allow_untested_optimizer: bool = True,
        logging_batch_size_per_gpu: str | int | None = None,
        config: _PATH | dict[str, Any] | None = None,
        logging_level: int = logging.WARN,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        loss_scale: float = 0,
        initial_scale_power: int = 16,
        loss_scale_window: int = 1000,
        hysteresis: int = 2,
        min_loss_scale: int = 1,
        partition_activations: bool = False,
        cpu_checkpointing: bool = False,
        contiguous_memory_optimization: bool = False,
        synchronize_checkpoint_boundary: bool = False,
        load_full_weights: bool = False,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        exclude_frozen_parameters: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "precision")}
        super().__init__(**arguments, precision_plugin=precision)

    def save_checkpoint(  # type: ignore[override]  # as in Fabric
        self, path: _PATH, state: dict[str, Any], storage_options: Any | None = None, filter: _Filter | None = None
    ) -> None:
        """Save an engine, with its optimizer, and plain values in one folder.

        Args:
            path: Where to.
            state: Name to engine, optimizer, anything with `state_dict`, or plain value.
            storage_options: Not supported.
            filter: Not supported.
        """
        deepspeed.DeepSpeedStrategy.save_state(self, path, state, storage_options, filter)
