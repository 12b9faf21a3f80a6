"""`fulmen fit|validate|test|predict`: a run without a script, model and data chosen by class path."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fulmen.utilities.command_line import refuse, say
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["fit", "predict", "test", "validate"]

_OVERVIEW = """\
usage: fulmen {name} --model CLASS [--data CLASS] [--config FILE ...] [OPTION ...]

{description}

most used options:
  --model CLASS             class path of a LightningModule
  --model.ARGUMENT VALUE    an argument of it
  --data CLASS              class path of a LightningDataModule; --data.ARGUMENT
  --trainer.ARGUMENT VALUE  an argument of the Trainer: max_epochs, devices,
                            accelerator, precision, strategy, logger, ...
  --trainer.callbacks+=CLASS, then --trainer.callbacks.ARGUMENT VALUE
                            one more callback
{only_fit}  --ckpt_path FILE          checkpoint to {what_for}; also last, best
  -c, --config FILE         options from a YAML or JSON file; several are merged
  --seed_everything N       seed of all random numbers
  --print_config            print the configuration, ready for --config
  --help-all                all options, with their types and defaults
  --model.help CLASS        the arguments of a class; also --data.help,
                            --trainer.callbacks.help, --trainer.logger.help, ..."""
_ONLY_FIT = """\
  --optimizer CLASS         e.g. AdamW, and --optimizer.lr 3e-4
  --lr_scheduler CLASS      e.g. CosineAnnealingLR, and --lr_scheduler.T_max 10
"""
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
    if list(arguments) in ([], ["-h"], ["--help"]):
        say(_overview(subcommand))  # at once: the whole list takes the import of torch
        return
    try:
        require("jsonargparse", extra="cli", for_=f"fulmen {subcommand}")
    except ModuleNotFoundError as error:
        refuse(f"fulmen {subcommand}", error)
    from fulmen.cli.lightning_cli import LightningCLI
    from fulmen.cli.save_config import SaveConfigCallback
    from fulmen.utilities.exceptions import MisconfigurationException

    class SaveBesideLogs(SaveConfigCallback):
        """Without a logger the log folder is that of the command, where the user's own `config.yaml` may be."""

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if trainer.loggers:
                super().setup(trainer, pl_module, stage)

    class WithoutScript(LightningCLI):
        """Wrong arguments of the Trainer end with their message: the traceback would show no line of the user's."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            try:
                return super().instantiate_trainer(**kwargs)
            except (TypeError, ValueError, MisconfigurationException, ModuleNotFoundError) as error:
                refuse(f"fulmen {subcommand}", error, code=2)

    sys.path.insert(0, os.getcwd())  # where the user's modules are; a script has it, an installed command has not
    sys.argv[:] = ["fulmen", subcommand, *("--help" if word == "--help-all" else word for word in arguments)]
    descriptions = {name: {"description": text} for name, text in _DESCRIPTIONS.items()}
    WithoutScript(save_config_callback=SaveBesideLogs, parser_kwargs={"prog": "fulmen", **descriptions})


def _overview(subcommand: str) -> str:
    description = textwrap.fill(_DESCRIPTIONS[subcommand], 80, break_on_hyphens=False)
    return _OVERVIEW.format(
        name=subcommand, description=description, only_fit=_ONLY_FIT if subcommand == "fit" else "",
        what_for="go on from" if subcommand == "fit" else "load weights from",
    )  # fmt: skip
