"""Check each argument by itself: is it one of the things that it can be?"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from typing import Any, TypeAlias

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine.environments import is_interactive
from fulmen.engine.request import Face, Request
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.registry import STRATEGY_REGISTRY
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require

__all__ = ["Plugin", "read"]

Plugin: TypeAlias = Precision | CheckpointIO | ClusterEnvironment | LayerSync

_PRECISIONS = (
    *("16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16", "fp8-mixed"),
)
_BITSANDBYTES_NAMES = ("bitsandbytes", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")
_PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
_XLA_STRATEGIES = ("xla", "xla_debug", "xla_fsdp", "single_xla", "single_tpu")
_PART_OF_PLUGIN = {
    Precision: "precision_plugin",
    CheckpointIO: "checkpoint_io",
    ClusterEnvironment: "cluster_environment",
    LayerSync: "layer_sync",
}


def read(
    *,
    accelerator: Any,
    strategy: Any,
    devices: Any,
    num_nodes: Any,
    precision: Any,
    plugins: Any,
    sync_batchnorm: bool,
    face: Face,
) -> Request:
    """Check the arguments of `resolve_strategy`, each by itself.

    Raises:
        ValueError: An unknown name or number, or `precision` given twice.
        ModuleNotFoundError: A name stands for something that an optional package does, which is not installed.
        MisconfigurationException: Plugins that exclude each other, or something that this version cannot do.
    """
    request = Request(accelerator, strategy, devices, num_nodes, None, face=face, interactive=is_interactive())
    request.precision = _read_precision(precision, request.warnings)
    for part, plugin in _read_plugins(plugins).items():
        setattr(request, part, plugin)
    if sync_batchnorm:
        if request.layer_sync is not None and not isinstance(request.layer_sync, TorchSyncBatchNorm):
            raise MisconfigurationException(
                f"`sync_batchnorm=True` and the plugin {request.layer_sync!r} both want to synchronize layers, and only"
                " one can. Choose one."
            )
        request.layer_sync = request.layer_sync or TorchSyncBatchNorm()
    if request.precision_plugin is not None and precision is not None:
        raise ValueError(
            f"Received both `precision={precision!r}` and `plugins={request.precision_plugin!r}`, and only one can"
            " decide. Choose one."
        )
    _check_accelerator_name(accelerator)
    _check_strategy_name(strategy, face)
    if not isinstance(num_nodes, int) or isinstance(num_nodes, bool) or num_nodes < 1:
        raise ValueError(f"`num_nodes={num_nodes!r}` is not a number of machines. Pass an int of 1 or more.")
    return request


def _read_precision(precision: Any, warnings: list[str]) -> str | None:
    if precision is None:
        return None
    name = str(precision) if type(precision) in (str, int) else None
    if name in ("16", "bf16"):
        warnings.append(
            f"`precision={precision!r}` means {_PRECISION_ALIASES[name]!r} for historical reasons; '{name}-true' is"
            " another format. Write the full name to be clear."
        )
    name = _PRECISION_ALIASES.get(name or "", name)
    if name not in _PRECISIONS:
        if name in _BITSANDBYTES_NAMES:
            raise ValueError(
                f"`precision={precision!r}` has settings that a name can't carry. Pass an object:"
                " `plugins=BitsandbytesPrecision('nf4')`, from `fulmen.plugins.precision`."
            )
        raise ValueError(
            f"`precision={precision!r}` is not known. Choose one of {_PRECISIONS} (or the short forms"
            f" {tuple(_PRECISION_ALIASES)}, 16, 32, 64)."
        )
    return name


def _read_plugins(plugins: Any) -> dict[str, Any]:
    if plugins is None:
        return {}
    parts: dict[str, Any] = {}
    for plugin in plugins if isinstance(plugins, Iterable) and not isinstance(plugins, str) else [plugins]:
        kinds = [kind for kind in _PART_OF_PLUGIN if isinstance(plugin, kind)]
        if not kinds:
            raise MisconfigurationException(
                f"`plugins` has {plugin!r}, which is none of the kinds that can be plugged in."
                f" Expected: {', '.join(kind.__name__ for kind in _PART_OF_PLUGIN)}."
            )
        part = _PART_OF_PLUGIN[kinds[0]]
        if part in parts:
            raise MisconfigurationException(
                f"`plugins` has two of the kind `{kinds[0].__name__}`, {parts[part]!r} and {plugin!r}, and a run uses"
                " one. Remove one."
            )
        parts[part] = plugin
    return parts


def _check_accelerator_name(accelerator: Any) -> None:
    if isinstance(accelerator, Accelerator):
        return
    if isinstance(accelerator, str) and (accelerator in ("auto", "gpu") or accelerator in ACCELERATOR_REGISTRY):
        return
    raise ValueError(
        f"`accelerator={accelerator!r}` is not known. Choose 'auto', 'gpu', one of {ACCELERATOR_REGISTRY.names()}, or"
        " pass an `Accelerator`."
    )


def _check_strategy_name(strategy: Any, face: Face) -> None:
    if isinstance(strategy, Strategy):
        return
    name = strategy.lower() if isinstance(strategy, str) else ""
    if name == "dp" and face == "trainer":
        raise ValueError(
            f"`strategy={strategy!r}` (one process, a thread per GPU) is offered by Fabric only: the Trainer has no use"
            " for it, since processes are faster. Use `strategy='ddp'`."
        )
    if name in _XLA_STRATEGIES:
        require("torch_xla", extra="xla", for_=f"strategy={strategy!r}")
    if name.startswith(("ddp_fork", "ddp_notebook")) and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(
            f"`strategy={strategy!r}` forks this process, which this operating system cannot do."
            " Use `strategy='ddp'` in a script, or 'ddp_spawn'; in a notebook use one device."
        )
    if name in ("auto", "dp") or name in STRATEGY_REGISTRY or (name and strategy in STRATEGY_REGISTRY):
        return
    names = [one for one in STRATEGY_REGISTRY.names() if "_find_unused_parameters_" not in one]
    known = ["auto", *(one for one in names if one != "dp" or face == "fabric")]
    if name in _XLA_STRATEGIES:
        raise MisconfigurationException(
            f"`strategy={strategy!r}` is not available: this version does not have it yet. Choose one of {known}."
        )
    hint = f" Make an object of it: `{strategy.__name__}(...)`." if isinstance(strategy, type) else ""
    raise ValueError(f"`strategy={strategy!r}` is not known.{hint} Choose one of {known}, or pass a `Strategy`.")
