"""The checks behind the first `self.log` of a name in a hook; later calls only look up the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fulmen.core.events import LOG_RULES, LogRule
from fulmen.metrics.objects import is_torchmetric
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["LogOptions", "Settled", "cannot_log", "settle"]

_REDUCTIONS: dict[str, str] = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max"}
_LOADER_MARK = "/dataloader_idx_"


class LogOptions(NamedTuple):
    """The keyword arguments of one `self.log` call that must stay the same for a (hook, name)."""

    prog_bar: bool
    logger: bool | None
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: str | Callable[..., Any]
    enable_graph: bool
    sync_dist: bool
    sync_dist_group: Any
    add_dataloader_idx: bool
    metric_attribute: str | None
    rank_zero_only: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """What the options of a `self.log` call come down to."""

    on_step: bool
    on_epoch: bool
    reduction: str
    step_name: str
    epoch_name: str
    plain_name: str
    logger: bool
    prog_bar: bool


def settle(hook: str, name: str, value: object, options: LogOptions, *, dataloader_idx: int | None) -> Settled:
    """Check one `self.log` call and work out its names and reduction.

    Raises:
        MisconfigurationException: Logging is not possible in this hook, or the options exclude each other.
        TypeError: The name is no string.
        ValueError: The value is no number, one-element tensor or metric.
        RuntimeError: The hook is not known.
    """
    rule = _rule(name, hook)
    _check_name(name)
    _check_value(name, value)
    on_step = rule.on_step if options.on_step is None else options.on_step
    on_epoch = rule.on_epoch if options.on_epoch is None else options.on_epoch
    if on_step and not rule.step_allowed:
        raise MisconfigurationException(
            f"`self.log({name!r}, on_step=True)` inside `{hook}` cannot work: no step is running there."
            " Use `on_step=False, on_epoch=True`, or log it in a batch hook."
        )
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"`self.log({name!r}, on_step=False, on_epoch=False)` would record nothing. Set one of them to True."
        )
    suffix = ""
    if dataloader_idx is not None and options.add_dataloader_idx:
        suffix = f"{_LOADER_MARK}{dataloader_idx}"
    forked = on_step and on_epoch
    return Settled(
        on_step=on_step,
        on_epoch=on_epoch,
        reduction=_reduction(name, options.reduce_fx),
        step_name=f"{name}_step{suffix}" if forked else name + suffix,
        epoch_name=f"{name}_epoch{suffix}" if forked else name + suffix,
        plain_name=name + suffix,
        logger=options.logger is not False,
        prog_bar=options.prog_bar,
    )


def cannot_log(name: str, hook: str | None) -> MisconfigurationException:
    """Return the error for `self.log` where nothing is recorded.

    Args:
        name: What was to be logged.
        hook: The hook that is running, if any.
    """
    where = f"inside `{hook}`" if hook else "outside of any hook"
    usable = ", ".join(f"`{known}`" for known in ("training_step", "on_train_epoch_end", "validation_step"))
    return MisconfigurationException(
        f"`self.log({name!r}, ...)` was called {where}, where nothing is recorded. Log in {usable} or another hook of a"
        " training, validation or test epoch."
    )


def _rule(name: str, hook: str) -> LogRule:
    try:
        rule = LOG_RULES[hook]
    except KeyError:
        raise RuntimeError(f"`self.log` was called inside `{hook}`, which is no hook that fulmen knows.") from None
    if rule is None:
        raise cannot_log(name, hook)
    return rule


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"`self.log({name!r}, ...)` got a {type(name).__name__} as name, but needs a string:"
            " `self.log('train_loss', loss)`."
        )
    if _LOADER_MARK in name:
        raise MisconfigurationException(
            f"`self.log({name!r})`: names must not contain {_LOADER_MARK!r}, it is added for several dataloaders."
            " Choose another name, or pass `add_dataloader_idx=False` with a name of your own per loader."
        )


def _check_value(name: str, value: object) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"`self.log({name!r}, ...)` got a tensor of shape {tuple(value.shape)}, but logs one number."
                " Reduce it first, e.g. `value.mean()`."
            )
        if value.is_complex():
            raise ValueError(
                f"`self.log({name!r}, ...)` got a complex tensor, but logs a real number. Log `value.abs()`, or the"
                " real and imaginary part under two names."
            )
    elif isinstance(value, Mapping) or (isinstance(value, nn.Module) and hasattr(value, "items")):  # a MetricCollection
        raise ValueError(
            f"`self.log({name!r}, ...)` got a {type(value).__name__}, but logs one number."
            " Use `self.log_dict(...)` for several values."
        )
    elif not hasattr(value, "__float__") and not is_torchmetric(value):
        raise ValueError(
            f"`self.log({name!r}, {value!r})` got a {type(value).__name__}, but logs a number,"
            " a one-element tensor or a torchmetrics `Metric`."
        )


def _reduction(name: str, reduce_fx: str | Callable[..., Any]) -> str:
    key = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
    known_function = isinstance(reduce_fx, str) or reduce_fx in (
        torch.mean,
        torch.sum,
        torch.min,
        torch.max,
        sum,
        min,
        max,
    )
    reduction = _REDUCTIONS.get(key.lower()) if known_function else None
    if reduction is None:
        raise MisconfigurationException(
            f"`self.log({name!r}, reduce_fx={reduce_fx!r})`: only 'mean', 'sum', 'min' and 'max' (or torch's functions"
            " of these names) can be computed over an epoch. For others log a `torchmetrics.Metric`."
        )
    return reduction
