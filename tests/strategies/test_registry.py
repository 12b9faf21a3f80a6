"""Strategies by name."""

from __future__ import annotations

import pytest
import torch

from fulmen.strategies import STRATEGY_REGISTRY, SingleDeviceStrategy, StrategyRegistry


@pytest.fixture
def mine():
    @StrategyRegistry.register("mine", description="a test", device="meta")
    class Mine(SingleDeviceStrategy):
        pass

    yield Mine
    StrategyRegistry.remove("mine")


def test_built_in_strategies_are_registered():
    assert StrategyRegistry is STRATEGY_REGISTRY
    assert "single_device" in StrategyRegistry.available_strategies()
    assert isinstance(StrategyRegistry.get("single_device"), SingleDeviceStrategy)


def test_registered_strategy_gets_its_arguments(mine):
    strategy = StrategyRegistry.get("mine")

    assert type(strategy) is mine
    assert strategy.root_device == torch.device("meta")
    assert StrategyRegistry["mine"] == {
        "strategy": mine,
        "strategy_name": "mine",
        "description": "a test",
        "init_params": {"device": "meta"},
    }


def test_a_name_is_not_taken_twice_unless_overridden(mine):
    with pytest.raises(ValueError, match="override=True"):
        StrategyRegistry.register("mine", mine)

    StrategyRegistry.register("mine", strategy=mine, override=True)

    assert StrategyRegistry["mine"]["init_params"] == {}


def test_unknown_name_raises_unless_a_default_is_given():
    assert StrategyRegistry.get("nothing", 4) == 4
    with pytest.raises(KeyError, match="nothing"):
        StrategyRegistry.get("nothing")
