"""The command `fulmen`: a table of subcommands, each imported when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

# subcommand -> module with a function `command(arguments)`, what it does
_COMMANDS = {"run": ("fulmen.fabric.cli", "run a script that uses Fabric on several devices")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: The command line without the name of the program; that of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())  # noqa: T201 - the user asked for it
    elif name == "--version":
        import fulmen

        print(f"fulmen {fulmen.__version__}")  # noqa: T201 - the user asked for it
    elif name in _COMMANDS:
        importlib.import_module(_COMMANDS[name][0]).command(arguments[1:])
    else:
        print(f"fulmen: error: there is no command {name!r}\n\n{_help()}", file=sys.stderr)  # noqa: T201 - a terminal
        raise SystemExit(2)


def _help() -> str:
    rows = "\n".join(f"  {name:<12} {what}" for name, (_, what) in _COMMANDS.items())
    return (
        "usage: fulmen COMMAND [ARGUMENT ...]\n"
        f"\ncommands:\n{rows}\n\n"
        "`fulmen COMMAND --help` explains a command, `fulmen --version` shows the version."
    )
