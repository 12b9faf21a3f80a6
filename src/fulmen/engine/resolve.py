"""From the arguments of a Trainer or Fabric to a strategy with all its parts. The only place that picks them.

read: each argument by itself                                    arguments.py
decide: accelerator -> environment -> nodes -> devices -> precision -> strategy, each by the first rule that fits
                                                                 rules.py; what cannot be is refused, refusals.py
assemble: the strategy gets its parts and learns its rank
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine import refusals
from fulmen.engine.arguments import Plugin, read
from fulmen.engine.environments import check_layout, layout_of
from fulmen.engine.request import Decision, Face, Request
from fulmen.engine.rules import RULES
from fulmen.plugins.environments.xla import XLAEnvironment
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.plugins.precision.amp import MixedPrecision
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["RULES", "Plugin", "explain", "resolve_strategy", "rules_as_text"]

_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": None,
    "plugins": None,
    "sync_batchnorm": False,
    "face": "trainer",
}


def resolve_strategy(
    *,
    accelerator: str | Accelerator = "auto",
    strategy: str | Strategy = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
    precision: str | int | None = None,
    plugins: Plugin | Iterable[Plugin] | None = None,
    sync_batchnorm: bool = False,
    face: Face = "trainer",
) -> Strategy:
    """Pick hardware, processes, number format and strategy, and put them together.

    Args:
        accelerator: Registered name, "auto", "gpu", or an `Accelerator`.
        strategy: Registered name (in any case), "auto", or a `Strategy`; that object is completed and returned.
        devices: How many or which devices of each machine; what is possible depends on the accelerator.
        num_nodes: Number of machines; 1 leaves it to what started the processes.
        precision: Name of a number format, or its number of bits; `None` for 32 bit.
        plugins: A `Precision`, `CheckpointIO`, `ClusterEnvironment`, `LayerSync`, or several, one of each kind.
        sync_batchnorm: Let batch normalization look at the batches of all processes.
        face: Who asks: names and log lines differ a little.

    Returns:
        A strategy with all parts, which knows its rank.

    Raises:
        ValueError: An unknown name, `precision` given twice, or other numbers of processes than were started.
        TypeError: `devices` is of a wrong type.
        ModuleNotFoundError: Something that an optional package does, which is not installed.
        RuntimeError: Processes that nobody started.
        MisconfigurationException: Hardware that is not there, settings that exclude each other, or something that this
            version cannot do.
    """
    request = read(
        accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=num_nodes, precision=precision,
        plugins=plugins, sync_batchnorm=sync_batchnorm, face=face,
    )  # fmt: skip
    decisions = _decide(request)
    resolved = _assemble(request, decisions)
    for warning in request.warnings:
        rank_zero_warn(warning)
    _announce(request, resolved)
    return resolved


def explain(**arguments: Any) -> str:
    """Say what `resolve_strategy` decides for some arguments, and why; nothing is started or changed.

    Args:
        arguments: Those of `resolve_strategy`.

    Returns:
        One line per decision, then warnings and remarks.

    Example::

        print(explain(accelerator="cpu", devices=2, precision="16-mixed"))
    """
    request = read(**{**_DEFAULTS, **arguments})
    decisions = _decide(request)
    lines = [str(decision) for decision in decisions.values()]
    lines.append(_explain_processes(request, decisions["strategy"].value))
    lines += [f"warning: {text}" for text in request.warnings]
    lines += [f"note: {text}" for text in request.remarks]
    return "\n".join(lines)


def rules_as_text() -> str:
    """Return all rules, in the order in which they are tried."""
    return "\n".join(f"{topic}: {rule}" for topic, rules in RULES.items() for rule in rules)


# ---- decide: by the tables


def _decide(request: Request) -> dict[str, Decision]:
    made: dict[str, Decision] = {}

    def decide(topic: str) -> Any:
        made[topic] = _first(topic, request)
        return made[topic].value

    request.hardware = hardware = decide("accelerator")
    refusals.check_available(hardware, request)
    request.environment = decide("environment")
    request.layout = layout_of(request.environment)
    request.nodes = decide("nodes")
    request.parallel_devices = decide("devices")
    refusals.check_devices(hardware, request)
    check_layout(request)
    refusals.check_precision_name(request)
    refusals.check_precision_on_device(decide("precision"), request)
    strategy = decide("strategy")
    refusals.check_strategy_on_devices(strategy, request)
    refusals.check_parts_chosen_once(strategy, request)
    return made


def _first(topic: str, request: Request) -> Decision:
    for rule in RULES[topic]:
        if rule.applies(request):
            return Decision(topic, rule.make(request), rule)
    raise MisconfigurationException(  # `read` refused all names that are in no table: only "gpu" is left
        f"`accelerator={request.accelerator!r}` needs a GPU, but neither MPS nor CUDA is available on this machine."
        " Choose 'auto' or 'cpu', or check the driver and that torch was built for it."
    )


# ---- assemble


def _assemble(request: Request, decisions: dict[str, Decision]) -> Strategy:
    strategy: Strategy = decisions["strategy"].value
    is_parallel = isinstance(strategy, ParallelStrategy)
    strategy.complete(
        accelerator=decisions["accelerator"].value,
        precision_plugin=decisions["precision"].value,
        checkpoint_io=request.checkpoint_io or TorchCheckpointIO(),
        cluster_environment=request.environment,
        layer_sync=request.layer_sync if is_parallel else None,  # there is nobody to synchronize with
    )
    if isinstance(strategy, ParallelStrategy):
        _join(strategy, request)
    return strategy


def _join(strategy: ParallelStrategy, request: Request) -> None:
    """Tell the strategy which processes there are, and let it find out which one this is."""
    strategy.take_devices(request.parallel_devices, request.nodes)
    refusals.refuse_in_interactive_session(strategy, request)
    if isinstance(request.environment, XLAEnvironment):  # asking for a rank would start its runtime in the parent
        return
    request.environment.validate_settings(num_devices=len(request.parallel_devices), num_nodes=request.nodes)
    strategy.set_world_ranks()
    rank_zero_only.rank = strategy.global_rank


def _announce(request: Request, strategy: Strategy) -> None:
    """Log on the first process what people look for in the log of a run."""
    precision = strategy.precision_plugin
    if isinstance(precision, MixedPrecision):
        name = "16bit" if precision.precision == "16-mixed" else "bfloat16"
        rank_zero_info(f"Using {name} Automatic Mixed Precision (AMP)")
    if request.face == "trainer":
        used = strategy.accelerator.name()
        gpu = next((name for name in ("mps", "cuda") if ACCELERATOR_REGISTRY.is_available(name)), None)
        rank_zero_info(f"GPU available: {gpu is not None}{f' ({gpu})' if gpu else ''}, used: {used in ('cuda', 'mps')}")
        cores = strategy.world_size if used == "tpu" else 0
        has_tpu = "tpu" in ACCELERATOR_REGISTRY and ACCELERATOR_REGISTRY.is_available("tpu")
        rank_zero_info(f"TPU available: {has_tpu}, using: {cores} TPU cores")
    for remark in request.remarks:
        rank_zero_info(remark)


# ---- explain


def _explain_processes(request: Request, strategy: Strategy) -> str:
    """Who starts the processes, in words."""
    if not isinstance(strategy, ParallelStrategy):
        return "processes: this one, because the strategy uses one device"
    count = f"processes: {request.world_size}"
    if request.layout is not None:
        return f"{count}, which exist already ({type(request.environment).__name__}): nothing is started"
    here = f"{len(request.parallel_devices)} on each of {request.nodes} machines" if request.nodes > 1 else "all here"
    method = getattr(strategy, "start_method", "popen")
    if method == "popen":
        return f"{count}, {here}: the script is run once more for each but the first"
    return f"{count}, {here}: started by {method!r} for each run"
