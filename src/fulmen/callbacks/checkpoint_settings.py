"""Settings of a `ModelCheckpoint` that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.files import is_local

__all__ = ["check_settings"]


def check_settings(
    triggers: Mapping[str, Any], *, monitor: str | None, save_top_k: int, save_last: object, dirpath: str | None
) -> None:
    """Refuse what cannot work.

    Args:
        triggers: The three ways to say when to save, by name.
        monitor: The logged metric that ranks files.
        save_top_k: How many files to keep.
        save_last: Whether and how to keep the last one.
        dirpath: The folder, if it was given.

    Raises:
        MisconfigurationException: More than one trigger, a negative number, or several files without `monitor`.
        ValueError: Links were asked for where there are none.
    """
    given = {name: value for name, value in triggers.items() if value}
    if len(given) > 1:
        raise MisconfigurationException(
            f"`ModelCheckpoint({', '.join(f'{name}={value!r}' for name, value in given.items())})`: the triggers"
            " are mutually exclusive. Give one, and add a second `ModelCheckpoint` for the other."
        )
    minima = {"every_n_train_steps": 0, "every_n_epochs": 0, "save_top_k": -1}
    values = {**triggers, "save_top_k": save_top_k}
    for name, minimum in minima.items():
        if values[name] < minimum:
            raise MisconfigurationException(
                f"`ModelCheckpoint({name}={values[name]!r})` is an invalid value: it must be >= {minimum}."
            )
    if monitor is None and save_top_k not in (-1, 0, 1):
        raise MisconfigurationException(
            f"`ModelCheckpoint(save_top_k={save_top_k}, monitor=None)` has nothing to rank files by."
            " Name a logged metric in `monitor`, or choose 1 (the newest), -1 (all) or 0 (none)."
        )
    if save_last == "link" and dirpath is not None and not is_local(dirpath):
        raise ValueError(
            f"`ModelCheckpoint(save_last='link', dirpath={dirpath!r})`: links exist on local file systems"
            " only. Use `save_last=True`."
        )
