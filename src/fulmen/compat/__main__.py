"""`python -m fulmen.compat`: run a program written for Lightning."""

from __future__ import annotations

import os
import runpy
import sys

from fulmen.compat.finder import install

_USAGE = """\
usage: python -m fulmen.compat script.py [arguments of the script]
       python -m fulmen.compat -m module [arguments of the module]
       python -m fulmen.compat upgrade_checkpoint PATH
       python -m fulmen.compat consolidate_checkpoint FOLDER

Run a program written for Lightning 2.6 with fulmen: `import lightning`, `pytorch_lightning` and
`lightning_fabric` answer with the objects of fulmen, also in the processes of `strategy="ddp"` and in those
that `multiprocessing` starts. Programs that it starts by other means need the same prefix, or
`import fulmen.compat; fulmen.compat.install()` at their top. With torchrun: `torchrun -m fulmen.compat script.py`.
With pytest: `pytest -p fulmen.compat.pytest_plugin`, or `PYTEST_PLUGINS=fulmen.compat.pytest_plugin pytest`.

upgrade_checkpoint brings files of earlier Lightning versions into today's layout, consolidate_checkpoint makes one
file from a folder of shards; both have --help.
"""

_COMMANDS = ("upgrade_checkpoint", "consolidate_checkpoint")


def main(arguments: list[str]) -> int:
    """Run the script or module that `arguments` name, with the rest as its `sys.argv`.

    Returns:
        The exit status if no program was run: 0 after help, 2 for wrong arguments.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        return 0
    if arguments[:1] and arguments[0] in _COMMANDS:
        return _run_command(arguments)
    as_module = arguments[:1] == ["-m"]
    program = arguments[1:] if as_module else arguments
    if not program or (not as_module and program[0].startswith("-")):
        sys.stderr.write(_USAGE)
        return 2
    install()
    sys.argv[:] = program
    if as_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        return 0
    if not os.path.exists(program[0]):
        sys.stderr.write(f"python -m fulmen.compat: there is no file {program[0]!r}\n")
        return 2
    script = os.path.abspath(program[0])
    if sys.orig_argv[-len(program) :] == program:
        sys.orig_argv[-len(program)] = script  # `strategy="ddp"` runs this command again, maybe in another folder
    sys.path[0] = os.path.dirname(script)  # as Python does for a script
    runpy.run_path(program[0], run_name="__main__")
    return 0


def _run_command(arguments: list[str]) -> int:
    from fulmen.compat.programs import run_program  # imports torch

    sys.argv[:] = arguments
    run_program(f"lightning.pytorch.utilities.{arguments[0]}", f"python -m fulmen.compat {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
