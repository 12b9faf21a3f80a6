"""`fabric run` for programs that import `lightning`; its processes run through `python -m fulmen.compat`."""

from __future__ import annotations

import sys
from argparse import Namespace

from fulmen.fabric import cli

__all__ = ["main"]


def main(args: Namespace, script_args: list[str] | None = None) -> None:
    """Start a script on several devices, in processes where `import lightning` is answered.

    Args:
        args: The options of the command.
        script_args: Arguments of the script.
    """
    cli.main(args, script_args, through=("-m", "fulmen.compat"))


def _main() -> None:
    """Run the command `fabric`."""
    arguments = sys.argv[1:]
    if arguments[:1] != ["run"]:
        sys.stderr.write("usage: fabric run [OPTIONS] SCRIPT [SCRIPT_ARGS ...]\n")
        raise SystemExit(0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2)
    main(*cli.read_arguments(arguments[1:], name="fabric run"))
