"""Type aliases and small protocols that the public signatures use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, Union, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = [
    "EVAL_DATALOADERS",
    "FLOAT16_EPSILON",
    "FLOAT32_EPSILON",
    "FLOAT64_EPSILON",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "Batch",
    "CollectibleGroup",
    "DistributedDataParallel",
    "LRSchedulerConfig",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "Optimizable",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
    "Stateful",
    "StepOutput",
    "Steppable",
]

FLOAT16_EPSILON = torch.finfo(torch.float16).eps
FLOAT32_EPSILON = torch.finfo(torch.float32).eps
FLOAT64_EPSILON = torch.finfo(torch.float64).eps

# `Union` and not `|` where the alias is an object at run time: users and `typing.get_type_hints` read them.
Batch: TypeAlias = Any
STEP_OUTPUT: TypeAlias = Union[Tensor, Mapping[str, Any], None]  # noqa: UP007 - see above
StepOutput: TypeAlias = STEP_OUTPUT
TRAIN_DATALOADERS: TypeAlias = Any
EVAL_DATALOADERS: TypeAlias = Any

_NUMBER: TypeAlias = Union[int, float]  # noqa: UP007 - see above
_METRIC: TypeAlias = "Metric | Tensor | int | float"  # a string, because torchmetrics must not be imported
_EVALUATE_OUTPUT: TypeAlias = list[Mapping[str, float]]
_PREDICT_OUTPUT: TypeAlias = Union[list[Any], list[list[Any]]]  # noqa: UP007 - see above
_PATH: TypeAlias = Union[str, Path]  # noqa: UP007 - see above
_DEVICE: TypeAlias = Union[torch.device, str, int]  # noqa: UP007 - see above
_MAP_LOCATION_TYPE: TypeAlias = (
    "torch.device | str | int | Callable[[torch.UntypedStorage, str], torch.UntypedStorage | None]"
    " | dict[torch.device | str | int, torch.device | str | int] | None"
)

LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion: TypeAlias = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007 - see above
LRSchedulerType: TypeAlias = Union[type[LRScheduler], type[ReduceLROnPlateau]]  # noqa: UP007 - see above
LRSchedulerPLType: TypeAlias = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007 - see above


@dataclass
class LRSchedulerConfig:
    """A learning rate scheduler and when it steps.

    Args:
        scheduler: The scheduler.
        name: Name under which the learning rate is logged; default the class name of the optimizer.
        interval: "epoch" or "step": after every epoch, or after every optimizer step.
        frequency: Every how many intervals it steps.
        reduce_on_plateau: True if `step` takes the monitored value.
        monitor: Name of the logged metric whose value `step` gets.
        strict: Raise if the monitored metric is missing, else only warn.
    """

    scheduler: LRSchedulerTypeUnion
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class _Scheduled(TypedDict):
    scheduler: LRSchedulerTypeUnion


class LRSchedulerConfigType(_Scheduled, total=False):
    """Dictionary form of `LRSchedulerConfig`; only `scheduler` is needed."""

    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """What `configure_optimizers` may return: an optimizer alone."""

    optimizer: Optimizer


class _Optimized(TypedDict):
    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType


class OptimizerLRSchedulerConfig(_Optimized, total=False):
    """What `configure_optimizers` may return: an optimizer with its scheduler, and what the scheduler monitors."""

    monitor: str


OptimizerLRScheduler: TypeAlias = Union[  # noqa: UP007 - see above
    Optimizer,
    Sequence[Optimizer],
    tuple[Sequence[Optimizer], Sequence[Union[LRSchedulerTypeUnion, LRSchedulerConfig]]],  # noqa: UP007 - see above
    OptimizerConfig,
    OptimizerLRSchedulerConfig,
    Sequence[OptimizerConfig],
    Sequence[OptimizerLRSchedulerConfig],
    None,
]


@runtime_checkable
class Stateful(Protocol):
    """Anything that can give and take its state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state."""
        ...


_Stateful = Stateful


@runtime_checkable
class Steppable(Protocol):
    """Anything with a `step` like an optimizer's."""

    def step(self, closure: Callable[[], Any] | None = ...) -> Any:
        """Do one step."""
        ...


@runtime_checkable
class Optimizable(Steppable, Protocol):
    """Anything that looks like an optimizer."""

    param_groups: list[dict[Any, Any]]
    defaults: dict[Any, Any]
    state: Any

    def state_dict(self) -> dict[str, dict[Any, Any]]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, dict[Any, Any]]) -> None:
        """Take over a state."""
        ...


@runtime_checkable
class CollectibleGroup(Protocol):
    """A group of processes."""

    def size(self) -> int:
        """Return the number of processes in it."""
        ...

    def rank(self) -> int:
        """Return the number of this process in it."""
        ...


@runtime_checkable
class DistributedDataParallel(Protocol):
    """Anything that can hold back the synchronisation of gradients, like torch's class of this name."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which gradients stay local."""
        ...


@runtime_checkable
class _SizedIterable(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...
