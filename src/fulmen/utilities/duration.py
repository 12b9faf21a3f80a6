"""Lengths of time as users write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["parse_duration"]


def parse_duration(value: Any, *, setting: str) -> timedelta:
    """Read "DD:HH:MM:SS", a timedelta, or a dict of its arguments.

    Args:
        value: What the user wrote.
        setting: The setting for the message, e.g. `"Trainer(max_time=...)"`.

    Raises:
        MisconfigurationException: The text is malformed, the type is another, or the time is negative.
    """
    duration = _read(value, setting)
    if duration < timedelta():
        raise MisconfigurationException(f"`{setting}` got {value!r}, which is negative. Pass a time of 0 or more.")
    return duration


def _read(value: Any, setting: str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, dict):
        try:
            return timedelta(**value)
        except TypeError as error:
            raise MisconfigurationException(
                f"`{setting}` got {value!r}: its keys must be arguments of `datetime.timedelta`, e.g. {{'hours': 1}}."
            ) from error
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise MisconfigurationException(
            f"`{setting}` got {value!r}, which is no duration. Write 'DD:HH:MM:SS', e.g. '00:01:30:00' for 90 minutes,"
            " or pass a `datetime.timedelta`, or a dict such as {'hours': 1}."
        )
    days, hours, minutes, seconds = map(int, match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
