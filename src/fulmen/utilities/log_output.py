"""Where log records of the package go in a program that sets up no logging of its own."""

from __future__ import annotations

import logging

__all__ = ["show_records"]


class _FallbackHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only, not on Python 3.10
    """Write to standard error as long as the root logger has no handler, asked at each record."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def show_records(logger: logging.Logger) -> None:
    """Show records of `logger` from level INFO on; once the program configures the root logger, it alone decides.

    Args:
        logger: The package's logger; a level set before stays. Calling again changes nothing.
    """
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _FallbackHandler) for handler in logger.handlers):
        logger.addHandler(_FallbackHandler())
