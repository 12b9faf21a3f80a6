"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.strategies.data_parallel import DataParallelStrategy
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.deepspeed import DeepSpeedStrategy
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.strategies.single_xla import SingleDeviceXLAStrategy
from fulmen.strategies.strategy import Strategy
from fulmen.strategies.xla import XLAStrategy
from fulmen.utilities.registry import Registry

__all__ = ["STRATEGY_REGISTRY", "StrategyNames", "StrategyRegistry"]


class StrategyNames(Registry[Strategy]):
    """The names that `Trainer(strategy=...)` takes besides "auto".

    Example::

        @StrategyRegistry.register("watched", description="prints what it does", interval_s=5)
        class WatchedStrategy(SingleDeviceStrategy): ...
    """

    def __init__(self) -> None:
        super().__init__("strategy")

    def register(  # type: ignore[override]  # the public name of the second parameter is `strategy`
        self,
        name: str,
        strategy: Callable[..., Strategy] | None = None,
        description: str | None = None,
        override: bool = False,
        **init_params: Any,
    ) -> Callable[..., Any]:
        """Add a name; without `strategy` this is a decorator.

        Args:
            name: The name; the Trainer compares it in lower case.
            strategy: Class or function that makes the strategy.
            description: One line for listings.
            override: Replace an existing entry of that name.
            init_params: Keyword arguments for `strategy`.

        Returns:
            `strategy`, or the decorator.

        Raises:
            ValueError: The name is not a string, or taken.
        """
        if not isinstance(name, str) or (name in self and not override):
            raise ValueError(
                f"{name!r} cannot be registered as a strategy: it is taken, or not a string."
                " Choose another name or pass `override=True`."
            )
        return super().register(name, strategy, description or "", override, **init_params)

    def available_strategies(self) -> list[str]:
        """Return the registered names, in order of registration."""
        return list(self)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Describe an entry."""
        entry = self.entry(name)
        return {
            "strategy": entry.factory,
            "strategy_name": name,
            "description": entry.description,
            "init_params": dict(entry.init_params),
        }


StrategyRegistry = STRATEGY_REGISTRY = StrategyNames()
for _strategy in (SingleDeviceStrategy, DDPStrategy, DataParallelStrategy, SingleDeviceXLAStrategy, XLAStrategy):
    _strategy.register_strategies(STRATEGY_REGISTRY)
DeepSpeedStrategy.register_strategies(STRATEGY_REGISTRY)


def _fsdp(**arguments: Any) -> Strategy:
    from fulmen.strategies.fsdp import FSDPStrategy  # loads torch's sharded tensors: half a second

    return FSDPStrategy(**arguments)


STRATEGY_REGISTRY.register("fsdp", _fsdp, description="Fully sharded data parallel training (FSDP2)")
STRATEGY_REGISTRY.register(
    "fsdp_cpu_offload", _fsdp, description="as fsdp, with shards in host memory", cpu_offload=True
)
