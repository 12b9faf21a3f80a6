"""Strategies."""

from __future__ import annotations

__all__ = ["STRATEGIES"]

STRATEGIES: dict[str, dict[str, str]] = {
    "lightning.pytorch.strategies": {
        "fulmen.strategies.ddp": "DDPStrategy",
        "fulmen.strategies.deepspeed": "DeepSpeedStrategy",
        "fulmen.strategies.fsdp": "FSDPStrategy",
        "fulmen.strategies.model_parallel": "ModelParallelStrategy",
        "fulmen.strategies.parallel": "ParallelStrategy",
        "fulmen.strategies.registry": "StrategyRegistry",
        "fulmen.strategies.single_device": "SingleDeviceStrategy",
        "fulmen.strategies.single_xla": "SingleDeviceXLAStrategy",
        "fulmen.strategies.strategy": "Strategy",
        "fulmen.strategies.xla": "XLAStrategy",
    },
    "lightning.pytorch.strategies.ddp": {"fulmen.strategies.ddp": "DDPStrategy"},
    "lightning.pytorch.strategies.deepspeed": {
        "fulmen.strategies.deepspeed": "DeepSpeedStrategy",
        "fulmen.strategies.deepspeed_engine": "remove_module_hooks",
    },
    "lightning.pytorch.strategies.fsdp": {"fulmen.strategies.fsdp": "FSDPStrategy"},
    "lightning.pytorch.strategies.launchers": {
        "fulmen.compat.launchers": (
            "_MultiProcessingLauncher=MultiProcessingLauncher _SubprocessScriptLauncher=SubprocessScriptLauncher "
            "_XLALauncher=XLALauncher"
        ),
        "fulmen.strategies.launchers.launcher": "_Launcher=Launcher",
    },
    "lightning.pytorch.strategies.launchers.launcher": {"fulmen.strategies.launchers.launcher": "_Launcher=Launcher"},
    "lightning.pytorch.strategies.launchers.multiprocessing": {
        "fulmen.compat.launchers": "_MultiProcessingLauncher=MultiProcessingLauncher",
    },
    "lightning.pytorch.strategies.launchers.subprocess_script": {
        "fulmen.compat.launchers": "_SubprocessScriptLauncher=SubprocessScriptLauncher",
    },
    "lightning.pytorch.strategies.launchers.xla": {"fulmen.compat.launchers": "_XLALauncher=XLALauncher"},
    "lightning.pytorch.strategies.model_parallel": {"fulmen.strategies.model_parallel": "ModelParallelStrategy"},
    "lightning.pytorch.strategies.parallel": {"fulmen.strategies.parallel": "ParallelStrategy"},
    "lightning.pytorch.strategies.single_device": {"fulmen.strategies.single_device": "SingleDeviceStrategy"},
    "lightning.pytorch.strategies.single_xla": {"fulmen.strategies.single_xla": "SingleDeviceXLAStrategy"},
    "lightning.pytorch.strategies.strategy": {"fulmen.strategies.strategy": "Strategy"},
    "lightning.pytorch.strategies.xla": {"fulmen.strategies.xla": "XLAStrategy"},
}
