"""Weights and states of optimizers in shards: `DTensor`s gathered, cut, loaded from whole tensors or from folders.

Nothing here knows a strategy. What gathers (`whole`, and what uses it) must be called by all ranks in the same order;
loading never communicates: each rank takes its own part of what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from fulmen.plugins.io.distributed_io import Shards
from fulmen.utilities.state_names import named_as_in, without_compiler_names
from fulmen.utilities.tree import apply_to_collection

__all__ = [
    "load_into_module",
    "load_optimizer_state",
    "load_whole_into_module",
    "local_part",
    "optimizer_state_by_name",
    "whole",
]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of compilation and activation checkpointing


# ---- whole tensors


def whole(tree: Any, *, keep: bool) -> Any:
    """Gather every `DTensor` of a tree, one at a time; all ranks must call this with the same tree.

    Args:
        tree: Tensors in nested collections; not modified.
        keep: Whether this rank wants the result; the others drop each tensor at once.

    Returns:
        The tree with whole tensors on the CPU; `{}` without `keep`. What is whole on this CPU already stays the same
        memory.
    """

    def gathered(tensor: Tensor) -> Tensor | None:
        if isinstance(tensor, DTensor):
            full: Tensor = tensor.full_tensor()
            return full.cpu() if keep else None
        return tensor.detach().cpu() if keep else None

    with torch.no_grad():
        result = apply_to_collection(tree, Tensor, gathered)
    return result if keep else {}


def local_part(full: Tensor, like: DTensor) -> DTensor:
    """Return this rank's part of a whole tensor.

    Args:
        full: The whole tensor. Of one that is mapped from a file, no more than the part is ever read; the part is a
            view of it where it can be.
        like: Says the mesh and the placements.

    Returns:
        A `DTensor` whose local tensor is where `full` is.

    Raises:
        ValueError: The shapes differ.
    """
    if full.shape != like.shape:
        raise ValueError(
            f"A tensor of the shape {tuple(full.shape)} cannot be cut like one of the shape {tuple(like.shape)}."
            " Build the module with the sizes that it was saved with."
        )
    return _cut(full, like, like.placements)


def _cut(full: Tensor, like: DTensor, placements: Sequence[Placement]) -> DTensor:
    part = full.detach()
    sizes, offsets = compute_local_shape_and_global_offset(full.shape, like.device_mesh, placements)
    if len(offsets) == full.ndim:
        for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
            part = part.narrow(dim, min(offset, part.shape[dim]), size)
    else:  # this rank is not in the mesh
        part = part.new_empty(sizes)
    return _assembled(part, like, placements, full.shape)


def _empty_part(shape: torch.Size, dtype: torch.dtype, like: DTensor, placements: Sequence[Placement]) -> DTensor:
    sizes, _ = compute_local_shape_and_global_offset(shape, like.device_mesh, placements)
    return _assembled(torch.empty(sizes, dtype=dtype, device=like.to_local().device), like, placements, shape)


def _assembled(part: Tensor, like: DTensor, placements: Sequence[Placement], shape: torch.Size) -> DTensor:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False, shape=shape, stride=stride)


# ---- modules


def load_into_module(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Load weights into a module whose parameters are `DTensor`s, or some of them, or none.

    Args:
        module: The module.
        state: Whole tensors or `DTensor`s by name, or what a checkpoint folder has (`Shards`): then each rank reads its
            part alone, into the module's own memory.
        strict: Names must be the same on both sides.

    Raises:
        RuntimeError: Names or sizes differ.
    """
    if not isinstance(state, Shards):
        load_whole_into_module(module, state, strict)
        return
    own = without_compiler_names(module, module.state_dict())
    saved = {_plain_name(name): name for name in state}
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    fitting = {name: saved[name] for name in tensors if name in saved and state.size(saved[name]) == own[name].size()}
    if len(fitting) == len(own) == len(saved) and _takes_tensors_plainly(module):
        state.read_into({fitting[name]: tensor for name, tensor in tensors.items()})
        return
    read = {fitting[name]: torch.empty_like(tensors[name]) for name in fitting}
    state.read_into(read)
    load_whole_into_module(module, {**{name: state[name] for name in state if name not in read}, **read}, strict)


def load_whole_into_module(module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
    """Load whole tensors into a module; each rank takes its own part of them, which may lie in a file (`mmap`).

    Args:
        module: The module, with `DTensor`s or without.
        state_dict: Weights by name.
        strict: Names must be the same on both sides.

    Raises:
        RuntimeError: Names or sizes differ.
    """
    own = without_compiler_names(module, module.state_dict())
    parts = {}
    for name, value in state_dict.items():
        target = own.get(_plain_name(name))
        if isinstance(target, DTensor) and isinstance(value, Tensor) and value.shape == target.shape:
            parts[name] = _as_part(value, target, target.placements)
        else:
            parts[name] = value
    module.load_state_dict(named_as_in(module, parts), strict=strict)


def _as_part(value: Tensor, like: DTensor, placements: Sequence[Placement]) -> DTensor:
    if not isinstance(value, DTensor):
        return _cut(value, like, placements)
    if value.device_mesh == like.device_mesh:
        return value.redistribute(placements=placements)
    return _cut(value.full_tensor(), like, placements)


def _takes_tensors_plainly(module: nn.Module) -> bool:
    """Tell whether loading a module does no more than to copy tensors, as far as it is its classes that say so."""
    plain = nn.Module.load_state_dict, nn.Module._load_from_state_dict
    return all((type(each).load_state_dict, type(each)._load_from_state_dict) == plain for each in module.modules())


# ---- optimizers


def optimizer_state_by_name(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer by names of parameters, its tensors in shards as they are.

    The layout is that of `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`; unlike that function, this
    one makes no step to have a state.

    Args:
        module: The module whose parameters the optimizer has.
        optimizer: The optimizer.

    Returns:
        `{"state": {name: {...}}, "param_groups": [{"params": [name, ...], ...}]}`.

    Raises:
        ValueError: The optimizer has parameters that are not in the module.
    """
    state = optimizer.state_dict()
    names = _names_in_order(module, optimizer)
    by_number = dict(zip((number for group in state["param_groups"] for number in group["params"]), names, strict=True))
    groups = [{**group, "params": [by_number[number] for number in group["params"]]} for group in state["param_groups"]]
    states = {by_number.get(number, number): each for number, each in state["state"].items()}
    return {"state": apply_to_collection(states, DTensor, _reduced), "param_groups": groups}


def load_optimizer_state(module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, whichever keys it has, whole or in shards; no step is made.

    Args:
        module: The module whose parameters the optimizer has.
        optimizer: The optimizer.
        state: By numbers of parameters, as `Optimizer.state_dict` has it, or by their names; whole tensors, `DTensor`s,
            or what a checkpoint folder has (`Shards`): then each rank reads its part alone.

    Raises:
        ValueError: The parameters of the groups are not those of the optimizer.
    """
    groups = [dict(group) for group in state["param_groups"]]
    keys = _matched(groups, optimizer, _names_in_order(module, optimizer))
    saved = state.get("state", {})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pairs = [(key, parameter) for key, parameter in zip(keys, parameters, strict=True) if key in saved]
    if isinstance(saved, Shards):
        read = _read_states(saved, pairs)
    else:
        read = {key: _in_parts(saved[key], parameter) for key, parameter in pairs}
    numbers = {key: number for number, key in enumerate(keys)}
    numbered = [
        {**group, "params": [numbers[key] for key in own]}
        for group, own in zip(groups, _by_group(keys, optimizer), strict=True)
    ]
    loose = {key: value for key, value in saved.items() if key not in numbers}  # what belongs to no parameter
    optimizer.load_state_dict(
        {"state": {**loose, **{numbers[key]: each for key, each in read.items()}}, "param_groups": numbered}
    )


def _names_in_order(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, in the order in which it numbers them."""
    names: dict[int, str] = {}
    kept = module.state_dict(keep_vars=True)  # FSDP registers the sharded parameters again, if it has to
    for name, value in (*module.named_parameters(remove_duplicate=False), *kept.items()):
        names.setdefault(id(value), _plain_name(name))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unknown = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in names]
    if unknown:
        raise ValueError(
            f"{len(unknown)} parameters of `{type(optimizer).__name__}` are not in `{type(module).__name__}`, so they"
            f" have no names to be saved under; the first one has the shape {unknown[0]}. Make the optimizer of"
            " parameters of the module, after it has been sharded."
        )
    return [names[id(parameter)] for parameter in parameters]


def _matched(groups: list[dict[str, Any]], optimizer: Optimizer, names: list[str]) -> list[Any]:
    """Return the keys in a saved state of the optimizer's parameters, in their order."""
    saved = [list(group["params"]) for group in groups]
    if [len(each) for each in saved] != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError(
            f"The saved state of `{type(optimizer).__name__}` has groups of {[len(each) for each in saved]} parameters,"
            f" but it has groups of {[len(group['params']) for group in optimizer.param_groups]}. Make it with the same"
            " groups, or load only the weights."
        )
    if not all(isinstance(key, str) for keys in saved for key in keys):
        return [key for keys in saved for key in keys]
    known = {_plain_name(key): key for keys in saved for key in keys}
    for keys, own in zip(saved, _by_group(names, optimizer), strict=True):
        if {_plain_name(key) for key in keys} != set(own):
            missing, unexpected = set(own) - set(map(_plain_name, keys)), set(map(_plain_name, keys)) - set(own)
            raise ValueError(
                f"A group of `{type(optimizer).__name__}` has parameters {sorted(missing)[:3]} that its saved state"
                f" lacks, which has {sorted(unexpected)[:3]} instead. Make it with the same groups, or load only the"
                " weights."
            )
    return [known[name] for name in names]


def _by_group(keys: list[Any], optimizer: Optimizer) -> list[list[Any]]:
    remaining = iter(keys)
    return [[next(remaining) for _ in group["params"]] for group in optimizer.param_groups]


def _read_states(saved: Shards, pairs: list[tuple[str, Tensor]]) -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = {}
    targets: dict[str, dict[str, Tensor]] = {}
    for key, parameter in pairs:
        shards, read[key], targets[key] = saved[key], {}, {}
        for name in shards:
            size = shards.size(name)
            if size is None:
                value = shards[name]
                value = value.read_whole() if isinstance(value, Shards) else value
                read[key][name] = _in_parts(value, parameter)
            else:
                read[key][name] = targets[key][name] = _empty_state(size, shards.dtype(name), parameter)
    saved.read_into(targets)
    return read


def _empty_state(size: torch.Size, dtype: torch.dtype, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and len(size) > 0:
        return _empty_part(size, dtype, parameter, _placements_of_state(size, parameter))
    return torch.empty(size, dtype=dtype)


def _in_parts(value: Any, parameter: Tensor) -> Any:
    """Return the state of a parameter with tensors that lie as it does, in memory of their own."""

    def placed(tensor: Tensor) -> Tensor:
        if isinstance(parameter, DTensor) and tensor.ndim > 0:
            return _as_part(tensor, parameter, _placements_of_state(tensor.shape, parameter)).clone()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return tensor.detach().clone()

    return apply_to_collection(value, Tensor, placed)


def _placements_of_state(shape: torch.Size, parameter: DTensor) -> list[Placement]:
    """Shard what has the parameter's shape, or its size in the dim that is sharded (row statistics), as it is."""
    return [
        placement if _is_sharded_along(placement, shape, parameter) else Replicate()
        for placement in parameter.placements
    ]


def _is_sharded_along(placement: Placement, shape: torch.Size, parameter: DTensor) -> bool:
    """Tell whether a dim that a placement shards exists, with the same size, in a tensor of another shape."""
    dim = getattr(placement, "dim", None)
    return dim is not None and dim < len(shape) and shape[dim] == parameter.shape[dim]


def _reduced(tensor: DTensor) -> DTensor:
    """Return a tensor without sums that are still to be made, which no file can hold."""
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if each.is_partial() else each for each in tensor.placements])


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
