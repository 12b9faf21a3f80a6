"""Reading and checking the arguments of `Trainer(...)`."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fulmen.loops.limits import Limits
from fulmen.utilities.duration import parse_duration
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.loggers.logger import Logger

__all__ = [
    "check_accumulate",
    "check_barebones",
    "check_clipping",
    "check_count",
    "check_fast_dev_run",
    "check_flags",
    "choose_loggers",
    "defaults_from_env",
    "make_limits",
    "parse_root_dir",
    "parse_val_check_interval",
]

F = TypeVar("F", bound=Callable[..., Any])

# arguments of early versions of Lightning, and what does their work today
_REMOVED = {
    "gpus": "`Trainer(accelerator='gpu', devices=...)`",
    "num_processes": "`Trainer(accelerator='cpu', devices=...)`",
    "distributed_backend": "`Trainer(strategy=...)`",
    "resume_from_checkpoint": "`trainer.fit(ckpt_path=...)`",
    "checkpoint_callback": "`Trainer(enable_checkpointing=...)`",
    "progress_bar_refresh_rate": "`Trainer(callbacks=[TQDMProgressBar(refresh_rate=...)])`",
    "weights_summary": "`Trainer(enable_model_summary=...)`",
    "weights_save_path": "`Trainer(callbacks=[ModelCheckpoint(dirpath=...)])`",
    "flush_logs_every_n_steps": "`Trainer(logger=CSVLogger(..., flush_logs_every_n_steps=...))`",
    "terminate_on_nan": "`Trainer(detect_anomaly=...)`",
    "track_grad_norm": "`self.log_dict(grad_norm(self, norm_type=2))` in `on_before_optimizer_step`",
    "replace_sampler_ddp": "`Trainer(use_distributed_sampler=...)`",
    "amp_backend": "`Trainer(precision='16-mixed')`",
    "amp_level": "`Trainer(precision='16-mixed')`",
}
_MEANING = {
    "check_val_every_n_epoch": "1 validates in each epoch; None counts training batches over epochs",
    "num_sanity_val_steps": "-1 runs all validation batches, 0 none",
    "log_every_n_steps": "0 writes no rows of training metrics",
    "reload_dataloaders_every_n_epochs": "0 keeps the dataloaders for the whole run",
}


def defaults_from_env(init: F) -> F:
    """Take keyword arguments that are not passed from `PL_<CLASS>_<ARGUMENT>` in the environment."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def with_env(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in names:
                raise TypeError(f"Trainer.__init__() got an unexpected keyword argument {name!r}.{_hint(name, names)}")
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


def _hint(name: str, known: list[str]) -> str:
    if name in _REMOVED:
        return f" It was removed. Use {_REMOVED[name]}."
    similar = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{similar[0]}`?" if similar else " `help(fulmen.Trainer)` lists the arguments."


def _as_int(value: Any) -> int | None:
    """Return whole numbers of all types (numpy's, 1e6) as an int, None for everything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def make_limits(max_epochs: int | None, min_epochs: int | None, max_steps: int, min_steps: int | None) -> Limits:
    """Check the bounds of a fit.

    Raises:
        MisconfigurationException: A bound is below its least value.
    """
    most_steps = _at_least("max_steps", max_steps, -1, "-1 is no bound, 0 trains nothing")
    if most_steps is None:
        raise MisconfigurationException("`Trainer(max_steps=None)` must be an int of at least -1 (-1 is no bound).")
    max_epochs = _at_least("max_epochs", max_epochs, -1, "-1 trains without an end, 0 not at all")
    min_epochs = _at_least("min_epochs", min_epochs, 0, "None is no bound")
    min_steps = _at_least("min_steps", min_steps, 0, "None is no bound")
    _warn_of_unreachable("epochs", min_epochs, max_epochs)
    _warn_of_unreachable("steps", min_steps, most_steps)
    if min_epochs is None:
        min_epochs = 1 if min_steps else 0
    limits = Limits(max_steps=None if most_steps == -1 else most_steps, min_epochs=min_epochs, min_steps=min_steps or 0)
    return limits.with_max_epochs(max_epochs)


def _at_least(name: str, value: Any, least: int, meaning: str) -> int | None:
    if value is None:
        return None
    number = _as_int(value)
    if number is None or number < least:
        raise MisconfigurationException(f"`Trainer({name}={value!r})` must be an int of at least {least} ({meaning}).")
    return number


def _warn_of_unreachable(unit: str, least: int | None, most: int | None) -> None:
    if least is not None and most is not None and -1 < most < least:
        rank_zero_warn(
            f"`Trainer(min_{unit}={least}, max_{unit}={most})`: training ends after {most} {unit}, so the minimum has"
            " no effect. Raise the maximum, or leave out the minimum."
        )


def check_count(name: str, value: Any, *, least: int = 0, none_allowed: bool = False) -> Any:
    """Check an argument that counts something; return it."""
    if value is None and none_allowed:
        return value
    number = _as_int(value)
    if number is None or number < least:
        allowed = " or None" if none_allowed else ""
        meaning = f" ({_MEANING[name]})" if name in _MEANING else ""
        raise MisconfigurationException(
            f"`Trainer({name}={value!r})` must be an int of at least {least}{allowed}{meaning}."
        )
    return number


def check_flags(**flags: Any) -> None:
    """Check arguments that are True or False; `None` for those whose default it is.

    Raises:
        TypeError: One is something else, e.g. the text "false", which Python takes for true.
    """
    for name, value in flags.items():
        may_be_none = name.startswith("enable_") and name != "enable_autolog_hparams"
        if value in (True, False) or (value is None and may_be_none):
            continue
        allowed = "True, False or None" if may_be_none else "True or False"
        raise TypeError(f"`Trainer({name}={value!r})` must be {allowed}, not a {type(value).__name__}.")


def check_accumulate(value: Any) -> int:
    """Check `accumulate_grad_batches`; with "auto" a window is one batch."""
    number = 1 if value == "auto" else _as_int(value)
    if number is None or number < 1:
        raise MisconfigurationException(
            f"`Trainer(accumulate_grad_batches={value!r})` must be an int of at least 1: the number of batches per"
            " optimizer step; or 'auto', which divides a batch that does not fit into memory. To change it over epochs"
            " use the callback `GradientAccumulationScheduler`."
        )
    return number


def check_clipping(value: Any, algorithm: Any) -> tuple[float | int | None, str | None]:
    """Check `gradient_clip_val` and `gradient_clip_algorithm`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"`Trainer(gradient_clip_val={value!r})` must be a number, e.g. 1.0, or None for no clipping.")
    if value is not None and math.isnan(value):
        raise MisconfigurationException(
            "`Trainer(gradient_clip_val=nan)` would make every gradient NaN. Pass a number, or None for no clipping."
        )
    if algorithm is not None and str(algorithm).lower() not in ("norm", "value"):
        raise MisconfigurationException(
            f"`Trainer(gradient_clip_algorithm={algorithm!r})` is not known. Use 'norm' (total 2-norm) or 'value'."
        )
    clip_val = value if value is None or isinstance(value, (int, float)) else float(value)
    return clip_val, None if algorithm is None else str(algorithm).lower()


def check_fast_dev_run(value: Any) -> bool | int:
    """Return `fast_dev_run` as False, True (one batch) or the number of batches."""
    if isinstance(value, bool):
        return value
    number = _as_int(value)
    if number is None or number < 0:
        raise MisconfigurationException(
            f"`Trainer(fast_dev_run={value!r})` must be True, False or the number of batches to run."
        )
    return bool(number) if number < 2 else number


def check_barebones(asked: dict[str, Any]) -> None:
    """Refuse features that `barebones=True` switches off.

    Raises:
        ValueError: One of them is asked for.
    """
    conflicts = [f"{name}={value!r}" for name, value in asked.items() if value]
    if conflicts:
        raise ValueError(
            f"`Trainer(barebones=True, {', '.join(conflicts)})`: barebones switches these off to show the bare cost"
            " of a loop. Leave them out, or leave out `barebones`."
        )
    rank_zero_info(
        "`Trainer(barebones=True)`: no checkpoints, logger, progress bar, model summary, sanity check, and"
        " `self.log` does nothing."
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
        return 1.0, None
    if isinstance(value, float) and value > 1 and value.is_integer():
        value = int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_fraction = isinstance(value, float) and 0 < value <= 1
    if not is_count and not is_fraction:
        raise MisconfigurationException(
            f"`Trainer(val_check_interval={value!r})` must be an int of at least 1 (training batches), a float in"
            " (0, 1] (fraction of an epoch), or a duration. To switch validation off use `limit_val_batches=0`."
        )
    if every_n_epochs is None and isinstance(value, float):
        raise MisconfigurationException(
            f"`Trainer(check_val_every_n_epoch=None, val_check_interval={value!r})`: batches are counted over all"
            " epochs, so the interval must be an int."
        )
    return value, None


def parse_root_dir(value: Any) -> str:
    """Return `default_root_dir` as text; local paths are made absolute, URLs stay."""
    if value is None:
        return os.getcwd()
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`Trainer(default_root_dir={value!r})` must be a path, as a string or a `pathlib.Path`.")
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
    several = isinstance(logger, Iterable) and not isinstance(logger, (Logger, str, type))
    loggers = list(logger) if several else [logger]
    for item in loggers:
        if not isinstance(item, Logger):
            hint = f" Make an object of it: `{item.__name__}(...)`." if isinstance(item, type) else ""
            raise TypeError(
                f"`Trainer(logger={item!r})` is no logger.{hint} Pass True, False, a `Logger` of `fulmen.loggers`, or a"
                " list of them."
            )
    return loggers


def _default_logger(root_dir: str) -> Logger:
    from fulmen.utilities.lazy import is_installed

    version = os.environ.get("SLURM_JOB_ID")  # so that a requeued job continues its log
    if is_installed("tensorboard") or is_installed("tensorboardX"):
        from fulmen.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(save_dir=root_dir, version=version)
    from fulmen.loggers.csv_logs import CSVLogger

    rank_zero_info(
        "TensorBoard is not installed, so metrics go to a CSV file. For curves in the browser:"
        " pip install 'fulmen[loggers]'."
    )
    return CSVLogger(root_dir, version=version)
