"""All names in one table, as the import hook reads it."""

from __future__ import annotations

from fulmen.compat.names.callbacks import CALLBACKS
from fulmen.compat.names.core import CORE
from fulmen.compat.names.fabric import FABRIC
from fulmen.compat.names.loggers import LOGGERS
from fulmen.compat.names.plugins import PLUGINS
from fulmen.compat.names.strategies import STRATEGIES
from fulmen.compat.names.trainer import TRAINER
from fulmen.compat.names.utilities import UTILITIES

__all__ = ["MODULES", "PROGRAMS", "table_name"]

# The files in names/ write, for brevity: module of Lightning -> module here -> names, where "Theirs=Ours" renames.
_AREAS = (CALLBACKS, CORE, FABRIC, LOGGERS, PLUGINS, STRATEGIES, TRAINER, UTILITIES)
_OTHER_ROOTS = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def _targets(sources: dict[str, str]) -> dict[str, str]:
    targets = {}
    for module, names in sources.items():
        for entry in names.split():
            theirs, _, ours = entry.partition("=")
            targets[theirs] = f"{module}:{ours or theirs}"
    return targets


def table_name(fullname: str) -> str:
    """Name under which the table has a module: both spellings of Lightning share one entry."""
    root, dot, rest = fullname.partition(".")
    return _OTHER_ROOTS.get(root, root) + dot + rest


# module of Lightning -> name -> "module:attribute" here
MODULES: dict[str, dict[str, str]] = {module: _targets(sources) for area in _AREAS for module, sources in area.items()}

# modules of Lightning that can be run by `python -m`, as `fulmen.compat.programs` runs them
PROGRAMS = (
    "lightning.fabric.cli",
    "lightning.fabric.utilities.consolidate_checkpoint",
    "lightning.pytorch.utilities.consolidate_checkpoint",
    "lightning.pytorch.utilities.upgrade_checkpoint",
)
