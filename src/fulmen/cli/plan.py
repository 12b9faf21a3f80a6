"""`fulmen plan`: what a training step would take on machines that are not there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fulmen.utilities.command_line import CommandParser, refuse, say
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from fulmen.planning.plan import Plan

__all__ = ["command", "make_parser"]

_PROG = "fulmen plan"
_USAGE = "fulmen plan [--nodes N] [--gpus N] [--memory SIZE] [OPTION ...] --model CLASS [--model.ARGUMENT VALUE ...]"
_DESCRIPTION = """\
Trace one training step of your module on one of many ranks that are not there, and print what each
would need: memory by purpose and whether it fits, collectives with their bytes, and FLOPs. One CPU is
enough for a thousand GPUs and more: tensors have shapes and no memory, messages are only counted.

Model, data, optimizer and Trainer are given as for `fulmen fit`: by class path on the command line, or
by the same files with --config. The strategy, the precision, accumulation and clipping are the
Trainer's, and set the module up as in a run."""
_EPILOG = """\
examples:
  fulmen plan --nodes 128 --gpus 8 --memory h100 --strategy fsdp --precision bf16-mixed \\
      --batch 1x8192:int64 --model my_package.Llama --model.layers 80
  fulmen plan --gpus 8 --memory 24GiB --config config.yaml
  fulmen plan --gpus 4 --strategy ddp --model my_package.Net --batch 32x3x224x224,32:int64 --json

exit code:
  0 it fits, or no --memory was given; 1 it does not fit, cannot be traced, or your code raises an error; 2 wrong
  arguments"""


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen plan`.

    Args:
        arguments: What follows the command's name.
    """
    parser = make_parser()
    options, others = parser.parse_known_args(list(arguments) or ["--help"])
    for name in ("nodes", "gpus"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: it is 1 or more")
    try:
        require("jsonargparse", extra="cli", for_=_PROG)
    except ModuleNotFoundError as error:
        refuse(_PROG, error)
    from fulmen.planning.sizes import parse_batch, parse_memory  # loads torch

    try:
        if options.memory is not None:
            parse_memory(options.memory)
        if options.batch is not None:
            parse_batch(options.batch)
    except ValueError as error:
        parser.error(str(error))
    plan = _plan(options, others)
    say(json.dumps(plan.as_dict(), indent=2) if options.json else str(plan))
    raise SystemExit(1 if plan.fits is False else 0)


def make_parser() -> CommandParser:
    """Return what reads the command line, but for the options of `fulmen fit`."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG, _USAGE)
    machines = parser.add_argument_group("machines")
    machines.add_argument("--nodes", type=int, default=1, metavar="N", help="how many; 1 by default")
    machines.add_argument("--gpus", type=int, default=1, metavar="N", help="devices of each; 1 by default")
    machines.add_argument("--memory", metavar="SIZE", help="of a device: 80GiB, 24GB, or its name: a100, h100, mi300x")
    what = parser.add_argument_group("what to plan, besides the options of `fulmen fit`")
    what.add_argument("--strategy", metavar="NAME", help="short for --trainer.strategy: ddp, fsdp, ...")
    what.add_argument("--precision", metavar="NAME", help="short for --trainer.precision: bf16-mixed, ...")
    what.add_argument("--batch", metavar="SHAPES",
                      help="a batch of one rank: 8x2048:int64 is a tensor, several by commas are a tuple, with names"
                      " (ids=8x2048:int64,mask=8x2048) a dict; by default the first of the training data, or the"
                      " module's `example_input_array`")  # fmt: skip
    what.add_argument(
        "--real-init", action="store_true", help="make the module in real memory: for an `__init__` that computes"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object; sizes in bytes")
    return parser


def _plan(options: Any, others: list[str]) -> Plan:
    from fulmen.cli.planning_cli import PlanningCLI
    from fulmen.planning.values import PlanError

    short = {"strategy": options.strategy, "precision": options.precision}
    words = [f"--trainer.{name}={value}" for name, value in short.items() if value is not None]
    sys.path.insert(0, os.getcwd())  # where the user's modules are; a script has it, an installed command has not
    sys.argv[:] = [_PROG, *words, *others]
    package = ""
    try:
        cli = PlanningCLI(num_nodes=options.nodes, devices=options.gpus, is_on_meta=not options.real_init)
        package = type(cli.model).__module__.partition(".")[0]
        plan = cli.trainer.plan(
            cli.model, options.batch, num_nodes=options.nodes, devices=options.gpus, memory=options.memory,
            datamodule=cli.datamodule,
        )  # fmt: skip
    except PlanError as error:
        refuse(_PROG, error)
    except Exception as error:
        _end_if_of_user(error, package, options.batch)
        raise
    return replace(plan, notes=[*cli.notes, *plan.notes])


def _end_if_of_user(error: BaseException, package: str, batch: str | None) -> None:
    """End with a message if the error is not one of this package: exit code 1 in the user's code, 2 for arguments."""
    from fulmen.planning.values import is_refusal, users_lines

    if "jsonargparse" in _file_of(error):
        error = error.__cause__ or error.__context__ or error  # it wraps what a class raises
    lines = users_lines(error, package)
    if lines:
        shown = "".join(f"  {line}\n" for line in lines)
        is_step = batch is not None and any(", in training_step: " in line for line in lines)
        with_batch = f"\nThe batch was `--batch {batch}`." if is_step else ""
        refuse(_PROG, f"your code raises an error:\n{shown}{type(error).__name__}: {error}{with_batch}")
    if is_refusal(error):
        refuse(_PROG, " ".join(str(error).split()), 2)


def _file_of(error: BaseException) -> str:
    """Return the file that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename
