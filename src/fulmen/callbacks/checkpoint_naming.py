"""Names of checkpoint files: templates, versions, the folder they go to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.utilities.files import is_local

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["absolute_folder", "default_folder", "fill_template", "unused_path"]


def fill_template(template: str, metrics: Mapping[str, Any], *, insert_names: bool, join_char: str) -> str:
    """Put values of metrics into a template.

    Args:
        template: Text with fields such as `{epoch}` or `{val_loss:.2f}`.
        metrics: Values by name; a name that is not there gives 0.
        insert_names: Write `name=value` and not only the value.
        join_char: What stands between name and value.

    Example::

        assert fill_template("{epoch:02d}", {"epoch": 3}, insert_names=True, join_char="=") == "epoch=03"
    """
    formatter = Formatter()
    parts = []
    for literal, name, spec, conversion in formatter.parse(template):
        parts.append(literal)
        if name is None:
            continue
        value = metrics.get(name, 0)
        if isinstance(value, Tensor):
            value = value.item()  # sync: only when a checkpoint is written
        text = format(formatter.convert_field(value, conversion), spec or "")
        parts.append(f"{name}{join_char}{text}" if insert_names else text)
    return "".join(parts)


def unused_path(name: Callable[[int | None], str], exists: Callable[[str], bool], start: int, allowed: str = "") -> str:
    """Return the first of a file's names that does not exist yet.

    Args:
        name: Gives the path for a version number; `None` stands for the plain name.
        exists: Tells whether a path is taken.
        start: The first version number.
        allowed: A path that may be taken although it exists, because it is being replaced.
    """
    path, version = name(None), start
    while path != allowed and exists(path):
        path, version = name(version), version + 1
    return path


def absolute_folder(folder: str) -> str:
    """Expand `~` and links in a local path; leave URLs alone."""
    return os.path.realpath(os.path.expanduser(folder)) if is_local(folder) else folder


def default_folder(trainer: Trainer) -> str:
    """Return where checkpoints go if the user did not say: beside the logs of the first logger."""
    if not trainer.loggers:
        return os.path.join(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version, "checkpoints")
