"""The arguments of `Fabric`, the environment variables that replace them, and the strategy that follows from both."""

from __future__ import annotations

import os
from typing import Any

from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine.resolve import resolve_strategy
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.layer_sync import LayerSync
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["DEFAULTS", "resolve_settings", "started_by_command"]

DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": None,
}
_PLUGINS = (Precision, CheckpointIO, ClusterEnvironment, LayerSync)
_VARIABLES = {name: f"LT_{name.upper()}" for name in DEFAULTS}


def started_by_command() -> bool:
    """Tell whether `fulmen run` started this process."""
    return os.environ.get("LT_CLI_USED", "0") == "1"


def resolve_settings(plugins: Any, **settings: Any) -> Strategy:
    """Return the strategy for the arguments of `Fabric`, with those replaced that the environment sets.

    Args:
        plugins: As given to `Fabric`.
        settings: The arguments named in `DEFAULTS`.

    Raises:
        ValueError: A value is not known, excludes another, or is not the one given to `fulmen run`.
        TypeError: A value is of a wrong type.
        RuntimeError: The hardware is not there.
    """
    _check_plugins(plugins)
    settings = {name: _from_environment(name, value) for name, value in settings.items()}
    try:
        return resolve_strategy(plugins=plugins, sync_batchnorm=False, face="fabric", **settings)
    except MisconfigurationException as error:
        kind = RuntimeError if _hardware_is_missing(settings["accelerator"]) else ValueError
        raise kind(str(error)) from None


def _from_environment(name: str, given: Any) -> Any:
    text = os.environ.get(_VARIABLES[name])
    if text is None:
        return given
    if started_by_command() and given != DEFAULTS[name] and str(given) != text:
        raise ValueError(
            f"Your code has `Fabric({name}={given!r}, ...)`, but it conflicts with `--{name.replace('_', '-')}={text}`"
            " on the command line. Remove one of the two."
        )
    if name != "num_nodes":
        return text
    if not text.isdecimal():
        raise ValueError(f"`{_VARIABLES[name]}={text}` in the environment is not a number of machines. Set an int.")
    return int(text)


def _check_plugins(plugins: Any) -> None:
    for plugin in plugins if isinstance(plugins, (list, tuple, set)) else [] if plugins is None else [plugins]:
        if not isinstance(plugin, _PLUGINS):
            raise TypeError(
                f"`Fabric(plugins=...)` has {plugin!r}, which is none of the kinds that can be plugged in:"
                f" {', '.join(kind.__name__ for kind in _PLUGINS)}. Pass an object of one of them."
            )


def _hardware_is_missing(accelerator: Any) -> bool:
    if accelerator == "gpu":
        return not any(ACCELERATOR_REGISTRY.get(name).is_available() for name in ("cuda", "mps"))
    if isinstance(accelerator, str) and accelerator in ACCELERATOR_REGISTRY:
        return not ACCELERATOR_REGISTRY.get(accelerator).is_available()
    return False
