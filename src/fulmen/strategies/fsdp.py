"""Weights, gradients and states of optimizers in shards, by `torch.distributed.fsdp.fully_shard` (FSDP2)."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.nn.modules.batchnorm import _BatchNorm

from fulmen.plugins.precision.fsdp import FSDPPrecision
from fulmen.strategies.fsdp_arguments import Numbers, StrategyName, read_activation_policy, read_policy, read_settings
from fulmen.strategies.fsdp_wrapping import Policy, Units, choose_units, chosen_by, refuse_mixed_types
from fulmen.strategies.launchers.choice import StartMethod
from fulmen.strategies.process_group import DEFAULT_TIMEOUT
from fulmen.strategies.sharded import ShardedStrategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.fsdp_units import units_of
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["FSDPStrategy"]


class FSDPStrategy(ShardedStrategy):
    """Fully sharded data parallel training, for modules that are too large for one device, by FSDP2.

    Each rank holds 1/W of all weights, gradients and states of optimizers. The module is divided into units: before one
    computes, its weights are gathered from all ranks, and dropped afterwards; its gradients are averaged and divided
    during the backward pass. The results are those of `DDPStrategy`. It works on CPUs, too.

    The arguments are those of Lightning's strategy, which uses FSDP1; what FSDP2 can't do is refused. Keyword arguments
    of `fully_shard` and of `FullyShardedDataParallel` are taken as well.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
        process_group_backend: "nccl", "gloo", ...; by default torch's choice for the device.
        timeout: How long a collective waits for the other processes.
        cpu_offload: Keep shards, gradients and states of optimizers in host memory, where the optimizer updates them.
        mixed_precision: In which types weights are gathered and gradients reduced; by default as `precision` says.
        auto_wrap_policy: Which layers are units: a set of classes, a policy of `torch.distributed.fsdp.wrap`, or a
            function of `module`, `recurse`, `nonwrapped_numel`. By default the outermost layers that are repeated: of
            the same class in one `ModuleList`, `ModuleDict` or `Sequential`.
        activation_checkpointing: Classes of layers that compute their activations again in the backward pass.
        activation_checkpointing_policy: The same, or a function as for `auto_wrap_policy`.
        sharding_strategy: "FULL_SHARD"; "SHARD_GRAD_OP" keeps weights gathered between forward and backward pass;
            "HYBRID_SHARD" shards within groups of ranks and replicates over them; "NO_SHARD" replicates.
        state_dict_type: Checkpoints are one whole file ("full") or a folder into which each rank writes ("sharded").
        device_mesh: Number of ranks, for hybrid sharding a tuple (replicas, shards); or a `DeviceMesh`.
        start_method: How processes are made: "popen" reruns the script, "spawn", "fork" and "forkserver" run only the
            function.
        kwargs: Further arguments of `fully_shard` (`reshard_after_forward`, `shard_placement_fn`, `mp_policy`,
            `offload_policy`) and of `FullyShardedDataParallel` (`ignored_states`, `param_init_fn`, ...).

    Raises:
        ValueError: FSDP2 can't do what an argument asks for, or arguments exclude each other.
        TypeError: An argument is unknown.
        RuntimeError: Hybrid sharding, and nothing says how the ranks are divided.

    Example::

        Trainer(devices=8, strategy=FSDPStrategy(auto_wrap_policy={Block}, activation_checkpointing_policy={Block}))
    """

    strategy_name = "fsdp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        cpu_offload: bool | CPUOffload | CPUOffloadPolicy | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Policy = None,
        activation_checkpointing: type[nn.Module] | list[type[nn.Module]] | None = None,
        activation_checkpointing_policy: Policy = None,
        sharding_strategy: StrategyName | ShardingStrategy = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "full",
        device_mesh: tuple[int, ...] | DeviceMesh | None = None,
        *,
        start_method: StartMethod = "popen",
        **kwargs: Any,
    ) -> None:
        if state_dict_type not in ("full", "sharded"):
            raise ValueError(
                f"`FSDPStrategy(state_dict_type={state_dict_type!r})` is not known. Choose 'full' (one file) or"
                " 'sharded' (a folder)."
            )
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
            saves_shards=state_dict_type == "sharded",
        )
        self._settings = read_settings(
            sharding_strategy=sharding_strategy,
            mixed_precision=mixed_precision,
            cpu_offload=cpu_offload,
            auto_wrap_policy=auto_wrap_policy,
            device_mesh=device_mesh,
            kwargs=kwargs,
        )
        self._auto_wrap_policy = read_policy("auto_wrap_policy", auto_wrap_policy)
        self._activation_policy = read_activation_policy(activation_checkpointing, activation_checkpointing_policy)
        self._mesh_asked_for = device_mesh
        self.kwargs = kwargs

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its names.

        Args:
            strategy_registry: Where to enter it.
        """
        strategy_registry.register("fsdp", cls, description="Fully sharded data parallel training (FSDP2)")
        strategy_registry.register(
            "fsdp_cpu_offload", cls, description="as fsdp, with shards in host memory", cpu_offload=True
        )

    @classmethod
    def get_registered_strategies(cls) -> list[str]:
        """Return the names of this class."""
        return ["fsdp", "fsdp_cpu_offload"]

    # ---- settings

    @property
    def sharding_strategy(self) -> ShardingStrategy:
        """What is sharded over which ranks."""
        return self._settings.sharding_strategy

    @property
    def cpu_offload(self) -> OffloadPolicy:
        """Where shards are kept."""
        policy = self._settings.offload_policy
        if not isinstance(policy, bool):
            return policy
        return CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda") if policy else OffloadPolicy()

    @property
    def mixed_precision(self) -> MixedPrecisionPolicy | None:
        """In which types weights are gathered and gradients reduced; `None`: as the precision says."""
        return None if self._settings.numbers is None else self._settings.numbers.unit

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """In which types weights are gathered and gradients reduced."""
        return self._numbers().unit

    def _numbers(self) -> Numbers:
        if self._settings.numbers is not None:
            return self._settings.numbers
        precision = self.precision_plugin
        policy = MixedPrecisionPolicy()
        if isinstance(precision, FSDPPrecision):
            policy = precision.mixed_precision_config
        return Numbers(unit=policy, root=policy, buffer_dtype=None, kept_in_32_bit=(_BatchNorm,))

    def complete(self, **parts: Any) -> None:
        """Fill in the parts that did not come with the strategy.

        Args:
            parts: As for every strategy.

        Raises:
            MisconfigurationException: The precision scales gradients and does not know of shards.
        """
        super().complete(**parts)
        precision = self.precision_plugin
        if getattr(precision, "scaler", None) is not None and not isinstance(precision, FSDPPrecision):
            raise MisconfigurationException(
                f"`{type(precision).__name__}` scales gradients, and with shards each rank would decide alone whether"
                " to leave a step out. Use `FSDPPrecision('16-mixed', scaler=...)`, or `precision='16-mixed'`."
            )

    # ---- the mesh and the shards

    def _make_mesh(self) -> DeviceMesh:
        asked, size = self._mesh_asked_for, self.world_size
        if isinstance(asked, DeviceMesh):
            shape: tuple[int, ...] = tuple(asked.shape)
        elif asked is not None:
            shape = asked
        elif self._settings.is_hybrid:
            shape = (self.num_nodes, size // self.num_nodes)
        else:
            shape = (size,)
        if torch.Size(shape).numel() != size:
            raise MisconfigurationException(
                f"`FSDPStrategy(device_mesh={asked!r})` arranges {torch.Size(shape).numel()} ranks, but there are"
                f" {size}. Change it, or `devices` and `num_nodes`."
            )
        resharded = self._settings.reshard_after_forward
        if not isinstance(resharded, bool) and shape[-1] % resharded:
            raise MisconfigurationException(
                f"`FSDPStrategy(reshard_after_forward={resharded})` divides weights among {resharded} ranks for the"
                f" backward pass, and {shape[-1]} ranks have them. Choose a divisor of {shape[-1]}, or a bool."
            )
        if isinstance(asked, DeviceMesh):
            return asked
        if self.sharding_strategy is ShardingStrategy.NO_SHARD:
            return self._mesh_of((size, 1), ("replicate", "shard"))
        return self._mesh_of(shape, ("shard",) if len(shape) == 1 else ("replicate", "shard"))

    def _shard(self, module: nn.Module, *, is_manual: bool) -> None:
        numbers, ignored = self._numbers(), self._settings.ignored_parameters(module)
        roots = _roots_of(module, ignored, is_manual=is_manual)
        units = choose_units(
            module,
            self._auto_wrap_policy,
            ignored=ignored,
            own_units=tuple(roots.values()) if is_manual else (),
            kept_in_32_bit=numbers.kept_in_32_bit if numbers.unit.param_dtype is not None else (),
        )
        self._refuse_split_ties(roots, units, is_manual=is_manual)
        _refuse_scalars(module, ignored)
        if isinstance(self._auto_wrap_policy, set) and not units and not units_of(module):
            _warn_without_layers("auto_wrap_policy", self._auto_wrap_policy, module, "the module is one unit")
        refuse_mixed_types(roots, units, ignored)
        if not units_of(module):
            self._checkpoint_activations(module, ignored)
        tops = {id(root) for root in roots.values()}

        def cut(layer: nn.Module) -> None:
            if isinstance(layer, FSDPModule):
                return
            if id(layer) in tops:
                self._cut_layer(layer, ignored, mp_policy=numbers.root)
            elif layer in units:
                own = {"mp_policy": numbers.unit, "reshard_after_forward": self._settings.reshard_after_forward}
                self._cut_layer(layer, ignored, **{**own, **units[layer]})

        self._ready_layers(module, cut, is_sent=self._settings.is_sent, init=self._settings.param_init_fn)
        if numbers.buffer_dtype is not None:
            _convert_buffers(module, numbers.buffer_dtype)
        if self._settings.prefetches_forward:
            _prefetch_forward(module)

    def _cut_layer(self, layer: nn.Module, ignored: set[nn.Parameter], **arguments: Any) -> None:
        fully_shard(
            layer,
            mesh=self.device_mesh,
            offload_policy=self.cpu_offload,
            shard_placement_fn=self._settings.shard_placement_fn,
            ignored_params=ignored,
            **arguments,
        )

    def _refuse_split_ties(self, roots: dict[str, nn.Module], units: Units, *, is_manual: bool) -> None:
        """With manual optimization each network is gathered by itself, so they can't share parameters."""
        torn = [name for name, root in roots.items() if is_manual and root not in units]
        torn = [name for name in torn if not isinstance(roots[name], FSDPModule)]
        if torn:
            raise MisconfigurationException(
                f"{torn} share parameters with other children of the LightningModule, and with manual optimization FSDP"
                " gathers each of them by itself. Put those that share into one child module, or set"
                " `automatic_optimization = True`."
            )

    def _checkpoint_activations(self, module: nn.Module, ignored: set[nn.Parameter]) -> None:
        if self._activation_policy is None:
            return
        chosen = chosen_by(self._activation_policy, module, ignored)
        if not chosen:
            _warn_without_layers("activation_checkpointing_policy", self._activation_policy, module, "nothing is saved")
        for layer in chosen:
            checkpoint(layer)


def _roots_of(module: nn.Module, ignored: set[nn.Parameter], *, is_manual: bool) -> dict[str, nn.Module]:
    """What is gathered from the outside, by name: the module, or the networks of manual optimization.

    Backward passes inside `training_step` drop the weights of what they went through, and the call of the module
    gathers its own only once. So each child must do that for itself.
    """
    if not is_manual:
        return {"": module}
    loose = [name for name, each in module.named_parameters(recurse=False) if each not in ignored]
    if loose:
        raise MisconfigurationException(
            f"With manual optimization FSDP gathers the weights of each child module when it is called, but {loose}"
            f" belong to the `{type(module).__name__}` itself. Put them into a child module with a `forward`, or pass"
            " them in `FSDPStrategy(ignored_states=...)`, if they are not trained."
        )
    roots: dict[str, nn.Module] = {}

    def collect(parent: nn.Module, prefix: str) -> None:
        for name, child in parent.named_children():
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                collect(child, f"{prefix}{name}.")
            elif any(parameter not in ignored for parameter in child.parameters()):
                roots[f"{prefix}{name}"] = child

    collect(module, "")
    return roots


def _refuse_scalars(module: nn.Module, ignored: set[nn.Parameter]) -> None:
    scalars = [name for name, each in module.named_parameters() if each.ndim == 0 and each not in ignored]
    if scalars:
        raise MisconfigurationException(
            f"FSDP divides parameters along their first dimension, which {scalars} of `{type(module).__name__}` lack."
            " Give them one (`nn.Parameter(torch.ones(1))`), or, if they are not trained, pass them in"
            " `FSDPStrategy(ignored_states=...)`."
        )


def _warn_without_layers(name: str, policy: Policy, module: nn.Module, consequence: str) -> None:
    rank_zero_warn(
        f"`FSDPStrategy({name}={policy!r})` fits no layer of `{type(module).__name__}`, so {consequence}. Name classes"
        " of its layers."
    )


def _convert_buffers(module: nn.Module, dtype: torch.dtype) -> None:
    for layer in module.modules():
        for name, buffer in layer._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                layer._buffers[name] = buffer.to(dtype)


def _prefetch_forward(module: nn.Module) -> None:
    for unit, following in pairwise(units_of(module)):
        unit.set_modules_to_forward_prefetch([following])
