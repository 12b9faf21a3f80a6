"""Run, log and warn on the first process only."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar, overload

__all__ = [
    "LightningDeprecationWarning",
    "WarningCache",
    "rank_prefixed_message",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")

_PACKAGE_FOLDER = str(Path(__file__).parents[1]) + os.sep
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# `stacklevel=4` is Lightning's count for "the line that calls `rank_zero_warn`"; here that is `sys._getframe(1)`.
_LEVEL_OF_CALLER = 4


class LightningDeprecationWarning(DeprecationWarning):
    """Something that a later release removes; shown by default, unlike a plain `DeprecationWarning`."""


if not sys.warnoptions:  # `python -W ...` decides otherwise
    warnings.simplefilter("default", category=LightningDeprecationWarning)


def _rank_from_environment() -> int:
    for variable in _RANK_VARIABLES:
        text = os.environ.get(variable)
        if text is not None:
            return int(text)
    return 0


class _RankZeroOnly:
    """Decorator object; one instance, `rank_zero_only`."""

    def __init__(self) -> None:
        self._rank: int | None = None

    @property
    def rank(self) -> int:
        """Rank of this process; set by the strategy, before that found in the environment on first use."""
        if self._rank is None:
            self._rank = _rank_from_environment()
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank

    @overload
    def __call__(self, fn: Callable[P, T], default: None = None) -> Callable[P, T | None]: ...

    @overload
    def __call__(self, fn: Callable[P, T], default: D) -> Callable[P, T | D]: ...

    def __call__(self, fn: Callable[P, Any], default: Any = None) -> Callable[P, Any]:
        """Make `fn` run on rank 0 only.

        Args:
            fn: The function.
            default: What the other ranks get instead of the result.

        Returns:
            The wrapped function.
        """

        @functools.wraps(fn)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> Any:
            if self.rank == 0:
                return fn(*args, **kwargs)
            return default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


def rank_zero_debug(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a message at level DEBUG on rank 0.

    Args:
        args: Message and its arguments, as for `logging.Logger.debug`.
        stacklevel: Which line the record names; 4 is the line of this call, 5 its caller.
        kwargs: Further arguments of `logging.Logger.debug`.
    """
    if rank_zero_only.rank == 0:
        log.debug(*args, stacklevel=stacklevel - _LEVEL_OF_CALLER + 2, **kwargs)


def rank_zero_info(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a message at level INFO on rank 0.

    Args:
        args: Message and its arguments, as for `logging.Logger.info`.
        stacklevel: Which line the record names; 4 is the line of this call, 5 its caller.
        kwargs: Further arguments of `logging.Logger.info`.
    """
    if rank_zero_only.rank == 0:
        log.info(*args, stacklevel=stacklevel - _LEVEL_OF_CALLER + 2, **kwargs)


def rank_zero_warn(message: str | Warning, stacklevel: int = 4, **kwargs: Any) -> None:
    """Warn on rank 0, pointing at the user's line.

    Args:
        message: The text, or a warning object.
        stacklevel: Where the search for the user's line begins; 4 is the line of this call, 5 its caller. From there
            on, frames of this package are passed over; if there are no others the warning points at where it began.
        kwargs: `category` (default `UserWarning`) and other arguments of `warnings.warn`.
    """
    if rank_zero_only.rank == 0:
        warnings.warn(message, stacklevel=_level_of_user(stacklevel - _LEVEL_OF_CALLER + 2), **kwargs)


def _level_of_user(first: int) -> int:
    """Count for `warnings.warn` of the innermost frame outside the package, from count `first` outwards."""
    frame: FrameType | None = sys._getframe(1)  # the caller, which `warnings.warn` counts as 1
    level = 1
    while frame is not None:
        if level >= first and not frame.f_code.co_filename.startswith(_PACKAGE_FOLDER):
            return level
        frame = frame.f_back
        level += 1
    return first


def rank_zero_deprecation(message: str | Warning, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn on rank 0 with `LightningDeprecationWarning`.

    Args:
        message: What is deprecated, what replaces it, and which release drops it.
        stacklevel: As for `rank_zero_warn`; the default begins at the caller of the deprecated function.
        kwargs: Other arguments of `warnings.warn`.
    """
    kwargs.setdefault("category", LightningDeprecationWarning)
    rank_zero_warn(message, stacklevel=stacklevel + 1, **kwargs)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """Put the rank in front of a message.

    Args:
        message: The text.
        rank: The rank; `None` leaves the text as it is.

    Returns:
        For example `"[rank: 3] text"`.
    """
    return message if rank is None else f"[rank: {rank}] {message}"


class WarningCache(set[str]):
    """Messages said already; each is said once.

    Example::

        cache = WarningCache()
        cache.warn("said once")
        cache.warn("said once")  # nothing
    """

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Call `rank_zero_warn` the first time that `message` comes; 5 stands for the line of this call."""
        if self._is_new(message):
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """Call `rank_zero_deprecation` the first time that `message` comes; 6 is the caller of the deprecated code."""
        if self._is_new(message):
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Call `rank_zero_info` the first time that `message` comes; 5 stands for the line of this call."""
        if self._is_new(message):
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)

    def _is_new(self, message: str) -> bool:
        if message in self:
            return False
        self.add(message)
        return True
