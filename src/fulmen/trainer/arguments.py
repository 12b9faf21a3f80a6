"""Reading and checking the arguments of `Trainer(...)`."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fulmen.loops.limits import Limits
from fulmen.utilities.duration import parse_duration
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from fulmen.loggers.logger import Logger

__all__ = [
    "check_accumulate",
    "check_barebones",
    "check_clipping",
    "check_count",
    "check_fast_dev_run",
    "choose_loggers",
    "defaults_from_env",
    "make_limits",
    "parse_root_dir",
    "parse_val_check_interval",
]

F = TypeVar("F", bound=Callable[..., Any])


def defaults_from_env(init: F) -> F:
    """Take keyword arguments that are not passed from `PL_<CLASS>_<ARGUMENT>` in the environment."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def with_env(self: Any, *args: Any, **kwargs: Any) -> None:
        prefix = f"PL_{type(self).__name__.upper()}_"
        for name in names:
            text = os.environ.get(prefix + name.upper())
            if text and name not in kwargs:
                try:
                    kwargs[name] = ast.literal_eval(text)
                except (ValueError, SyntaxError):
                    kwargs[name] = text
        init(self, *args, **kwargs)

    return with_env  # type: ignore[return-value]  # functools.wraps keeps the signature


def make_limits(max_epochs: int | None, min_epochs: int | None, max_steps: int, min_steps: int | None) -> Limits:
    """Check the bounds of a fit.

    Raises:
        MisconfigurationException: A bound is below its least value.
    """
    _at_least("max_epochs", max_epochs, -1, "-1 trains without an end, 0 not at all")
    _at_least("max_steps", max_steps, -1, "-1 is no bound, 0 trains nothing")
    _at_least("min_epochs", min_epochs, 0, "None is no bound")
    _at_least("min_steps", min_steps, 0, "None is no bound")
    if min_epochs is None:
        min_epochs = 1 if min_steps else 0
    limits = Limits(max_steps=None if max_steps == -1 else max_steps, min_epochs=min_epochs, min_steps=min_steps or 0)
    return limits.with_max_epochs(max_epochs)


def _at_least(name: str, value: Any, least: int, meaning: str) -> None:
    if value is None and name != "max_steps":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MisconfigurationException(f"`Trainer({name}={value!r})` must be an int of at least {least} ({meaning}).")


def check_count(name: str, value: Any, *, least: int = 0, none_allowed: bool = False) -> Any:
    """Check an argument that counts something; return it."""
    if value is None and none_allowed:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = " or None" if none_allowed else ""
        raise MisconfigurationException(f"`Trainer({name}={value!r})` must be an int of at least {least}{allowed}.")
    return value


def check_accumulate(value: Any) -> int:
    """Check `accumulate_grad_batches`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MisconfigurationException(
            f"`Trainer(accumulate_grad_batches={value!r})` must be an int of at least 1: the number of batches per"
            " optimizer step. To change it over epochs use the callback `GradientAccumulationScheduler`."
        )
    return value


def check_clipping(value: Any, algorithm: Any) -> tuple[float | int | None, str | None]:
    """Check `gradient_clip_val` and `gradient_clip_algorithm`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"`Trainer(gradient_clip_val={value!r})` must be a number or None.")
    if algorithm is not None and str(algorithm).lower() not in ("norm", "value"):
        raise MisconfigurationException(
            f"`Trainer(gradient_clip_algorithm={algorithm!r})` is not known. Use 'norm' (total 2-norm) or 'value'."
        )
    return value, None if algorithm is None else str(algorithm).lower()


def check_fast_dev_run(value: Any) -> bool | int:
    """Return `fast_dev_run` as False, True (one batch) or the number of batches."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, int) or value < 0:
        raise MisconfigurationException(
            f"`Trainer(fast_dev_run={value!r})` must be True, False or the number of batches to run."
        )
    return bool(value) if value < 2 else value


def check_barebones(asked: dict[str, Any]) -> None:
    """Refuse features that `barebones=True` switches off.

    Raises:
        ValueError: One of them is asked for.
    """
    conflicts = [f"{name}={value!r}" for name, value in asked.items() if value]
    if conflicts:
        raise ValueError(
            f"`Trainer(barebones=True, {', '.join(conflicts)})`: barebones switches these off to show the bare cost"
            " of a"
            " loop. Leave them out, or leave out `barebones`."
        )
    rank_zero_info(
        "`Trainer(barebones=True)`: no checkpoints, logger, progress bar, model summary, sanity check, and"
        " `self.log` does"
        " nothing."
    )


def parse_val_check_interval(value: Any, every_n_epochs: int | None) -> tuple[int | float | None, float | None]:
    """Return `val_check_interval` as a count or fraction, or as seconds.

    Raises:
        MisconfigurationException: It is out of range, or a fraction without an epoch to refer to.
    """
    if isinstance(value, (str, timedelta, dict)):
        seconds = parse_duration(value, setting="Trainer(val_check_interval=...)").total_seconds()
        if seconds <= 0:
            raise MisconfigurationException(f"`Trainer(val_check_interval={value!r})` must be more than no time.")
        return None, seconds
    if value is None:
        return None, None
    if isinstance(value, float) and value > 1 and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_fraction = isinstance(value, float) and 0 < value <= 1
    if not is_count and not is_fraction:
        raise MisconfigurationException(
            f"`Trainer(val_check_interval={value!r})` must be an int of at least 1 (training batches), a float in"
            " (0, 1]"
            " (fraction of an epoch), or a duration. To switch validation off use `limit_val_batches=0`."
        )
    if every_n_epochs is None and isinstance(value, float):
        raise MisconfigurationException(
            f"`Trainer(check_val_every_n_epoch=None, val_check_interval={value!r})`: batches are counted over all"
            " epochs,"
            " so the interval must be an int."
        )
    return value, None


def parse_root_dir(value: Any) -> str:
    """Return `default_root_dir` as text; local paths are made absolute, URLs stay."""
    if value is None:
        return os.getcwd()
    text = os.fspath(value)
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        return str(text)
    return os.path.normpath(Path(text).expanduser())


def choose_loggers(logger: Any, root_dir: str) -> list[Logger]:
    """Return the loggers for `Trainer(logger=...)`.

    Raises:
        TypeError: Something in it is no logger.
    """
    from fulmen.loggers.logger import Logger

    if logger is None or logger is True:
        return [_default_logger(root_dir)]
    if logger is False:
        return []
    loggers = list(logger) if isinstance(logger, Iterable) and not isinstance(logger, Logger) else [logger]
    for item in loggers:
        if not isinstance(item, Logger):
            raise TypeError(
                f"`Trainer(logger=...)` got a {type(item).__name__}: {item!r}. Pass True, False, a `Logger` of"
                " `fulmen.loggers`, or a list of them."
            )
    return loggers


def _default_logger(root_dir: str) -> Logger:
    from fulmen.utilities.lazy import is_installed

    if is_installed("tensorboard") or is_installed("tensorboardX"):
        from fulmen.loggers.tensorboard import TensorBoardLogger

        version = os.environ.get("SLURM_JOB_ID")
        return TensorBoardLogger(save_dir=root_dir, version=version)
    from fulmen.loggers.csv_logs import CSVLogger

    rank_zero_info(
        "TensorBoard is not installed, so metrics go to a CSV file. For curves in the browser:"
        " pip install 'fulmen[loggers]'."
    )
    return CSVLogger(root_dir)
