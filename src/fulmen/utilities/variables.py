"""Environment variables that are set for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["variables_set"]


@contextmanager
def variables_set(values: Mapping[str, str | int | None]) -> Iterator[None]:
    """Context in which environment variables have other values; they are as before afterwards.

    Args:
        values: By name; `None` leaves a variable as it is.
    """
    before = {name: os.environ.get(name) for name, value in values.items() if value is not None}
    os.environ.update({name: str(values[name]) for name in before})
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
