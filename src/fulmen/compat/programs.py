"""Modules of Lightning that are programs, e.g. `-m lightning.pytorch.utilities.upgrade_checkpoint`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from fulmen.checkpoint import consolidate
from fulmen.compat import fabric_cli
from fulmen.utilities import upgrade_checkpoint

__all__ = ["run_program"]


def _upgrade(name: str) -> None:
    upgrade_checkpoint.main(sys.argv[1:], name=name)


def _consolidate(name: str, *, for_trainer: bool) -> None:
    consolidate.command(sys.argv[1:], name=name, for_trainer=for_trainer)


def _fabric(name: str) -> None:
    fabric_cli._main()


_PROGRAMS: dict[str, Callable[[str], None]] = {
    "lightning.fabric.cli": _fabric,
    "lightning.fabric.utilities.consolidate_checkpoint": partial(_consolidate, for_trainer=False),
    "lightning.pytorch.utilities.consolidate_checkpoint": partial(_consolidate, for_trainer=True),
    "lightning.pytorch.utilities.upgrade_checkpoint": _upgrade,
}


def run_program(module: str, name: str) -> None:
    """Run one of the programs, with the arguments in `sys.argv[1:]`.

    Args:
        module: The module of Lightning that is the program.
        name: How it was called, for its help.
    """
    _PROGRAMS[module](name)
