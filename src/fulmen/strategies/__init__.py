"""How a module is trained on the devices of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.strategies.registry import STRATEGY_REGISTRY as STRATEGY_REGISTRY
    from fulmen.strategies.registry import StrategyRegistry as StrategyRegistry
    from fulmen.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy
    from fulmen.strategies.strategy import Strategy as Strategy

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "STRATEGY_REGISTRY": "fulmen.strategies.registry",
        "SingleDeviceStrategy": "fulmen.strategies.single_device",
        "Strategy": "fulmen.strategies.strategy",
        "StrategyRegistry": "fulmen.strategies.registry",
    },
)
