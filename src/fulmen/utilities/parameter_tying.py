"""Parameters that several modules share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["find_shared_parameters", "set_shared_parameters"]


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """Find the parameters that have more than one name.

    Args:
        module: The module that holds them.

    Returns:
        For each shared parameter its names.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def set_shared_parameters(module: nn.Module, shared_params: Sequence[Sequence[str]]) -> nn.Module:
    """Share parameters again, e.g. after a move to a device that copied each of them.

    Args:
        module: The module; it is modified.
        shared_params: What `find_shared_parameters` returned. Each group gets the parameter of its first name.

    Returns:
        The same module.
    """
    for first, *others in shared_params:
        parameter = module.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, parameter)
    return module
