"""Checks of options where they are given; each error says what is wrong, why, and what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["check_function", "check_number", "parse_device"]


def check_number(
    owner: str,
    name: str,
    value: Any,
    why: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    whole: bool = False,
    optional: bool = False,
    error: type[Exception] = ValueError,
) -> None:
    """Check a number; what is not finite is none.

    Args:
        owner: Class or function that has the option; empty if several have it.
        name: Name of the option.
        value: What was given.
        why: What the option is and, if it helps, what is common: the end of the message.
        least: The smallest number that is allowed.
        above: The number must be larger than this.
        most: The largest number that is allowed.
        below: The number must be smaller than this.
        whole: It must be an int.
        optional: `None` is allowed.
        error: What is raised.

    Raises:
        Exception: `error`, if it is no number, or out of range.
    """
    if value is None and optional:
        return
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and least <= value <= most and above < value < below:
        return
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        if math.isfinite(bound)
    ]
    wanted = " ".join(filter(None, ["an int" if whole else "a number", " and ".join(bounds)]))
    raise error(f"{_shown(owner, name, value)} must be {wanted}{', or None' if optional else ''}: {why}")


def check_function(
    owner: str, name: str, value: Any, why: str, *, optional: bool = False, error: type[Exception] = TypeError
) -> None:
    """Check that something can be called.

    Args:
        owner: Class or function that has the option; empty if several have it.
        name: Name of the option.
        value: What was given.
        why: What it is called with and returns: the end of the message.
        optional: `None` is allowed.
        error: What is raised.

    Raises:
        Exception: `error`, if it cannot be called.
    """
    if not callable(value) and not (value is None and optional):
        raise error(f"{_shown(owner, name, value)} must be a function{', or None' if optional else ''}: {why}")


def parse_device(owner: str, device: torch.device | str | int | None) -> torch.device | None:
    """Return the device that an option means.

    Args:
        owner: Class that has the option `device`.
        device: A device, its name or index, or None.

    Raises:
        MisconfigurationException: It is none of them.
    """
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise MisconfigurationException(
            f"`{owner}(device={device!r})` is no device that torch knows. Pass a `torch.device`, its name, e.g. 'cpu'"
            " or 'cuda:0', or None for the device of the module."
        ) from None


def _shown(owner: str, name: str, value: Any) -> str:
    return f"`{owner}({name}={value!r})`" if owner else f"`{name}={value!r}`"
