"""A wrapper that old programs put around their module for 64 bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fulmen.core.device import DeviceDtypeModule
from fulmen.core.module import LightningModule
from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.utilities.rank_zero import rank_zero_deprecation

__all__ = ["LightningDoublePrecisionModule"]


class LightningDoublePrecisionModule(DeviceDtypeModule):
    """Runs `forward` and the steps of a module with inputs and new tensors in 64 bit.

    Deprecated: `Trainer(precision="64-true")` does all of it, and converts the weights too.

    Args:
        pl_module: The module, whose parameters are converted already.

    Attributes:
        module: The module.
    """

    def __init__(self, pl_module: LightningModule) -> None:
        super().__init__()
        rank_zero_deprecation(
            "`LightningDoublePrecisionModule` is deprecated since Lightning 2.1: a module needs no wrapper to compute"
            " in 64 bit. Pass `Trainer(precision='64-true')`."
        )
        self.module = pl_module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return _in_64_bit(self.module, args, kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call `training_step` of the module."""
        return _in_64_bit(self.module.training_step, args, kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call `validation_step` of the module."""
        return _in_64_bit(self.module.validation_step, args, kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call `test_step` of the module."""
        return _in_64_bit(self.module.test_step, args, kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call `predict_step` of the module."""
        return _in_64_bit(self.module.predict_step, args, kwargs)


def _in_64_bit(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with DefaultDtype(torch.float64):
        return method(*convert_floats(args, torch.float64), **convert_floats(kwargs, torch.float64))
