"""Exceptions that several packages raise."""

from __future__ import annotations

__all__ = ["DamagedFileError", "MisconfigurationException", "SIGTERMException"]


class MisconfigurationException(Exception):
    """Settings that exclude each other, or a value that a setting cannot have."""


class SIGTERMException(SystemExit):
    """Ends a run after the process received SIGTERM."""


class DamagedFileError(RuntimeError):
    """A file that is truncated or whose content does not match its checksums."""
