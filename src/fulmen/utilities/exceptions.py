"""Exceptions that several packages raise."""

from __future__ import annotations

__all__ = ["DamagedFileError", "MisconfigurationException", "RankFailedError", "SIGTERMException"]


class MisconfigurationException(Exception):
    """Settings that exclude each other, or a value that a setting cannot have."""


class SIGTERMException(SystemExit):
    """Ends a run after the process received SIGTERM."""


class DamagedFileError(RuntimeError):
    """A file that is truncated or whose content does not match its checksums."""


class RankFailedError(RuntimeError):
    """Another process of this run failed, so this one cannot go on.

    The message ends with the traceback of the process that failed first.

    Attributes:
        rank: The process that failed first; `None` if it is not known.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank
