"""`fulmen run`: start a script that uses Fabric on several devices, through torchrun.

torch is imported only when a script is started, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["command", "main", "make_parser", "read_arguments"]

_ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "tpu", "auto")
_PRECISIONS = (
    *("transformer-engine", "transformer-engine-float16", "16-true", "16-mixed", "bf16-true", "bf16-mixed"),
    *("fp8-mixed", "32-true", "64-true", "64", "32", "16", "bf16"),
)
_OTHER_LAUNCHERS = ("spawn", "fork", "notebook", "xla", "tpu", "offload")  # in names of strategies that are not for us
_DESCRIPTION = """Run a script that uses Fabric on several devices, through torchrun.

Known options may stand before or after SCRIPT; all others are passed to it, and so is
everything after `--`."""


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen run`.

    Args:
        arguments: What follows `run` on the command line.
    """
    main(*read_arguments(arguments))


def read_arguments(arguments: Sequence[str], name: str = "fulmen run") -> tuple[Namespace, list[str]]:
    """Read the command line.

    Args:
        arguments: What follows the name of the command.
        name: How the command is called, for its help.

    Returns:
        The options, and the arguments of the script.
    """
    parser = make_parser(name)
    arguments = list(arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, for_script = parser.parse_known_args(arguments[:split])
    if not Path(options.script).is_file():
        parser.error(f"the script {options.script!r} does not exist")
    return options, for_script + arguments[split + 1 :]


def main(args: Namespace, script_args: list[str] | None = None, through: Sequence[str] = ()) -> None:
    """Start a script, with its settings in the environment.

    Args:
        args: The options of the command; see `fulmen run --help`.
        script_args: Arguments of the script.
        through: A module that runs the script, as torchrun takes it: `("-m", name)`.
    """
    num_processes = _num_processes(args)
    _check_strategy(args.strategy)
    _set_environment(args, num_processes)
    from torch.distributed import run as torchrun

    torchrun.main(
        [
            f"--nproc_per_node={num_processes}",
            f"--nnodes={args.num_nodes}",
            f"--node_rank={args.node_rank}",
            f"--master_addr={args.main_address}",
            f"--master_port={args.main_port}",
            *through,
            str(args.script),
            *(script_args or []),
        ]
    )


def make_parser(name: str = "fulmen run") -> ArgumentParser:
    """Return what reads the command line.

    Args:
        name: How the command is called, for its help.
    """
    parser = ArgumentParser(
        prog=name, description=_DESCRIPTION, allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("script", metavar="SCRIPT", help="path of the script; its Fabric takes the options below")
    parser.add_argument("--accelerator", choices=_ACCELERATORS, help="kind of hardware; auto by default")
    parser.add_argument("--strategy", help="how the devices work together, e.g. ddp")
    parser.add_argument(
        "--devices", default="1", help="how many devices on each machine, which (as 0,2), or auto; 1 by default"
    )
    parser.add_argument("--num-nodes", "--num_nodes", type=int, default=1, help="number of machines; 1 by default")
    parser.add_argument(
        "--node-rank", "--node_rank", type=int, default=0, help="number of this machine, from 0 to num-nodes - 1"
    )
    parser.add_argument(
        "--main-address", "--main_address", default="127.0.0.1", help="name or address of machine 0; this by default"
    )
    parser.add_argument(
        "--main-port", "--main_port", type=int, default=29400, help="port on machine 0; 29400 by default"
    )
    parser.add_argument(
        "--precision", choices=_PRECISIONS, metavar="PRECISION", help=f"number format: {', '.join(_PRECISIONS)}"
    )
    return parser


def _set_environment(args: Namespace, num_processes: int) -> None:
    os.environ["LT_CLI_USED"] = "1"
    os.environ["LT_DEVICES"] = str(args.devices)
    os.environ["LT_NUM_NODES"] = str(args.num_nodes)
    for name in ("accelerator", "strategy", "precision"):
        value = getattr(args, name)
        if value is not None:
            os.environ[f"LT_{name.upper()}"] = value
    # else torchrun sets 1 and warns
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))


def _num_processes(args: Namespace) -> int:
    from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
    from fulmen.utilities.exceptions import MisconfigurationException

    names = {"gpu": ("cuda", "mps"), "auto": ("cuda", "mps", "cpu"), None: ("cuda", "mps", "cpu")}
    candidates = names.get(args.accelerator, (args.accelerator,))
    known = [ACCELERATOR_REGISTRY.get(name) for name in candidates if name in ACCELERATOR_REGISTRY]
    accelerator = next((found for found in known if found.is_available()), None)
    if accelerator is None:
        _refuse(f"--accelerator={args.accelerator}: this machine has no such hardware")
    try:
        if args.devices == "auto":
            count: int = accelerator.auto_device_count()
            return max(1, count)
        devices: list[object] = accelerator.get_parallel_devices(accelerator.parse_devices(args.devices))
        return len(devices)
    except (MisconfigurationException, TypeError, ValueError) as error:
        _refuse(f"--devices={args.devices}: {error}")


def _check_strategy(name: str | None) -> None:
    from fulmen.strategies.registry import STRATEGY_REGISTRY

    known = [n for n in STRATEGY_REGISTRY.names() if not any(part in n for part in _OTHER_LAUNCHERS)]
    if name is not None and name not in known:
        _refuse(f"--strategy={name} is not one of {', '.join(known)}")


def _refuse(message: str) -> NoReturn:
    print(f"fulmen run: error: {message}", file=sys.stderr)  # noqa: T201 - the user is at a terminal
    raise SystemExit(2)
