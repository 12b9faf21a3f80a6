"""Which parts of a module FSDP gathers, computes and lets go as a whole: its units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, _Policy
from torch.distributed.tensor import DTensor

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["Policy", "Units", "choose_units", "chosen_by", "refuse_mixed_types", "repeated_blocks"]

Policy: TypeAlias = set[type[nn.Module]] | Callable[..., bool] | ModuleWrapPolicy | None
Units: TypeAlias = dict[nn.Module, dict[str, Any]]
"""Each unit with the arguments of `fully_shard` that are its own."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def choose_units(
    module: nn.Module,
    policy: Policy,
    *,
    ignored: set[nn.Parameter],
    own_units: tuple[nn.Module, ...] = (),
    kept_in_32_bit: tuple[type[nn.Module], ...] = (),
) -> Units:
    """Choose the units inside a module; what is in none of them belongs to the module itself.

    Args:
        module: The module.
        policy: Classes, a policy of torch, a function as `FullyShardedDataParallel` takes it, or `None` for
            `repeated_blocks`.
        ignored: Parameters that stay whole.
        own_units: Layers that are units whatever the policy says.
        kept_in_32_bit: Layers of these classes become units that are gathered as they are.

    Returns:
        The units. Without those that hold a parameter which is used outside of them, too: that is gathered with the
        module around both.
    """
    units = {layer: own for layer, own in chosen_by(policy, module, ignored).items() if layer is not module}
    units.update({layer: {} for layer in own_units if layer not in units})
    for layer in module.modules():
        if isinstance(layer, kept_in_32_bit) and layer is not module and layer not in own_units:
            units[layer] = {"mp_policy": MixedPrecisionPolicy()}
    shared = _parameters_with_several_places(module)
    return {
        layer: own
        for layer, own in units.items()
        if _can_be_unit(layer, ignored) and not any(_reaches_out(layer, places) for places in shared)
    }


def chosen_by(policy: Policy, module: nn.Module, ignored: set[nn.Parameter]) -> Units:
    """Return the layers that a policy chooses, each with its own arguments."""
    if policy is None:
        return {layer: {} for layer in repeated_blocks(module)}
    if isinstance(policy, (set, frozenset)):
        policy = ModuleWrapPolicy(policy)
    if isinstance(policy, _Policy):
        chosen: Units = policy._run_policy(module, ignored_modules=set(), root_kwargs={})
        return chosen
    found: list[nn.Module] = []
    _ask(policy, module, ignored, found, is_root=True)
    return {layer: {} for layer in found}


def _ask(
    policy: Callable[..., bool],
    layer: nn.Module,
    ignored: set[nn.Parameter],
    found: list[nn.Module],
    *,
    is_root: bool = False,
) -> int:
    """Ask a function of FSDP1, sublayers first; return how many numbers of the layer are in units."""
    numbers = sum(each.numel() for each in layer.parameters() if each not in ignored)
    if not policy(module=layer, recurse=True, nonwrapped_numel=numbers):
        return 0
    in_units = sum(_ask(policy, child, ignored, found) for child in layer.children())
    if not is_root and policy(module=layer, recurse=False, nonwrapped_numel=numbers - in_units):
        found.append(layer)
        return numbers
    return in_units


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost repeated layers: those of one class in a `ModuleList`, `ModuleDict` or `Sequential`.

    Args:
        module: Where to look.
    """
    for child in module.children():
        siblings = [type(each) for each in module.children()]
        is_list = isinstance(module, (*_CONTAINERS, nn.Sequential))
        if is_list and siblings.count(type(child)) > 1 and any(True for _ in child.parameters()):
            yield child
        else:
            yield from repeated_blocks(child)


def _can_be_unit(layer: nn.Module, ignored: set[nn.Parameter]) -> bool:
    if isinstance(layer, FSDPModule) or (isinstance(layer, _CONTAINERS) and type(layer).forward is nn.Module.forward):
        return False
    return any(not isinstance(each, DTensor) and each not in ignored for each in layer.parameters())


def _parameters_with_several_places(module: nn.Module) -> list[list[nn.Module]]:
    places: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                places.setdefault(id(parameter), []).append(layer)
    return [layers for layers in places.values() if len(layers) > 1]


def _reaches_out(unit: nn.Module, places: list[nn.Module]) -> bool:
    """Whether some of the places of a parameter, but not all of them, are in a unit."""
    inside = {id(layer) for layer in unit.modules()}
    return len({id(layer) in inside for layer in places}) > 1


def refuse_mixed_types(roots: Mapping[str, nn.Module], units: Units, ignored: set[nn.Parameter]) -> None:
    """Check that the trainable parameters of each unit have one type, as they are reduced as one.

    Args:
        roots: What is cut, by name.
        units: The units inside.
        ignored: Parameters that stay whole.

    Raises:
        MisconfigurationException: They do not.
    """
    for root_name, root in roots.items():
        for layer_name, layer in root.named_modules():
            if layer is not root and layer not in units:
                continue
            types: dict[torch.dtype, str] = {}
            for name, parameter in _own_of_unit(layer, units):
                if parameter.requires_grad and parameter not in ignored and not isinstance(parameter, DTensor):
                    types.setdefault(parameter.dtype, ".".join(filter(None, (root_name, layer_name, name))))
            if len(types) > 1:
                listed = ", ".join(f"`{name}` ({str(dtype).removeprefix('torch.')})" for dtype, name in types.items())
                raise MisconfigurationException(
                    f"FSDP gathers and reduces the parameters of a unit as one, but these have several types: {listed}."
                    " Convert the module to one type, or choose the layers of the rarer type as units:"
                    " `FSDPStrategy(auto_wrap_policy={...})`."
                )


def _own_of_unit(layer: nn.Module, units: Units, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    for key, parameter in layer._parameters.items():
        if parameter is not None:
            yield f"{prefix}{key}", parameter
    for key, child in layer.named_children():
        if child not in units and not isinstance(child, FSDPModule):
            yield from _own_of_unit(child, units, f"{prefix}{key}.")
