"""Commands of the terminal, and the command lines of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.cli.argument_parser import LightningArgumentParser as LightningArgumentParser
    from fulmen.cli.command import main as main
    from fulmen.cli.instantiation import instantiate_class as instantiate_class
    from fulmen.cli.instantiation import instantiate_module as instantiate_module
    from fulmen.cli.lightning_cli import LightningCLI as LightningCLI
    from fulmen.cli.optimizers import ArgsType as ArgsType
    from fulmen.cli.optimizers import LRSchedulerCallable as LRSchedulerCallable
    from fulmen.cli.optimizers import LRSchedulerType as LRSchedulerType
    from fulmen.cli.optimizers import LRSchedulerTypeTuple as LRSchedulerTypeTuple
    from fulmen.cli.optimizers import LRSchedulerTypeUnion as LRSchedulerTypeUnion
    from fulmen.cli.optimizers import OptimizerCallable as OptimizerCallable
    from fulmen.cli.optimizers import ReduceLROnPlateau as ReduceLROnPlateau
    from fulmen.cli.save_config import SaveConfigCallback as SaveConfigCallback

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ArgsType": "fulmen.cli.optimizers",
        "LRSchedulerCallable": "fulmen.cli.optimizers",
        "LRSchedulerType": "fulmen.cli.optimizers",
        "LRSchedulerTypeTuple": "fulmen.cli.optimizers",
        "LRSchedulerTypeUnion": "fulmen.cli.optimizers",
        "LightningArgumentParser": "fulmen.cli.argument_parser",
        "LightningCLI": "fulmen.cli.lightning_cli",
        "OptimizerCallable": "fulmen.cli.optimizers",
        "ReduceLROnPlateau": "fulmen.cli.optimizers",
        "SaveConfigCallback": "fulmen.cli.save_config",
        "instantiate_class": "fulmen.cli.instantiation",
        "instantiate_module": "fulmen.cli.instantiation",
        "main": "fulmen.cli.command",
    },
)
