"""Names of weights without what `torch.compile` puts between, so that files do not depend on what was compiled."""

from __future__ import annotations

from typing import Any

from torch import nn

from fulmen.utilities.compile import is_compiled

__all__ = ["named_as_in", "without_compiler_names"]

_COMPILED = "_orig_mod"


def without_compiler_names(module: nn.Module, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of a module under the names they have when none of its submodules is compiled.

    Args:
        module: The module that the weights are of.
        state_dict: What its `state_dict` returned.
    """
    if not any(is_compiled(child) for child in module.modules()):
        return state_dict
    cleaned = type(state_dict)((_plain(name), value) for name, value in state_dict.items())
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:  # versions of the layers' own formats
        cleaned._metadata = {_plain(name): value for name, value in metadata.items()}  # type: ignore[attr-defined]  # torch's own
    return cleaned


def named_as_in(module: nn.Module, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return weights under the names that a module expects, whichever submodules are compiled here or were there.

    Args:
        module: The module that will load them.
        state_dict: Weights by name.
    """
    compiled_here = any(is_compiled(child) for child in module.modules())
    if not compiled_here and not any(_COMPILED in name.split(".") for name in state_dict):
        return state_dict
    own = {_plain(name): name for name in module.state_dict()}
    return {own.get(_plain(name), name): value for name, value in state_dict.items()}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)
