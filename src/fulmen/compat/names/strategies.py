"""Strategies."""

from __future__ import annotations

__all__ = ["STRATEGIES"]

STRATEGIES: dict[str, dict[str, str]] = {
    "lightning.pytorch.strategies": {
        "fulmen.strategies.registry": "StrategyRegistry",
        "fulmen.strategies.single_device": "SingleDeviceStrategy",
        "fulmen.strategies.strategy": "Strategy",
    },
    "lightning.pytorch.strategies.single_device": {"fulmen.strategies.single_device": "SingleDeviceStrategy"},
    "lightning.pytorch.strategies.strategy": {"fulmen.strategies.strategy": "Strategy"},
}
