"""Questions about the parameters of a hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_param_in_hook_signature"]


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Tell whether a hook takes an argument that is passed by position.

    Args:
        hook_fx: The hook: a method, or a function with or without `self`.
        param: Name of the parameter.
        explicit: True if the name must be there; False if `*args` will do.
        min_args: Any names will do if there are at least this many positional parameters (without `self`).

    Returns:
        True if the argument can be passed.
    """
    parameters = list(inspect.signature(hook_fx).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if positional[:1] == ["self"]:
        del positional[0]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return param in positional or (takes_any and not explicit) or (min_args is not None and len(positional) >= min_args)
