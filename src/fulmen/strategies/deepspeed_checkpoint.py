"""Checkpoints of DeepSpeed's engine: folders that all ranks write, and weights that are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulmen.utilities.deepspeed import CHECKPOINT_TAG, DeepSpeedFolder, load_package, reading
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import is_local, local_path, sync_folder
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.staging import create_folder_beside, put_in_place, remove_leftovers
from fulmen.utilities.state_names import without_compiler_names
from fulmen.utilities.types import Stateful

if TYPE_CHECKING:
    from fulmen.strategies.parallel import ParallelStrategy
    from fulmen.utilities.types import _PATH

__all__ = [
    "DeepSpeedCheckpoint",
    "load_engine",
    "load_state",
    "load_weights",
    "save_engine",
    "single_engine",
    "states_beside",
    "warn_about_optimizer",
    "whole_weights",
]


class DeepSpeedCheckpoint(dict[str, Any]):
    """What a program added to a folder of DeepSpeed, and where the rest is.

    Args:
        source: The folder.
    """

    def __init__(self, source: DeepSpeedFolder) -> None:
        super().__init__(source.client_state)
        self.source = source


# ---- folders


def save_engine(strategy: ParallelStrategy, engine: Any, path: _PATH, state: dict[str, Any], **options: Any) -> None:
    """Let the engines of all ranks write a folder, which appears as a whole when all have finished.

    Args:
        strategy: What the ranks talk through.
        engine: The engine of this rank.
        path: The folder.
        state: What to add.
        options: Further arguments of the engine's `save_checkpoint`.

    Raises:
        ValueError: The path is not on a file system of this machine.
    """
    if not is_local(path):
        raise ValueError(
            f"`{path}` is no local path, and DeepSpeed writes folders of local or mounted file systems only. Choose"
            " such a path, and copy the folder afterwards."
        )
    target = os.path.abspath(local_path(path))
    staged, lock = "", -1
    if strategy.is_global_zero:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        remove_leftovers(os.path.dirname(target))
        staged, lock = create_folder_beside(target)
    staged, target = strategy.broadcast((staged, target))
    try:
        engine.save_checkpoint(staged, client_state=state, tag=CHECKPOINT_TAG, **options)
        if strategy.local_rank == 0:  # of each machine: what its ranks have written is in its own memory
            _sync_files(Path(staged))
        strategy.barrier("deepspeed_written")
        if strategy.is_global_zero:
            put_in_place(staged, target)
            sync_folder(os.path.dirname(target))
    finally:
        if lock >= 0:
            os.close(lock)
    strategy.barrier("deepspeed_saved")


def _sync_files(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(place)


def load_engine(engine: Any, checkpoint: DeepSpeedCheckpoint, *, strict: bool, with_optimizer: bool) -> None:
    """Load a folder into an engine, on as many ranks as saved it and at the same stage.

    Args:
        engine: The engine of this rank.
        checkpoint: The checkpoint.
        strict: Names of weights must be the same on both sides.
        with_optimizer: Load its state too.

    Raises:
        ValueError: Another number of ranks or another stage saved it.
        DamagedFileError: A file is missing, truncated or changed.
    """
    source = checkpoint.source
    stage = int(engine.zero_optimization_stage())
    if not with_optimizer or engine.optimizer is None:
        load_weights(engine, source.read_weights(), strict=strict)
        return
    now = engine.seq_dp_world_size
    if (source.world_size, source.stage) != (now, stage):
        raise ValueError(
            f"The checkpoint `{source.folder}` was saved by {source.world_size} process(es) at stage {source.stage} of"
            f" ZeRO, and this run has {now} at stage {stage}: DeepSpeed does not divide optimizer states anew. Resume"
            " with what saved it; or take the weights alone: `fulmen consolidate` makes one file of it, which any run"
            " loads with `load_from_checkpoint`."
        )
    _check_files(source)
    with reading(trust=source.trust):
        loaded, _ = engine.load_checkpoint(
            os.fspath(source.folder), tag=source.tag, load_module_strict=strict, load_lr_scheduler_states=True
        )
    if loaded is None:
        raise ValueError(f"DeepSpeed could not load `{source.folder}`. Check whether the folder was copied whole.")


def _check_files(source: DeepSpeedFolder) -> None:
    """Let each rank look at its own files; all raise if one finds them damaged, so that none waits for it."""
    error: DamagedFileError | None = None
    try:
        source.check_files(rank=dist.get_rank())
    except DamagedFileError as found:
        error = found
    errors: list[DamagedFileError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if first := next((each for each in errors if each is not None), None):
        raise first


# ---- states of a loop of one's own


def single_engine(engines: list[Any], state: Mapping[str, Any], path: _PATH) -> Any:
    """Return the one engine of a state.

    Args:
        engines: All engines.
        state: Name to object.
        path: Where the checkpoint is, for the message.

    Raises:
        ValueError: There is none, or there are several.
    """
    found = [value for value in state.values() if any(value is engine for engine in engines)]
    if len(found) != 1:
        what = "Could not find a DeepSpeed model" if not found else "Found multiple DeepSpeed engine modules"
        raise ValueError(
            f"{what} in the state for the checkpoint `{path}`: each holds one. Pass exactly one model that"
            " `fabric.setup(model, optimizer)` returned, e.g. `{'model': model, 'optimizer': optimizer}`."
        )
    return found[0]


def states_beside(engine: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a state the engine does not save itself.

    Args:
        engine: The engine.
        state: Name to object.
    """
    return {
        name: value.state_dict() if isinstance(value, Stateful) else value
        for name, value in state.items()
        if not _is_part(engine, value)
    }


def load_state(engine: Any, path: _PATH, state: dict[str, Any], *, strict: bool, trust: bool) -> dict[str, Any]:
    """Load a folder back into the objects it was saved from.

    Args:
        engine: The engine of `state`.
        path: The folder.
        state: Name to object, restored in place, or to plain value, replaced in this dict.
        strict: Each name of `state`, and each weight, must be in the checkpoint.
        trust: Also make objects that are no plain data.

    Returns:
        The rest of the checkpoint.

    Raises:
        KeyError: The checkpoint lacks a name.
    """
    checkpoint = DeepSpeedCheckpoint(DeepSpeedFolder(path, trust=trust))
    names = [name for name, value in state.items() if not _is_part(engine, value)]
    if strict and (missing := sorted(set(names) - checkpoint.keys())):
        raise KeyError(
            f"The checkpoint `{path}` has no entries {missing}; it has {sorted(checkpoint)}."
            " Ask for those, or pass `strict=False` to leave the others as they are."
        )
    with_optimizer = any(value is engine.optimizer for value in state.values())
    load_engine(engine, checkpoint, strict=strict, with_optimizer=with_optimizer)
    for name in [name for name in names if name in checkpoint]:
        content, target = checkpoint.pop(name), state[name]
        if isinstance(target, Stateful):
            target.load_state_dict(content)
        else:
            state[name] = content
    return dict(checkpoint)


def _is_part(engine: Any, value: Any) -> bool:
    return any(value is part for part in (engine, engine.optimizer, engine.lr_scheduler)) and value is not None


# ---- whole weights


def whole_weights(engine: Any, *, keep: bool) -> dict[str, Any]:
    """Gather the weights of an engine's module, those that are trained in 32 bit; all ranks must call it.

    Args:
        engine: The engine, or a module that none wraps.
        keep: Whether this rank wants them; else an empty dict is returned.

    Returns:
        Name to tensor in host memory, as `state_dict` has them.
    """
    package = load_package()
    module: nn.Module = getattr(engine, "module", engine)
    parameters = {id(parameter) for parameter in module.parameters()}
    gathered: dict[int, Tensor] = {}  # tied ones are gathered once
    tensors: dict[str, Any] = {}
    for name, value in without_compiler_names(module, module.state_dict(keep_vars=True)).items():
        if id(value) in parameters and id(value) not in gathered:
            gathered[id(value)] = _whole(package, value, has_engine=engine is not module, keep=keep)
        if keep:
            plain = value.detach().cpu().clone() if isinstance(value, Tensor) else value
            tensors[name] = gathered.get(id(value), plain)
    return tensors


def _whole(package: Any, parameter: nn.Parameter, *, has_engine: bool, keep: bool) -> Tensor:
    master: Tensor | None = None
    if has_engine and parameter.dtype in (torch.float16, torch.bfloat16) and _has_master(parameter):
        master = package.utils.safe_get_full_fp32_param(parameter)
    if master is not None:
        return master.detach().reshape(_shape(parameter)).cpu().clone() if keep else torch.empty(0)
    with package.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().cpu().clone() if keep else torch.empty(0)


def _has_master(parameter: Any) -> bool:
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")


def _shape(tensor: Any) -> torch.Size:
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def load_weights(engine: Any, state_dict: Mapping[str, Any], *, strict: bool) -> None:
    """Load whole weights into the module of an engine, and into the copies in 32 bit; all ranks must call it.

    Args:
        engine: The engine, or a module that none wraps.
        state_dict: Whole tensors by name, the same on all ranks.
        strict: Names must be the same on both sides.

    Raises:
        RuntimeError: Names or shapes differ.
    """
    package = load_package()
    module: nn.Module = getattr(engine, "module", engine)
    own = without_compiler_names(module, module.state_dict(keep_vars=True))
    _check_names(module, own, state_dict, strict=strict)
    with torch.no_grad():
        for _, target, value in _pairs(own, state_dict):
            with package.zero.GatheredParameters([target], modifier_rank=0, enabled=hasattr(target, "ds_id")):
                if target.numel() == value.numel():  # whole on this rank
                    target.copy_(value)
            if engine is not module and engine.optimizer is not None and _has_master(target):
                _set_master(package, target, value.to(target.device, torch.float32))
    if (
        engine is not module
        and engine.zero_optimization_stage() == 0
        and hasattr(engine.optimizer, "refresh_fp32_params")
    ):
        engine.optimizer.refresh_fp32_params()


def _set_master(package: Any, parameter: Any, value: Tensor) -> None:
    """Set the weights that are trained; in stage 3 this rank's part, of which the last may be padded."""
    if not hasattr(parameter, "ds_id"):
        package.utils.safe_set_full_fp32_param(parameter, value)
        return
    size = parameter.ds_tensor.ds_numel
    start = size * dist.get_rank(parameter.ds_process_group)
    part = value.new_zeros(size)
    own = value.flatten()[start : start + size]
    part[: own.numel()] = own
    package.utils.safe_set_local_fp32_param(parameter, part)


def _pairs(own: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, target in own.items():
        if name in state_dict and isinstance(target, Tensor):
            yield name, target, state_dict[name]


def _check_names(module: nn.Module, own: Mapping[str, Any], given: Mapping[str, Any], *, strict: bool) -> None:
    label = f"Error(s) in loading state_dict for {type(module).__name__}"
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if strict and (missing or unexpected):
        raise RuntimeError(
            f"{label}: missing keys: {missing}; unexpected keys: {unexpected}. Load it into the module that it was"
            " saved from, or pass `strict=False`."
        )
    for name, target, value in _pairs(own, given):
        if _shape(target) != value.shape:
            raise RuntimeError(
                f"{label}: size mismatch for {name}: {tuple(value.shape)} in the checkpoint, {tuple(_shape(target))}"
                " in the module. Load it into the module that it was saved from."
            )


def warn_about_optimizer(checkpoint: Mapping[str, Any]) -> None:
    """Say that a checkpoint of another strategy brings weights alone.

    Args:
        checkpoint: The checkpoint.
    """
    if checkpoint.get("optimizer_states"):
        rank_zero_warn(
            "The checkpoint is no folder of DeepSpeed, so its weights are loaded, but the state of its optimizer is"
            " not: DeepSpeed's optimizer starts anew. Pass `DeepSpeedStrategy(load_full_weights=True)` to say that"
            " this is meant, or resume with the strategy that saved it."
        )
