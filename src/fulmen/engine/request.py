"""What is asked for and what has been decided so far; the form of a rule about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.layer_sync import LayerSync
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.registry import STRATEGY_REGISTRY
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.strategies.strategy import Strategy

__all__ = ["Decision", "Face", "Layout", "Request", "Rule"]

Face = Literal["trainer", "fabric"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The processes of a job that something else has started; `None` where it does not say."""

    world_size: int | None = None
    per_node: int | None = None
    num_nodes: int | None = None


@dataclass(slots=True)
class Request:
    """What the user asked for, and what has been decided about it so far, in the order of the fields."""

    # asked for
    accelerator: str | Accelerator
    strategy: str | Strategy
    devices: Any
    num_nodes: int
    precision: Any  # one of the full names, or None
    face: Face = "trainer"
    interactive: bool = False
    """Whether somebody types the program line by line, in a Python console or a notebook."""
    precision_plugin: Precision | None = None
    checkpoint_io: CheckpointIO | None = None
    cluster_environment: ClusterEnvironment | None = None
    layer_sync: LayerSync | None = None
    # decided
    hardware: Accelerator | None = None
    environment: ClusterEnvironment = field(default_factory=LightningEnvironment)
    layout: Layout | None = None
    """How the processes are laid out, if they exist already."""
    nodes: int = 1
    parallel_devices: list[torch.device] = field(default_factory=lambda: [torch.device("cpu")])
    """One per process of this machine."""
    warnings: list[str] = field(default_factory=list)
    """What to warn of once it is clear which process speaks."""
    remarks: list[str] = field(default_factory=list)
    """What to log then."""

    @property
    def device(self) -> torch.device:
        """The first device; all are of one kind."""
        return self.parallel_devices[0]

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return len(self.parallel_devices) * self.nodes

    @property
    def given(self) -> Strategy:
        """The strategy object that the user passed."""
        assert isinstance(self.strategy, Strategy)  # noqa: S101 - only asked where it is one
        return self.strategy

    @property
    def strategy_name(self) -> str | None:
        """The strategy's name, as it is registered; "auto"; None for an object, and for unknown names."""
        if not isinstance(self.strategy, str):
            return None
        if self.strategy.lower() == "auto":
            return "auto"
        return next((name for name in (self.strategy, self.strategy.lower()) if name in STRATEGY_REGISTRY), None)

    @property
    def wants_one_process(self) -> bool:
        """Whether the strategy itself says that this process trains alone."""
        if isinstance(self.strategy, Strategy):
            return not isinstance(self.strategy, ParallelStrategy)
        name = self.strategy_name
        if name in (None, "auto"):
            return False
        factory = STRATEGY_REGISTRY.entry(str(name)).factory
        return isinstance(factory, type) and issubclass(factory, SingleDeviceStrategy)

    def brings(self, part: str) -> bool:
        """Tell whether the strategy is an object that carries a part."""
        return isinstance(self.strategy, Strategy) and part in self.strategy.chosen_parts

    @property
    def brings_devices(self) -> bool:
        """Whether the strategy is an object that says on which devices it computes."""
        return isinstance(self.strategy, SingleDeviceStrategy) or self.brings("parallel_devices")


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


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and by which rule."""

    topic: str
    value: Any
    rule: Rule

    def __str__(self) -> str:
        """The decision as a line of an explanation."""
        return f"{self.topic}: {_shown(self.value)}, because {self.rule.when} ({self.rule.why})"


def _shown(value: Any) -> str:
    if isinstance(value, Precision):
        return str(value.precision)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, (int, str)):
        return str(value)
    return type(value).__name__
