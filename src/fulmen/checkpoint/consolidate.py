"""One file from a folder that many ranks have saved through `torch.distributed.checkpoint`.

The folder holds the shards of the tensors (`*.distcp`), where they belong (`.metadata`), and the rest of the checkpoint
(`meta.pt`).
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fulmen.utilities.command_line import CommandParser
from fulmen.utilities.files import atomic_save, load_file

__all__ = ["command", "consolidate", "read_sharded", "trainer_layout"]

_META = "meta.pt"
_SUFFIX = ".consolidated"


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
        ValueError: The folder is no sharded checkpoint.
    """
    folder = Path(folder)
    target = Path(output) if output is not None else folder.with_name(folder.name + _SUFFIX)
    if target.exists():
        raise FileExistsError(f"`{target}` exists, and is not overwritten. Choose another file by `--output_file`.")
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
        UnpicklingError: It holds more than tensors and plain data.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from fulmen.checkpoint.shard_reader import PlainPlanner, ShardReader

    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint folder `{folder}`. Check its name.")
    if not (folder / ".metadata").is_file():
        raise ValueError(
            f"`{folder}` is no sharded checkpoint: it has no file `.metadata`. Give the folder that holds the"
            " `*.distcp` files; a checkpoint that is one file needs nothing done."
        )
    metadata = ShardReader(folder).read_metadata()
    flat: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else None
        for name, entry in metadata.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
        try:
            load(flat, storage_reader=ShardReader(folder), planner=PlainPlanner(), no_dist=True)
        except CheckpointException as error:  # which says little itself
            raise next(iter(error.failures.values()))[0] from None
    nested = _nested(flat, metadata.planner_data or {})
    rest = load_file(folder / _META, map_location="cpu", weights_only=True) if (folder / _META).is_file() else {}
    return {**nested, **rest}


def trainer_layout(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Lay the content of a folder of shards out as the Trainer's files are.

    Args:
        checkpoint: What `read_sharded` returned.

    Returns:
        The same with `state_dict` and `optimizer_states`, whose parameters are numbered.
    """
    laid_out = {name: value for name, value in checkpoint.items() if name != "model" and not _is_optimizer(name)}
    if "model" in checkpoint:
        laid_out["state_dict"] = checkpoint["model"]
    numbers = sorted(int(name.removeprefix("optimizer_")) for name in checkpoint if _is_optimizer(name))
    states = [_numbered(checkpoint[f"optimizer_{number}"]) for number in numbers]
    return {**laid_out, "optimizer_states": states or checkpoint.get("optimizer_states", [])}


def _is_optimizer(name: str) -> bool:
    return name.removeprefix("optimizer_").isdigit() and name.startswith("optimizer_")


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer by numbers of parameters, as `Optimizer.state_dict` has it, not by names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: each for name, each in state.get("state", {}).items()}, "param_groups": groups}


def _nested(flat: dict[str, Any], paths: dict[str, tuple[str | int, ...]]) -> dict[str, Any]:
    """Return the values at the places where they were when they were saved."""
    root: dict[Any, Any] = {}
    for name, value in flat.items():
        *parents, last = paths.get(name, (name,))
        place = root
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    lists = {path[:depth] for path in paths.values() for depth, key in enumerate(path) if isinstance(key, int)}
    return {key: _with_lists(value, (key,), lists) for key, value in root.items()}


def _with_lists(value: Any, path: tuple[Any, ...], lists: set[tuple[Any, ...]]) -> Any:
    if not isinstance(value, dict):
        return value
    filled = {key: _with_lists(each, (*path, key), lists) for key, each in value.items()}
    return [filled[key] for key in sorted(filled)] if path in lists else filled


def command(arguments: Sequence[str], *, name: str = "fulmen consolidate", for_trainer: bool | None = None) -> None:
    """Run `fulmen consolidate`.

    Args:
        arguments: What follows the command's name.
        name: How the command is called, for its help.
        for_trainer: The layout; `None` lets the command line say.
    """
    parser = CommandParser(
        prog=name, description="Write one file from a checkpoint folder whose tensors are in shards, for `torch.load`."
    )
    parser.add_argument("checkpoint_folder", help="folder with the `*.distcp` files")
    parser.add_argument(
        "--output_file", "--output-file", help="the file to write (default: FOLDER.consolidated beside the folder)"
    )
    if for_trainer is None:
        parser.add_argument(
            "--fabric", action="store_true", help="lay the file out as Fabric saves it, not as the Trainer does"
        )
    options = parser.parse_args(list(arguments))
    try:
        target = consolidate(
            options.checkpoint_folder,
            options.output_file,
            for_trainer=not options.fabric if for_trainer is None else for_trainer,
        )
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)  # noqa: T201 - a terminal
        raise SystemExit(1) from None
    print(f"saved {target}")  # noqa: T201 - the user asked for it
