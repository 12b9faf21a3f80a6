"""`fulmen fit|validate|test|predict`: a run without a script, model and data chosen by class path."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fulmen.utilities.command_line import refuse
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["fit", "predict", "test", "validate"]

_EXAMPLE = (
    " Model and data are given by class path, on the command line or in files; no script is needed. Example:"
    " fulmen {} --model my_package.Net --model.width 8 --data my_package.Data{}"
)
_DESCRIPTIONS = {
    "fit": "Train." + _EXAMPLE.format("fit", " --trainer.max_epochs 3"),
    "validate": "Evaluate on validation data." + _EXAMPLE.format("validate", " --ckpt_path last.ckpt"),
    "test": "Evaluate on test data." + _EXAMPLE.format("test", " --ckpt_path last.ckpt"),
    "predict": "Predict." + _EXAMPLE.format("predict", " --ckpt_path last.ckpt"),
}


def fit(arguments: Sequence[str]) -> None:
    """Run `fulmen fit`.

    Args:
        arguments: What follows the command's name.
    """
    _run("fit", arguments)


def validate(arguments: Sequence[str]) -> None:
    """Run `fulmen validate`; as `fit`."""
    _run("validate", arguments)


def test(arguments: Sequence[str]) -> None:
    """Run `fulmen test`; as `fit`."""
    _run("test", arguments)


def predict(arguments: Sequence[str]) -> None:
    """Run `fulmen predict`; as `fit`."""
    _run("predict", arguments)


def _run(subcommand: str, arguments: Sequence[str]) -> None:
    try:
        require("jsonargparse", extra="cli", for_=f"fulmen {subcommand}")
    except ModuleNotFoundError as error:
        refuse(f"fulmen {subcommand}", error)
    from fulmen.cli.lightning_cli import LightningCLI
    from fulmen.cli.save_config import SaveConfigCallback

    class SaveBesideLogs(SaveConfigCallback):
        """Without a logger the log folder is that of the command, where the user's own `config.yaml` may be."""

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if trainer.loggers:
                super().setup(trainer, pl_module, stage)

    sys.path.insert(0, os.getcwd())  # where the user's modules are; a script has it, an installed command has not
    sys.argv[:] = ["fulmen", subcommand, *(arguments or ["--help"])]
    descriptions = {name: {"description": text} for name, text in _DESCRIPTIONS.items()}
    LightningCLI(save_config_callback=SaveBesideLogs, parser_kwargs={"prog": "fulmen", **descriptions})
