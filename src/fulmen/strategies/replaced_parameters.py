"""Optimizers that were made of parameters which have been replaced since, by parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.strategies.shards import local_part

__all__ = ["ReplacedParameters"]


class ReplacedParameters:
    """Which parameters have taken the place of which, as long as somebody has the old ones.

    An optimizer that kept the old ones would go on to update them, and train nothing.
    """

    def __init__(self) -> None:
        self._now: Any = WeakIdKeyDictionary()

    def note(self, before: Mapping[str, nn.Parameter], module: nn.Module) -> None:
        """Remember what happened to a module.

        Args:
            before: Its parameters before, by name.
            module: The module now.
        """
        for name, new in module.named_parameters(remove_duplicate=False):
            old = before.get(name)
            if old is not None and old is not new:
                self._now[old] = new

    def point(self, optimizer: Optimizer) -> None:
        """Let an optimizer update the new parameters in the place of the old ones.

        Args:
            optimizer: In place; groups, order and state stay.
        """
        for group in optimizer.param_groups:
            before = list(group["params"])
            group["params"] = [self._now.get(parameter, parameter) for parameter in before]
            for old, new in zip(before, group["params"], strict=True):
                if old is not new and old in optimizer.state:
                    optimizer.state[new] = {
                        name: _cut_alike(value, old, new) for name, value in optimizer.state.pop(old).items()
                    }


def _cut_alike(value: Any, old: Tensor, new: Any) -> Any:
    is_like = isinstance(value, Tensor) and isinstance(new, DTensor) and value.shape == old.shape and value.ndim > 0
    return local_part(value, new).to(new.device) if is_like else value
