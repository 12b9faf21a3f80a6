"""Optimizers and schedulers from the command line: their types, and the one that needs to know what to watch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, TypeAlias, Union

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fulmen.cli.instantiation import instantiate_class

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule

__all__ = [
    "ArgsType",
    "Configure",
    "LRSchedulerCallable",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "configure_by",
    "set_optimizer",
]


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """The scheduler of torch of the same name, and the name of the metric that it watches.

    Args:
        optimizer: The optimizer.
        monitor: Name of a logged metric.
        args: As for `torch.optim.lr_scheduler.ReduceLROnPlateau`.
        kwargs: Likewise.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


# `Union` and `Optional`, not `|`: the aliases are read at run time
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion: TypeAlias = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007 - see above
LRSchedulerType: TypeAlias = Union[type[LRScheduler], type[ReduceLROnPlateau]]  # noqa: UP007 - see above
ArgsType: TypeAlias = Optional[Union[list[str], dict[str, Any], Namespace]]  # noqa: UP007, UP045 - see above
OptimizerCallable: TypeAlias = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable: TypeAlias = Callable[[Optimizer], LRSchedulerTypeUnion]

Configure: TypeAlias = Callable[..., Any]


def set_optimizer(
    module: LightningModule, configure: Configure, optimizer: dict[str, Any], lr_scheduler: dict[str, Any] | None
) -> None:
    """Replace `module.configure_optimizers` by what the command line chose.

    The optimizer is built when the Trainer asks for it, over the parameters that the module has then.

    Args:
        module: The module; the attribute is set on this instance.
        configure: Called as `configure(module, optimizer, lr_scheduler)`; its result goes to the Trainer.
        optimizer: `{"class_path": ..., "init_args": ...}`.
        lr_scheduler: The same, or None.
    """
    module.configure_optimizers = partial(configure_by, module, configure, optimizer, lr_scheduler)  # type: ignore[method-assign]  # on purpose


def configure_by(
    module: LightningModule, configure: Configure, optimizer: dict[str, Any], lr_scheduler: dict[str, Any] | None
) -> Any:
    """Build optimizer and scheduler and return `configure(module, optimizer, lr_scheduler)`; see `set_optimizer`."""
    made = instantiate_class(module.parameters(), optimizer)
    return configure(module, made, None if lr_scheduler is None else instantiate_class(made, lr_scheduler))
