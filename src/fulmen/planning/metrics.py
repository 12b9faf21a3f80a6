"""The torchmetrics objects of a module, which count by values: a plan goes without what they do."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["skip_metrics"]


def skip_metrics(module: nn.Module, notes: list[str]) -> None:
    """Let the metrics of a module take what they are given, and give 1.0.

    Args:
        module: A module that is used for nothing else.
        notes: Takes a remark if there are metrics.
    """
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:  # a module has none of its objects before somebody imported it
        return
    names: set[str] = set()
    for child in list(module.modules()):
        if isinstance(child, torchmetrics.MetricCollection):
            result: Any = functools.partial(_values_of, tuple(child.keys()))
        elif isinstance(child, torchmetrics.Metric):
            names.add(type(child).__name__)
            result = _value
        else:
            continue
        for name, function in (
            ("forward", result),
            ("compute", result),
            ("update", _do_nothing),
            ("reset", _do_nothing),
        ):
            object.__setattr__(child, name, function)
    if names:
        notes.append(f"Metrics are left out, and 1.0 is taken for their values: {', '.join(sorted(names))}.")


def _value(*_: Any, **__: Any) -> Tensor:
    return torch.ones(())


def _values_of(names: tuple[str, ...], *_: Any, **__: Any) -> dict[str, Tensor]:
    return {name: torch.ones(()) for name in names}


def _do_nothing(*_: Any, **__: Any) -> None:
    pass
