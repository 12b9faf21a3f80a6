"""What the arguments of FSDP1, which Lightning's strategy takes, mean for `fully_shard` (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    BackwardPrefetch,
    CPUOffload,
    CPUOffloadPolicy,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
)
from torch.nn.modules.batchnorm import _BatchNorm

from fulmen.strategies.fsdp_wrapping import Policy

__all__ = ["Numbers", "Settings", "StrategyName", "read_activation_policy", "read_policy", "read_settings"]

StrategyName: TypeAlias = Literal["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"]

_HYBRID = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2)
_RESHARDS = (ShardingStrategy.FULL_SHARD, ShardingStrategy.HYBRID_SHARD)

# what is refused, for which values it may be given all the same, and what to do instead
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_orig_params": (
        lambda value: value is True,
        "FSDP2 has no flat parameters: optimizers always see the module's own. Leave it out",
    ),
    "limit_all_gathers": (
        lambda value: value is True,
        "FSDP2 always limits how many units are gathered at once. Leave it out",
    ),
    "backward_prefetch": (
        lambda value: value is BackwardPrefetch.BACKWARD_PRE,
        "FSDP2 always gathers the next unit before the gradients of this one are computed, as `BACKWARD_PRE` does."
        " Leave it out",
    ),
    "process_group": (
        lambda value: value is None,
        "FSDP2 places parameters on a mesh. Pass `device_mesh`: a tuple (replicas, shards) or a `DeviceMesh`",
    ),
    "device_id": (
        lambda value: value is None,
        "the device of a process follows from `accelerator` and `devices` of the Trainer or Fabric. Leave it out",
    ),
    "mesh": (lambda value: False, "its name here is `device_mesh`. Pass it under that name"),
    "dp_mesh_dims": (
        lambda value: value is None,
        "it is for modules that are tensor-parallel, too. Use `ModelParallelStrategy`",
    ),
}
_KNOWN = (
    *("reshard_after_forward", "shard_placement_fn", "mp_policy", "offload_policy", "ignored_params"),
    *("ignored_modules", "ignored_states", "param_init_fn", "sync_module_states", "forward_prefetch"),
)


@dataclass(frozen=True, slots=True)
class Numbers:
    """In which types a unit is gathered and reduced."""

    unit: MixedPrecisionPolicy
    root: MixedPrecisionPolicy
    """For the module as a whole, whose inputs FSDP1 converts by another rule."""
    buffer_dtype: torch.dtype | None
    kept_in_32_bit: tuple[type[nn.Module], ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `FSDPStrategy`, checked, in terms of `fully_shard`."""

    sharding_strategy: ShardingStrategy
    reshard_after_forward: bool | int
    offload_policy: OffloadPolicy | bool
    """True: to the CPU; whether its memory is pinned depends on the device."""
    numbers: Numbers | None
    """`None`: as the precision says."""
    shard_placement_fn: Callable[..., Any] | None
    ignored: tuple[Any, ...]
    """Parameters and modules that stay whole."""
    param_init_fn: Callable[[nn.Module], Any] | None
    is_sent: bool
    """Whether the first weights are those of rank 0; otherwise they are the same everywhere already."""
    prefetches_forward: bool

    @property
    def is_hybrid(self) -> bool:
        """Whether the mesh has replicas of shards."""
        return self.sharding_strategy in _HYBRID

    def ignored_parameters(self, module: nn.Module) -> set[nn.Parameter]:
        """Return the parameters of a module that stay whole."""
        chosen = {id(each) for each in self.ignored}
        found = {parameter for parameter in module.parameters() if id(parameter) in chosen}
        for layer in module.modules():
            if id(layer) in chosen:
                found.update(layer.parameters())
        return found


def read_settings(
    *,
    sharding_strategy: StrategyName | ShardingStrategy,
    mixed_precision: MixedPrecision | MixedPrecisionPolicy | None,
    cpu_offload: bool | CPUOffload | CPUOffloadPolicy | None,
    auto_wrap_policy: Policy,
    device_mesh: tuple[int, ...] | DeviceMesh | None,
    kwargs: Mapping[str, Any],
) -> Settings:
    """Check the arguments, together, and say what they mean.

    Raises:
        TypeError: An argument that neither FSDP has, or of another type.
        ValueError: A value that FSDP2 can't do, or arguments that exclude each other.
        RuntimeError: Hybrid sharding, and nothing says how the ranks are divided.
    """
    _refuse(kwargs)
    strategy = _read_strategy(sharding_strategy)
    _check_mesh(strategy, device_mesh, auto_wrap_policy)
    mixed = _one_of("mixed_precision", mixed_precision, "mp_policy", kwargs)
    placement = kwargs.get("shard_placement_fn")
    ignored = [
        each for name in ("ignored_modules", "ignored_states", "ignored_params") for each in kwargs.get(name) or ()
    ]
    for each in ignored:
        if not isinstance(each, (nn.Parameter, nn.Module)):
            raise TypeError(
                f"`FSDPStrategy(ignored_states=...)` has {each!r}, which is neither a parameter nor a module. Pass"
                " parameters or modules of the module that is trained."
            )
    if not callable(kwargs.get("param_init_fn") or callable):
        raise TypeError(
            f"`FSDPStrategy(param_init_fn={kwargs['param_init_fn']!r})` is no function. Pass one that gets a layer and"
            " fills its own parameters and buffers."
        )
    return Settings(
        sharding_strategy=strategy,
        reshard_after_forward=_read_reshard(strategy, kwargs.get("reshard_after_forward")),
        offload_policy=_read_offload(_one_of("cpu_offload", cpu_offload, "offload_policy", kwargs)),
        numbers=None if mixed is None else _read_numbers(mixed),
        shard_placement_fn=placement,
        ignored=tuple(ignored),
        param_init_fn=kwargs.get("param_init_fn"),
        is_sent=bool(kwargs.get("sync_module_states", True)),
        prefetches_forward=bool(kwargs.get("forward_prefetch", False)),
    )


def read_activation_policy(classes: Any, policy: Policy) -> Policy:
    """Return which layers compute their activations again in the backward pass, `None` for none.

    Raises:
        ValueError: Both arguments are given.
    """
    if classes is None:
        return read_policy("activation_checkpointing_policy", policy)
    if policy is not None:
        raise ValueError(
            "`FSDPStrategy` got `activation_checkpointing` and `activation_checkpointing_policy`, which say the same."
            " Pass the second one only."
        )
    return read_policy("activation_checkpointing", {classes} if isinstance(classes, type) else classes)


def read_policy(name: str, policy: Any) -> Policy:
    """Return which layers are meant; classes in any collection become a set.

    Args:
        name: The argument.
        policy: Its value.

    Raises:
        TypeError: It is no policy.
    """
    if isinstance(policy, (set, frozenset, list, tuple)) and all(isinstance(each, type) for each in policy):
        return set(policy)
    if policy is None or callable(policy):  # torch's policies are, too
        chosen: Policy = policy
        return chosen
    raise TypeError(
        f"`FSDPStrategy({name}={policy!r})` does not say which layers are meant. Pass a set of their classes, e.g."
        " `{Block}`, a policy of `torch.distributed.fsdp.wrap`, or a function of `module`, `recurse` and"
        " `nonwrapped_numel`."
    )


def _refuse(kwargs: Mapping[str, Any]) -> None:
    for name, value in kwargs.items():
        if name in _REFUSED:
            is_allowed, reason = _REFUSED[name]
            if not is_allowed(value):
                raise ValueError(f"`FSDPStrategy({name}={value!r})` is not possible: {reason}.")
        elif name not in _KNOWN:
            raise TypeError(
                f"`FSDPStrategy` got an argument {name!r}, which neither `fully_shard` nor `FullyShardedDataParallel`"
                f" has. Beside its own arguments it takes {sorted((*_KNOWN, *_REFUSED))}."
            )


def _one_of(name: str, value: Any, other_name: str, kwargs: Mapping[str, Any]) -> Any:
    other = kwargs.get(other_name)
    if value is not None and other is not None:
        raise ValueError(
            f"`FSDPStrategy` got `{name}={value!r}` and `{other_name}={other!r}`, which say the same. Pass one of them."
        )
    return value if other is None else other


def _read_strategy(value: Any) -> ShardingStrategy:
    if isinstance(value, ShardingStrategy):
        return value
    name = value.upper() if isinstance(value, str) else ""
    if name not in ShardingStrategy.__members__:
        raise ValueError(
            f"`FSDPStrategy(sharding_strategy={value!r})` is not known. Choose one of"
            f" {', '.join(map(repr, ShardingStrategy.__members__))}, or pass a `ShardingStrategy` of torch."
        )
    return ShardingStrategy[name]


def _check_mesh(strategy: ShardingStrategy, mesh: Any, policy: Policy) -> None:
    if mesh is None:
        if strategy in _HYBRID and policy is None:
            raise RuntimeError(
                f"`FSDPStrategy(sharding_strategy={strategy.name!r})` shards inside groups of ranks and replicates over"
                " the groups, and nothing says which. Pass `device_mesh=(replicas, shards)`, or an `auto_wrap_policy`,"
                " with which each machine is a group."
            )
        return
    if not isinstance(mesh, DeviceMesh) and not (
        isinstance(mesh, tuple) and mesh and all(type(size) is int and size > 0 for size in mesh)
    ):
        raise TypeError(
            f"`FSDPStrategy(device_mesh={mesh!r})` is no arrangement of ranks. Pass a tuple of their numbers, e.g."
            " (2, 4) for two replicas of four shards, or a `DeviceMesh`."
        )
    dims = mesh.ndim if isinstance(mesh, DeviceMesh) else len(mesh)
    expected = 2 if strategy in _HYBRID else 1
    if dims != expected:
        instead = "a tuple (replicas, shards)" if expected == 2 else "one number, or sharding_strategy='HYBRID_SHARD'"
        raise ValueError(
            f"`FSDPStrategy(sharding_strategy={strategy.name!r}, device_mesh={mesh!r})`: this strategy has a mesh of"
            f" {expected} dimension{'s' * (expected > 1)}, and this one has {dims}. Pass {instead}."
        )


def _read_reshard(strategy: ShardingStrategy, asked: bool | int | None) -> bool | int:
    if asked is None:
        return strategy in _RESHARDS
    if not isinstance(asked, int) or (not isinstance(asked, bool) and asked < 1):
        raise TypeError(
            f"`FSDPStrategy(reshard_after_forward={asked!r})` is not known. Pass True, False, or the number of ranks"
            " that keep the weights between forward and backward pass."
        )
    if strategy not in _RESHARDS:
        raise ValueError(
            f"`FSDPStrategy(sharding_strategy={strategy.name!r}, reshard_after_forward={asked!r})`: the first one says"
            " already that weights stay gathered until the backward pass. Pass one of them."
        )
    return asked


def _read_offload(value: Any) -> OffloadPolicy | bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, CPUOffload):
        return bool(value.offload_params)
    if isinstance(value, OffloadPolicy):
        return value
    raise TypeError(
        f"`FSDPStrategy(cpu_offload={value!r})` is not known. Pass True, a `CPUOffload`, or a `CPUOffloadPolicy` of"
        " `torch.distributed.fsdp`."
    )


def _read_numbers(value: Any) -> Numbers:
    if isinstance(value, MixedPrecisionPolicy):
        return Numbers(unit=value, root=value, buffer_dtype=None, kept_in_32_bit=(_BatchNorm,))
    if not isinstance(value, MixedPrecision):
        raise TypeError(
            f"`FSDPStrategy(mixed_precision={value!r})` is not known. Pass a `MixedPrecision` or a"
            " `MixedPrecisionPolicy` of `torch.distributed.fsdp`."
        )
    if value.keep_low_precision_grads:
        raise ValueError(
            "`MixedPrecision(keep_low_precision_grads=True)` is not possible: FSDP2 keeps gradients in the type of the"
            " parameters. Leave it out, or use `precision='bf16-true'`."
        )
    types = {"param_dtype": value.param_dtype, "reduce_dtype": value.reduce_dtype}
    return Numbers(
        unit=MixedPrecisionPolicy(**types, cast_forward_inputs=value.cast_forward_inputs),
        root=MixedPrecisionPolicy(**types, cast_forward_inputs=value.cast_root_forward_inputs),
        buffer_dtype=value.buffer_dtype,
        kept_in_32_bit=tuple(_classes(value._module_classes_to_ignore)),
    )


def _classes(values: Iterable[Any] | None) -> Iterable[type[nn.Module]]:
    return values or ()
