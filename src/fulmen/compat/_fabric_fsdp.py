"""`FSDPStrategy` as `lightning.fabric.strategies` has it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen.compat._fabric_strategies import _AsInFabric
from fulmen.compat.other_name import OtherName
from fulmen.strategies import fsdp
from fulmen.strategies.fsdp_arguments import StrategyName
from fulmen.strategies.fsdp_wrapping import Policy
from fulmen.strategies.process_group import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import (
        CPUOffload,
        CPUOffloadPolicy,
        MixedPrecision,
        MixedPrecisionPolicy,
        ShardingStrategy,
    )

    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.precision.precision import Precision

__all__ = ["FSDPStrategy"]


class FSDPStrategy(_AsInFabric, fsdp.FSDPStrategy, metaclass=OtherName):  # type: ignore[misc]  # methods as in Fabric
    """As `fulmen.strategies.FSDPStrategy`; checkpoints are folders of shards by default.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is.
        precision: The number format.
        process_group_backend: What moves the tensors.
        timeout: How long a process waits for the others.
        cpu_offload: Keep shards in host memory.
        mixed_precision: In which types weights are gathered and gradients reduced.
        auto_wrap_policy: Which layers are units.
        activation_checkpointing: Classes of layers that compute their activations again.
        activation_checkpointing_policy: The same, or a function.
        sharding_strategy: What is sharded over which ranks.
        state_dict_type: Checkpoints are folders ("sharded") or files ("full").
        device_mesh: How the ranks are arranged.
        kwargs: Further arguments of `fully_shard` and `FullyShardedDataParallel`.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        cpu_offload: bool | CPUOffload | CPUOffloadPolicy | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Policy = None,
        activation_checkpointing: type[nn.Module] | list[type[nn.Module]] | None = None,
        activation_checkpointing_policy: Policy = None,
        sharding_strategy: StrategyName | ShardingStrategy = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "sharded",
        device_mesh: tuple[int, ...] | DeviceMesh | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            precision_plugin=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
            cpu_offload=cpu_offload,
            mixed_precision=mixed_precision,
            auto_wrap_policy=auto_wrap_policy,
            activation_checkpointing=activation_checkpointing,
            activation_checkpointing_policy=activation_checkpointing_policy,
            sharding_strategy=sharding_strategy,
            state_dict_type=state_dict_type,
            device_mesh=device_mesh,
            **kwargs,
        )
