"""From the arguments of a Trainer to a strategy with all its parts. The only place that picks them.

plugins -> accelerator -> device -> precision -> strategy; each by the first rule of its table in `rules.py` that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine.rules import ACCELERATOR_RULES, PRECISION_RULES, STRATEGY_RULES, Request, Rule
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.registry import STRATEGY_REGISTRY
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

__all__ = ["RULES", "Plugin", "explain", "resolve_strategy", "rules_as_text"]

Plugin: TypeAlias = Precision | CheckpointIO | ClusterEnvironment | LayerSync

RULES: dict[str, tuple[Rule, ...]] = {
    "accelerator": ACCELERATOR_RULES,
    "precision": PRECISION_RULES,
    "strategy": STRATEGY_RULES,
}

_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": None,
    "plugins": None,
    "sync_batchnorm": False,
}
_PRECISIONS = ("16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true", "64-true")
_PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
_LATER_PRECISIONS = ("transformer-engine", "transformer-engine-float16")
_LATER_ACCELERATORS = ("tpu",)
_LATER_STRATEGIES = frozenset(
    [
        *("dp", "fsdp", "fsdp_cpu_offload", "single_tpu", "single_xla", "xla", "xla_debug", "xla_fsdp"),
        *(
            f"{name}{suffix}"
            for name in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
            for suffix in ("", "_find_unused_parameters_true", "_find_unused_parameters_false")
        ),
        "deepspeed",
        *(f"deepspeed_stage_{stage}" for stage in (1, 2, 3)),
        *(f"deepspeed_stage_{stage}_offload" for stage in (1, 2, 3)),
        "deepspeed_stage_3_offload_nvme",
    ]
)
_PART_OF_PLUGIN = {
    Precision: "precision_plugin",
    CheckpointIO: "checkpoint_io",
    ClusterEnvironment: "cluster_environment",
    LayerSync: "layer_sync",
}


@dataclass(frozen=True, slots=True)
class _Decision:
    """What was decided, and by which rule."""

    topic: str
    value: Any
    rule: Rule

    def __str__(self) -> str:
        shown = getattr(self.value, "precision", None) or type(self.value).__name__
        return f"{self.topic}: {shown}, because {self.rule.when} ({self.rule.why})"


def resolve_strategy(
    *,
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
    precision: str | int | None = None,
    plugins: Plugin | Iterable[Plugin] | None = None,
    sync_batchnorm: bool = False,
) -> Strategy:
    """Pick hardware, number format and strategy, and put them together.

    Args:
        accelerator: Registered name, "auto", "gpu", or an `Accelerator`.
        strategy: Registered name (in any case), "auto", or a `Strategy`; that object is completed and returned.
        devices: How many or which devices; what is possible depends on the accelerator.
        num_nodes: Number of machines.
        precision: Name of a number format, or its number of bits; `None` for 32 bit.
        plugins: A `Precision`, `CheckpointIO`, `ClusterEnvironment`, `LayerSync`, or several, one of each kind.
        sync_batchnorm: Let batch normalization look at the batches of all processes.

    Returns:
        A strategy with all parts.

    Raises:
        ValueError: An unknown name, or `precision` given twice.
        TypeError: `devices` is of a wrong type.
        MisconfigurationException: Hardware that is not there, settings that exclude each other, or something that this
            version cannot do.
    """
    request = _read(accelerator, strategy, devices, num_nodes, precision, plugins, sync_batchnorm)
    return _assemble(request, _decide(request))


def explain(**arguments: Any) -> str:
    """Say what `resolve_strategy` decides for some arguments, and why.

    Args:
        arguments: Those of `resolve_strategy`.

    Returns:
        One line per decision.

    Example::

        print(explain(accelerator="auto", precision="16-mixed"))
    """
    request = _read(**{**_DEFAULTS, **arguments})
    decisions = _decide(request)
    lines = [str(decision) for decision in decisions.values()]
    return "\n".join([lines[0], f"device: {request.device}", *lines[1:]])


def rules_as_text() -> str:
    """Return all rules, in the order in which they are tried."""
    return "\n".join(f"{topic}: {rule}" for topic, rules in RULES.items() for rule in rules)


# ---- read: check each argument by itself


def _read(
    accelerator: Any, strategy: Any, devices: Any, num_nodes: Any, precision: Any, plugins: Any, sync_batchnorm: bool
) -> Request:
    request = Request(accelerator, strategy, devices, _read_precision(precision))
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
    _check_accelerator_name(request)
    _check_strategy_name(request)
    _check_num_nodes(num_nodes)
    return request


def _read_precision(precision: Any) -> str | None:
    if precision is None:
        return None
    name = str(precision) if type(precision) in (str, int) else None
    if name in ("16", "bf16"):
        rank_zero_warn(
            f"`precision={precision!r}` means {_PRECISION_ALIASES[name]!r} for historical reasons; '{name}-true' is"
            " another format. Write the full name to be clear."
        )
    name = _PRECISION_ALIASES.get(name or "", name)
    if name in _LATER_PRECISIONS:
        raise MisconfigurationException(
            f"`precision={precision!r}` is not available: this version cannot compute in 8 bit."
            f" Choose one of {_PRECISIONS}."
        )
    if name not in _PRECISIONS:
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


def _check_accelerator_name(request: Request) -> None:
    name = request.accelerator
    if isinstance(name, Accelerator):
        return
    if isinstance(name, str) and (name in ("auto", "gpu") or name in ACCELERATOR_REGISTRY):
        return
    if name in _LATER_ACCELERATORS:
        raise MisconfigurationException(
            f"`accelerator={name!r}` is not available in this version. Choose 'auto', 'gpu' or one of"
            f" {ACCELERATOR_REGISTRY.names()}."
        )
    raise ValueError(
        f"`accelerator={name!r}` is not known. Choose 'auto', 'gpu', one of {ACCELERATOR_REGISTRY.names()}, or pass an"
        " `Accelerator`."
    )


def _check_strategy_name(request: Request) -> None:
    strategy = request.strategy
    if isinstance(strategy, Strategy):
        return
    name = strategy.lower() if isinstance(strategy, str) else ""
    if name == "auto" or name in STRATEGY_REGISTRY or (name and strategy in STRATEGY_REGISTRY):
        return
    known = ["auto", *STRATEGY_REGISTRY.names()]
    if name in _LATER_STRATEGIES:
        raise MisconfigurationException(
            f"`strategy={strategy!r}` is made for several devices or other hardware, but this version runs on one"
            f" device. Choose one of {known}."
        )
    raise ValueError(f"`strategy={strategy!r}` is not known. Choose one of {known}, or pass a `Strategy`.")


def _check_num_nodes(num_nodes: Any) -> None:
    if not isinstance(num_nodes, int) or isinstance(num_nodes, bool) or num_nodes < 1:
        raise ValueError(f"`num_nodes={num_nodes!r}` is not a number of machines. Pass an int of 1 or more.")
    if num_nodes > 1:
        raise MisconfigurationException(
            f"`num_nodes={num_nodes}` asks for several machines, but this version runs on one device of one machine."
            " Pass `num_nodes=1`."
        )


# ---- decide: by the tables


def _decide(request: Request) -> dict[str, _Decision]:
    accelerator = _first("accelerator", request)
    _check_available(accelerator.value, request)
    request.device = _pick_device(accelerator.value, request)
    precision = _first("precision", request)
    _check_precision_on_device(precision.value, request)
    strategy = _first("strategy", request)
    _check_parts_chosen_once(strategy.value, request)
    return {"accelerator": accelerator, "precision": precision, "strategy": strategy}


def _first(topic: str, request: Request) -> _Decision:
    for rule in RULES[topic]:
        if rule.applies(request):
            return _Decision(topic, rule.make(request), rule)
    raise MisconfigurationException(  # `_read` refused all names that are in no table: only "gpu" is left
        f"`accelerator={request.accelerator!r}` needs a GPU, but neither MPS nor CUDA is available on this machine."
        " Choose 'auto' or 'cpu', or check the driver and that torch was built for it."
    )


def _check_available(accelerator: Accelerator, request: Request) -> None:
    if accelerator.is_available():
        return
    available = [name for name in ACCELERATOR_REGISTRY.names() if ACCELERATOR_REGISTRY.get(name).is_available()]
    raise MisconfigurationException(
        f"`accelerator={request.accelerator!r}` cannot be used: `{type(accelerator).__name__}` finds no such hardware"
        f" on this machine. Available: {available}."
    )


def _pick_device(accelerator: Accelerator, request: Request) -> torch.device:
    devices = request.devices
    if type(devices) is not bool and devices in (0, "0", [], ()):
        raise MisconfigurationException(
            f"`devices={devices!r}` selects no device, and a run needs one. Pass 'auto', a number, or indices."
        )
    if devices == "auto":
        if accelerator.auto_device_count() > 1:
            rank_zero_info(f"{accelerator.auto_device_count()} devices are available, of which this version uses one.")
        devices = 1
    found = accelerator.get_parallel_devices(accelerator.parse_devices(devices))
    if len(found) > 1:
        raise MisconfigurationException(
            f"`devices={devices!r}` asks for {len(found)} devices, but this version runs on one."
            " Pass `devices=1`, or the index of one GPU in a list."
        )
    device: torch.device = found[0]
    if not isinstance(request.strategy, Strategy):
        return device
    own = request.strategy.root_device
    if own.type != device.type:
        raise MisconfigurationException(
            f"The strategy `{type(request.strategy).__name__}` is on the device `{own}`, but"
            f" `{type(accelerator).__name__}` computes on `{device}`. Pass `accelerator='auto'` to follow the strategy,"
            " or give it another device."
        )
    return own


def _check_precision_on_device(precision: Precision, request: Request) -> None:
    if request.precision == "16-mixed" and precision.precision == "bf16-mixed":
        rank_zero_warn(
            "`precision='16-mixed'` is not offered on the CPU, so 'bf16-mixed' is used: CPUs compute bfloat16 faster,"
            " and it needs no scaled gradients. Pass `precision='bf16-mixed'` to say so yourself."
        )
    if precision.precision == "64-true" and request.device.type == "mps":
        raise MisconfigurationException(
            "`precision='64-true'` cannot be used with MPS, which has no 64-bit numbers."
            " Choose `precision='32-true'` or `accelerator='cpu'`."
        )


def _check_parts_chosen_once(strategy: Strategy, request: Request) -> None:
    asked = {
        "accelerator": request.accelerator != "auto",
        "precision_plugin": request.precision_plugin is not None or request.precision is not None,
        "checkpoint_io": request.checkpoint_io is not None,
        "cluster_environment": request.cluster_environment is not None,
    }
    for part in sorted(strategy.chosen_parts):
        if asked.get(part):
            raise MisconfigurationException(
                f"The part `{part}` is given twice: by the strategy, `{type(strategy).__name__}({part}="
                f"{getattr(strategy, part)!r})`, and by an argument of its own. Choose one."
            )


# ---- assemble


def _assemble(request: Request, decisions: dict[str, _Decision]) -> Strategy:
    strategy: Strategy = decisions["strategy"].value
    strategy.complete(
        accelerator=decisions["accelerator"].value,
        precision_plugin=decisions["precision"].value,
        checkpoint_io=request.checkpoint_io or TorchCheckpointIO(),
        cluster_environment=request.cluster_environment or LightningEnvironment(),
        layer_sync=request.layer_sync,
    )
    return strategy
