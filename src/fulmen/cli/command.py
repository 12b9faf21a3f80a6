"""The command `fulmen`: a table of subcommands, each imported when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fulmen.utilities.command_line import nearest, say

__all__ = ["COMMANDS", "TRAINING", "main"]

# subcommand -> module with a function `command(arguments)`, or "module:function"; what it does
TRAINING = {
    "fit": ("fulmen.cli.without_script:fit", "train without a script: model and data by class path"),
    "validate": ("fulmen.cli.without_script:validate", "evaluate on validation data, likewise"),
    "test": ("fulmen.cli.without_script:test", "evaluate on test data, likewise"),
    "predict": ("fulmen.cli.without_script:predict", "predict, likewise"),
}
_SCRIPTS = {
    "run": ("fulmen.fabric.cli", "run a script that uses Fabric on several devices"),
    "submit": ("fulmen.cli.submit", "send a script to a Slurm cluster, requeued until it is done"),
}
_FILES = {
    "inspect": ("fulmen.cli.inspect_checkpoint", "show what is in a checkpoint, and whether it is healthy"),
    "convert": ("fulmen.cli.convert", "convert to a checkpoint, state_dict or safetensors file"),
    "consolidate": ("fulmen.checkpoint.consolidate", "write one file from a checkpoint folder of shards"),
    "report": ("fulmen.reports.report_command", "write an HTML page on one run, or several side by side"),
}
_QUESTIONS = {
    "plan": ("fulmen.cli.plan", "tell what a step would take on machines that are not there"),
    "doctor": ("fulmen.cli.doctor", "check installation and machine, with a short self-test"),
    "events": ("fulmen.cli.events", "show who acts when in a script, in place of training"),
    "completion": ("fulmen.cli.completion", "let your shell complete all of this"),
}
_GROUPS = {"train": {**TRAINING, **_SCRIPTS}, "files of runs": _FILES, "find out": _QUESTIONS}
COMMANDS = {name: entry for group in _GROUPS.values() for name, entry in group.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: The command line without the name of the program; that of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        say(_help())
    elif name == "--version":
        import fulmen

        say(f"fulmen {fulmen.__version__}")
    elif name in COMMANDS:
        module, _, function = COMMANDS[name][0].partition(":")
        getattr(importlib.import_module(module), function or "command")(arguments[1:])
    else:
        what = "option" if name.startswith("-") else "command"
        hint = nearest(name, [*COMMANDS, "help", "--help", "--version"])
        sys.stderr.write(f"fulmen: error: there is no {what} {name!r}.{hint}\n\n{_help()}\n")
        raise SystemExit(2)


def _help() -> str:
    parts = ["usage: fulmen COMMAND [ARGUMENT ...]"]
    for title, group in _GROUPS.items():
        parts.append("\n".join([f"{title}:", *(f"  {name:<12} {what}" for name, (_, what) in group.items())]))
    parts.append("`fulmen COMMAND --help` explains a command; `fulmen --version` is the version.")
    return "\n\n".join(parts)
