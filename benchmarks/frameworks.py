"""The packages that can be measured, reduced to the names the cases use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["IMPORTS", "Framework", "load"]

_ROOTS = {"fulmen": "fulmen", "lightning": "lightning.pytorch"}

# package -> the import statements that are timed, in the order of the report's rows
IMPORTS = {
    "fulmen": ("import fulmen", "from fulmen import Trainer, LightningModule"),
    "lightning": ("import lightning", "from lightning import Trainer, LightningModule"),
}


@dataclass(frozen=True)
class Framework:
    """One package."""

    name: str
    version: str
    folder: str  # all its files are below
    trainer: Callable[..., Any]
    fabric: Callable[..., Any]
    module: type
    callback: type
    callbacks: Any
    loggers: Any


def load(name: str) -> Framework:
    """Import a package.

    Args:
        name: `"fulmen"` or `"lightning"`.
    """
    package, root = import_module(name), import_module(_ROOTS[name])
    return Framework(
        name=name,
        version=package.__version__,
        folder=str(Path(str(package.__file__)).parent),
        trainer=root.Trainer,
        fabric=package.Fabric,
        module=root.LightningModule,
        callback=root.Callback,
        callbacks=import_module(f"{_ROOTS[name]}.callbacks"),
        loggers=import_module(f"{_ROOTS[name]}.loggers"),
    )
