"""One file from a folder that many ranks have saved through `torch.distributed.checkpoint`, or DeepSpeed.

The first holds the shards of the tensors (`*.distcp`), where they belong (`.metadata`), and the rest of the checkpoint
(`meta.pt`); for the second see `fulmen.utilities.deepspeed`.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulmen.utilities.command_line import CommandParser, refuse
from fulmen.utilities.exceptions import DamagedFileError

__all__ = ["command", "consolidate", "make_parser", "read_sharded"]

_SUFFIX = ".consolidated"
_DESCRIPTION = """\
Write one file from a checkpoint folder that many processes saved, for `torch.load` and `load_from_checkpoint`.

Reads folders of shards (`.metadata`, `*.distcp`, `meta.pt`), and folders of DeepSpeed (`latest`, `*_model_states.pt`,
`*_optim_states.pt`), of which the weights are written, in 32 bit; DeepSpeed must be installed for those."""
_EPILOG = """\
`fulmen convert FOLDER model.safetensors` writes the weights alone, also as .safetensors or in another number format."""


def consolidate(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, for_trainer: bool = True
) -> Path:
    """Write one file with all that a folder of shards holds; it can be read without its shards, on one process.

    Args:
        folder: The checkpoint's folder.
        output: The file; beside the folder, with the suffix `.consolidated`, by default.
        for_trainer: Lay the file out as a checkpoint of the Trainer; else as Fabric saves it.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: The folder is not there.
        FileExistsError: The file is there.
        ValueError: The folder is no sharded checkpoint, or the file's name says that it is no file of `torch.save`.
        DamagedFileError: A file in the folder is missing, truncated or changed.
    """
    folder = Path(folder)
    folder = folder if folder.name not in ("", "..") else folder.resolve()  # `.` has no name to put a suffix to
    target = Path(output) if output is not None else folder.with_name(folder.name + _SUFFIX)
    if target.suffix == ".safetensors":
        raise ValueError(
            f"`{target}` would be a file of `torch.save`, as a checkpoint is more than tensors, and not what its ending"
            f" says. Write the weights alone by `fulmen convert {folder} {target}`, or choose another ending."
        )
    if target.exists():
        raise FileExistsError(f"`{target}` exists, and is not overwritten. Choose another file by `--output_file`.")
    from fulmen.plugins.io.distributed_io import trainer_layout  # these load torch, which `--help` does not need
    from fulmen.utilities.files import atomic_save

    checkpoint = read_sharded(folder)
    atomic_save(trainer_layout(checkpoint) if for_trainer else checkpoint, target)
    return target


def read_sharded(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a folder of shards whole, into the memory of this process.

    Args:
        folder: The checkpoint's folder.

    Returns:
        What was saved, with whole tensors on the CPU; the rest of the checkpoint on the first level.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: The folder is no sharded checkpoint.
        DamagedFileError: A file in it is missing, truncated or changed.
        UnpicklingError: It holds more than tensors and plain data.
        ModuleNotFoundError: It was saved by DeepSpeed, which is not installed.
    """
    from fulmen.plugins.io.distributed_io import ShardedCheckpoint
    from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder

    if is_deepspeed_folder(folder):
        return DeepSpeedFolder(folder).read_whole()
    return ShardedCheckpoint(folder, weights_only=True).read_as_saved()


def command(arguments: Sequence[str], *, name: str = "fulmen consolidate", for_trainer: bool | None = None) -> None:
    """Run `fulmen consolidate`.

    Args:
        arguments: What follows the command's name.
        name: How the command is called, for its help.
        for_trainer: The layout; `None` lets the command line say.
    """
    options = make_parser(name, has_layouts=for_trainer is None).parse_args(list(arguments))
    try:
        target = consolidate(
            options.checkpoint_folder,
            options.output_file,
            for_trainer=not options.fabric if for_trainer is None else for_trainer,
        )
    except (OSError, ValueError, DamagedFileError, pickle.UnpicklingError, ModuleNotFoundError) as error:
        refuse(name, error)
    print(f"saved {target}")  # noqa: T201 - the user asked for it
    from fulmen.utilities.files import problem_without_meta

    if problem := problem_without_meta(options.checkpoint_folder):
        sys.stderr.write(f"{name}: note: {problem}\n")


def make_parser(name: str = "fulmen consolidate", *, has_layouts: bool = True) -> CommandParser:
    """Return what reads the command line.

    Args:
        name: How the command is called, for its help.
        has_layouts: Whether the command line chooses the layout.
    """
    parser = CommandParser(name, _DESCRIPTION, _EPILOG)
    parser.add_argument("checkpoint_folder", help="the folder, with the `*.distcp` files or the file `latest` in it")
    parser.add_argument(
        "--output_file",
        "--output-file",
        help="the file to write, for `torch.load` (default: FOLDER.consolidated beside the folder)",
    )
    if has_layouts:
        parser.add_argument(
            "--fabric", action="store_true", help="lay the file out as Fabric saves it, not as the Trainer does"
        )
    return parser
