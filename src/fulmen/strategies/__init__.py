"""How a module is trained on the devices of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.strategies.data_parallel import DataParallelStrategy as DataParallelStrategy
    from fulmen.strategies.ddp import DDPStrategy as DDPStrategy
    from fulmen.strategies.deepspeed import DeepSpeedStrategy as DeepSpeedStrategy
    from fulmen.strategies.fsdp import FSDPStrategy as FSDPStrategy
    from fulmen.strategies.model_parallel import ModelParallelStrategy as ModelParallelStrategy
    from fulmen.strategies.parallel import ParallelStrategy as ParallelStrategy
    from fulmen.strategies.registry import STRATEGY_REGISTRY as STRATEGY_REGISTRY
    from fulmen.strategies.registry import StrategyRegistry as StrategyRegistry
    from fulmen.strategies.single_device import SingleDeviceStrategy as SingleDeviceStrategy
    from fulmen.strategies.single_xla import SingleDeviceXLAStrategy as SingleDeviceXLAStrategy
    from fulmen.strategies.strategy import Strategy as Strategy
    from fulmen.strategies.xla import XLAStrategy as XLAStrategy

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "STRATEGY_REGISTRY": "fulmen.strategies.registry",
        "DDPStrategy": "fulmen.strategies.ddp",
        "DataParallelStrategy": "fulmen.strategies.data_parallel",
        "DeepSpeedStrategy": "fulmen.strategies.deepspeed",
        "FSDPStrategy": "fulmen.strategies.fsdp",
        "ModelParallelStrategy": "fulmen.strategies.model_parallel",
        "ParallelStrategy": "fulmen.strategies.parallel",
        "SingleDeviceStrategy": "fulmen.strategies.single_device",
        "SingleDeviceXLAStrategy": "fulmen.strategies.single_xla",
        "Strategy": "fulmen.strategies.strategy",
        "StrategyRegistry": "fulmen.strategies.registry",
        "XLAStrategy": "fulmen.strategies.xla",
    },
)
