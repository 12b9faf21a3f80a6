"""The callbacks of a run: those given, those that come by default, and their order."""

from __future__ import annotations

import functools
import logging
import sys
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.callbacks.model_summary import ModelSummary
from fulmen.callbacks.progress.progress_bar import ProgressBar
from fulmen.callbacks.timer import Timer
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = ["add_module_callbacks", "in_order", "with_defaults"]

log = logging.getLogger(__name__)
_ENTRY_POINT_GROUPS = ("fulmen.callbacks_factory", "lightning.pytorch.callbacks_factory")


def with_defaults(
    given: Any, *, checkpointing: bool, progress_bar: bool, model_summary: bool, max_time: timedelta | None
) -> list[Callback]:
    """Return the callbacks given and those added by default, in calling order; the caller's list stays as it is.

    Raises:
        MisconfigurationException: A default is switched off but given, or there is more than one progress bar.
    """
    callbacks = [] if given is None else list(given) if isinstance(given, (list, tuple, set)) else [given]
    _check_switched_off(callbacks, Checkpoint, checkpointing, "enable_checkpointing")
    if checkpointing and not _have(callbacks, Checkpoint):
        callbacks.append(ModelCheckpoint())
    if max_time is not None:
        if _have(callbacks, Timer):
            rank_zero_info("`Trainer(max_time=...)` is ignored: a `Timer` callback is given.")
        else:
            callbacks.append(Timer(duration=max_time, interval="step"))
    _check_switched_off(callbacks, ProgressBar, progress_bar, "enable_progress_bar")
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        names = ", ".join(type(bar).__name__ for bar in bars)
        raise MisconfigurationException(f"`Trainer(callbacks=...)` has several progress bars: {names}. Keep one.")
    if progress_bar and not bars:
        callbacks.append(_default_bar())
    if not model_summary:
        _check_switched_off(callbacks, ModelSummary, model_summary, "enable_model_summary")
    elif not _have(callbacks, ModelSummary):
        callbacks.append(_default_summary(callbacks))
    callbacks.extend(_from_entry_points())
    return in_order(callbacks)


def in_order(callbacks: list[Callback]) -> list[Callback]:
    """Return tuners first, checkpoints last, the others as given."""
    tuners = [c for c in callbacks if getattr(c, "is_tuner", False)]
    checkpoints = [c for c in callbacks if isinstance(c, Checkpoint)]
    others = [c for c in callbacks if c not in tuners and c not in checkpoints]
    return tuners + others + checkpoints


def add_module_callbacks(callbacks: list[Callback], of_module: list[Callback]) -> list[Callback]:
    """Return the callbacks with those of `configure_callbacks`, which replace others of their class or a parent."""
    if not of_module:
        return callbacks
    types = {type(callback) for callback in of_module}
    replaced = [c for c in callbacks if type(c) is not Callback and any(issubclass(new, type(c)) for new in types)]
    if replaced:
        rank_zero_info(
            "These callbacks of the Trainer are replaced by those of `configure_callbacks`: "
            + ", ".join(sorted(type(c).__name__ for c in replaced))
        )
    kept = [c for c in callbacks if c not in replaced]
    return in_order(kept + of_module)


def _have(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _check_switched_off(callbacks: list[Callback], kind: type, enabled: bool, argument: str) -> None:
    if not enabled and _have(callbacks, kind):
        found = next(type(c).__name__ for c in callbacks if isinstance(c, kind))
        raise MisconfigurationException(
            f"`Trainer({argument}=False)` (which `barebones=True` sets, too) cannot be used with the `{found}` in"
            " `callbacks`. Remove one of the two."
        )


def _default_bar() -> ProgressBar:
    if is_installed("rich"):
        from fulmen.callbacks.progress.rich_progress import RichProgressBar

        return RichProgressBar()
    from fulmen.callbacks.progress.tqdm_progress import TQDMProgressBar

    return TQDMProgressBar()


def _default_summary(callbacks: list[Callback]) -> ModelSummary:
    if is_installed("rich"):
        from fulmen.callbacks.rich_model_summary import RichModelSummary

        return RichModelSummary()
    return ModelSummary()


def _from_entry_points() -> list[Callback]:
    found: list[Callback] = []
    for factory in _factories(tuple(sys.path)):
        made = factory.load()()
        found.extend(made if isinstance(made, list) else [made])
    return found


@functools.cache
def _factories(_: tuple[str, ...]) -> list[EntryPoint]:
    """Look through the installed packages once for each `sys.path`: it takes milliseconds."""
    installed = entry_points()
    return [factory for group in _ENTRY_POINT_GROUPS for factory in installed.select(group=group)]
