"""Which hardware, strategy and number format a run gets: tables that are read from the top, and can be printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cuda import CUDAAccelerator
from fulmen.accelerators.mps import MPSAccelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.layer_sync import LayerSync
from fulmen.plugins.precision.amp import MixedPrecision
from fulmen.plugins.precision.double import DoublePrecision
from fulmen.plugins.precision.half import HalfPrecision
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.registry import STRATEGY_REGISTRY
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.strategies.strategy import Strategy

__all__ = ["ACCELERATOR_RULES", "PRECISION_RULES", "STRATEGY_RULES", "Request", "Rule"]


@dataclass(slots=True)
class Request:
    """What the user asked for, and what has been decided about it so far."""

    accelerator: str | Accelerator
    strategy: str | Strategy
    devices: Any
    precision: Any  # one of the full names, or None
    precision_plugin: Precision | None = None
    checkpoint_io: CheckpointIO | None = None
    cluster_environment: ClusterEnvironment | None = None
    layer_sync: LayerSync | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Decided after the accelerator, for the rules that come then."""

    def brings(self, part: str) -> bool:
        """Tell whether the strategy is an object that carries a part."""
        return isinstance(self.strategy, Strategy) and part in self.strategy.chosen_parts


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a table."""

    when: str
    applies: Callable[[Request], bool]
    then: str
    make: Callable[[Request], Any]
    why: str

    def __str__(self) -> str:
        """The rule as a sentence."""
        return f"when {self.when}: {self.then} ({self.why})"


def _strategy_object(request: Request) -> Strategy:
    assert isinstance(request.strategy, Strategy)  # noqa: S101 - the rule has tested it
    return request.strategy


def _strategy_name(request: Request) -> str | None:
    """The registered name that is meant, in any case."""
    spelled = str(request.strategy)
    return next((name for name in (spelled, spelled.lower()) if name in STRATEGY_REGISTRY), None)


def _named_strategy(request: Request) -> Strategy:
    entry = STRATEGY_REGISTRY.entry(_strategy_name(request) or "")
    params = dict(entry.init_params)
    if isinstance(entry.factory, type) and issubclass(entry.factory, SingleDeviceStrategy):
        params.setdefault("device", request.device)
    return entry.factory(**params)


ACCELERATOR_RULES = (
    Rule(
        when="the strategy is an object that carries an accelerator",
        applies=lambda request: request.brings("accelerator"),
        then="that one",
        make=lambda request: _strategy_object(request).accelerator,
        why="it was chosen with the strategy",
    ),
    Rule(
        when="`accelerator` is an object",
        applies=lambda request: isinstance(request.accelerator, Accelerator),
        then="that one",
        make=lambda request: request.accelerator,
        why="you passed it",
    ),
    Rule(
        when="`accelerator='auto'` and the strategy is a `SingleDeviceStrategy` object",
        applies=lambda request: request.accelerator == "auto" and isinstance(request.strategy, SingleDeviceStrategy),
        then="the accelerator of its device",
        make=lambda request: ACCELERATOR_REGISTRY.get(_strategy_object(request).root_device.type),
        why="the device was chosen with the strategy",
    ),
    Rule(
        when="`accelerator` is 'auto' or 'gpu' and MPS is available",
        applies=lambda request: request.accelerator in ("auto", "gpu") and MPSAccelerator.is_available(),
        then="mps",
        make=lambda request: MPSAccelerator(),
        why="the GPU of this Mac",
    ),
    Rule(
        when="`accelerator` is 'auto' or 'gpu' and CUDA is available",
        applies=lambda request: request.accelerator in ("auto", "gpu") and CUDAAccelerator.is_available(),
        then="cuda",
        make=lambda request: CUDAAccelerator(),
        why="a GPU is visible",
    ),
    Rule(
        when="`accelerator='auto'`",
        applies=lambda request: request.accelerator == "auto",
        then="cpu",
        make=lambda request: ACCELERATOR_REGISTRY.get("cpu"),
        why="no other hardware is available",
    ),
    Rule(
        when="`accelerator` is a registered name",
        applies=lambda request: request.accelerator in ACCELERATOR_REGISTRY,
        then="that one",
        make=lambda request: ACCELERATOR_REGISTRY.get(str(request.accelerator)),
        why="you named it",
    ),
)

PRECISION_RULES = (
    Rule(
        when="the strategy is an object that carries a precision",
        applies=lambda request: request.brings("precision_plugin"),
        then="that one",
        make=lambda request: _strategy_object(request).precision_plugin,
        why="it was chosen with the strategy",
    ),
    Rule(
        when="`plugins` has a precision",
        applies=lambda request: request.precision_plugin is not None,
        then="that one",
        make=lambda request: request.precision_plugin,
        why="you passed it",
    ),
    Rule(
        when="`precision` is None or '32-true'",
        applies=lambda request: request.precision in (None, "32-true"),
        then="32-true",
        make=lambda request: Precision(),
        why="torch's default",
    ),
    Rule(
        when="`precision='16-mixed'` and the device is the CPU",
        applies=lambda request: request.precision == "16-mixed" and request.device.type == "cpu",
        then="bf16-mixed",
        make=lambda request: MixedPrecision("bf16-mixed", "cpu"),
        why="CPUs compute bfloat16 faster than float16, and without scaled gradients",
    ),
    Rule(
        when="`precision` is '16-mixed' or 'bf16-mixed'",
        applies=lambda request: request.precision in ("16-mixed", "bf16-mixed"),
        then="that one",
        make=lambda request: MixedPrecision(request.precision, request.device.type),
        why="you named it",
    ),
    Rule(
        when="`precision` is '16-true' or 'bf16-true'",
        applies=lambda request: request.precision in ("16-true", "bf16-true"),
        then="that one",
        make=lambda request: HalfPrecision(request.precision),
        why="you named it",
    ),
    Rule(
        when="`precision='64-true'`",
        applies=lambda request: request.precision == "64-true",
        then="that one",
        make=lambda request: DoublePrecision(),
        why="you named it",
    ),
)

STRATEGY_RULES = (
    Rule(
        when="`strategy` is an object",
        applies=lambda request: isinstance(request.strategy, Strategy),
        then="that one",
        make=lambda request: request.strategy,
        why="you passed it",
    ),
    Rule(
        when="`strategy='auto'` and there is one device",
        applies=lambda request: str(request.strategy).lower() == "auto",
        then="single_device",
        make=lambda request: SingleDeviceStrategy(request.device),
        why="one process is enough",
    ),
    Rule(
        when="`strategy` is a registered name",
        applies=lambda request: _strategy_name(request) is not None,
        then="that one",
        make=_named_strategy,
        why="you named it",
    ),
)
