"""`fulmen completion`: a script by which a shell completes commands, options, choices and files of `fulmen`."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fulmen.cli.command import COMMANDS, TRAINING
from fulmen.utilities.command_line import CommandParser, one_of, refuse, say
from fulmen.utilities.lazy import require

__all__ = ["command", "make_parser"]

_PROG = "fulmen completion"
_DESCRIPTION = """\
Print a script by which your shell completes the commands of `fulmen`, their options, choices and files.
Install it once, and open a new shell:

  bash  fulmen completion bash > ~/.fulmen.bash
        and in ~/.bashrc: source ~/.fulmen.bash
  zsh   fulmen completion zsh > "${fpath[1]}/_fulmen"
  fish  fulmen completion fish > ~/.config/fish/completions/fulmen.fish
  tcsh  fulmen completion tcsh > ~/.fulmen.tcsh
        and in ~/.tcshrc: source ~/.fulmen.tcsh"""
_SHELLS = ("bash", "zsh", "fish", "tcsh")
# names of arguments that are paths
_FILES = ("checkpoint", "source", "target", "script", "output", "output_file", "file", "config", "ckpt_path")
_FOLDERS = ("folders", "checkpoint_folder", "chdir")


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen completion`.

    Args:
        arguments: What follows the command's name.
    """
    options = make_parser().parse_args(list(arguments))
    try:
        shtab = require("shtab", extra="cli", for_=_PROG)
    except ModuleNotFoundError as error:
        refuse(_PROG, error)
    say(shtab.complete(_all_commands(shtab), shell=options.shell))


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION)
    parser.add_argument("shell", type=one_of(*_SHELLS), metavar="SHELL", help=", ".join(_SHELLS))
    return parser


def _all_commands(shtab: Any) -> ArgumentParser:
    parser = ArgumentParser(prog="fulmen")
    parser.add_argument("--version", action="store_true", help="the version of fulmen")
    subcommands = parser.add_subparsers()
    methods = _training_parser()
    for name, (module, what) in COMMANDS.items():
        own = methods if name in TRAINING else importlib.import_module(module).make_parser()
        added = subcommands.add_parser(name, parents=[own], add_help=False, help=what, description=what)
        for action in added._actions:
            action.choices = action.choices or getattr(action.type, "choices", None)
            if action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
            elif action.dest in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser


# ---- fit, validate, test, predict: their options are arguments of the Trainer


def _training_parser() -> ArgumentParser:
    import inspect

    from torch import optim

    from fulmen.trainer.trainer import Trainer

    parser = ArgumentParser()
    for name in ("--model", "--data", "--ckpt_path", "--seed_everything", "--print_config", "--help-all"):
        parser.add_argument(name)
    parser.add_argument("-c", "--config")
    parser.add_argument("--optimizer", choices=_classes(vars(optim), optim.Optimizer))
    parser.add_argument("--lr_scheduler", choices=_classes(vars(optim.lr_scheduler), optim.lr_scheduler.LRScheduler))
    choices = _choices()
    for name in inspect.signature(Trainer.__init__).parameters:
        if name not in ("self", "kwargs"):
            parser.add_argument(f"--trainer.{name}", choices=choices.get(name))
    parser.add_argument("--trainer.callbacks+", choices=choices["callbacks"])
    return parser


def _choices() -> Mapping[str, Iterable[str]]:
    """Return what arguments of the Trainer can be, by the name of the argument."""
    from fulmen import callbacks, loggers, profilers
    from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
    from fulmen.strategies.registry import STRATEGY_REGISTRY

    flags = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode", "detect_anomaly",
             "use_distributed_sampler", "barebones", "sync_batchnorm", "benchmark")  # fmt: skip
    return {
        "accelerator": ["auto", "gpu", *sorted(ACCELERATOR_REGISTRY)],
        "strategy": ["auto", *STRATEGY_REGISTRY.names()],
        "callbacks": sorted(callbacks.__all__),
        "logger": ["true", "false", *sorted(loggers.__all__)],
        "profiler": ["simple", "advanced", "pytorch", *sorted(profilers.__all__)],
        "precision": ["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"],
        "gradient_clip_algorithm": ["norm", "value"],
        "deterministic": ["true", "false", "warn"],
        "fast_dev_run": ["true", "false"],
        **{name: ["true", "false"] for name in flags},
    }


def _classes(namespace: Mapping[str, Any], kind: type) -> list[str]:
    found = [name for name, value in namespace.items() if isinstance(value, type) and issubclass(value, kind)]
    return sorted(name for name in found if name != kind.__name__ and not name.startswith("_"))
