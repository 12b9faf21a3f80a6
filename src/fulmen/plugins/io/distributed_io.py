"""Checkpoints as folders that all ranks write together, through `torch.distributed.checkpoint`.

A folder holds the shards of the tensors (`*.distcp`), where they belong (`.metadata`), and the rest of the checkpoint
(`meta.pt`). The layout is that of Lightning 2.6, so folders move both ways.

`save_sharded`: rank 0 makes a hidden folder beside the target -> each rank writes and syncs its shards into it ->
    rank 0 adds `meta.pt`, syncs, and renames the folder in one step -> all ranks go on
`ShardedCheckpoint`: what is in `meta.pt`, with states that stay on the disk until they are read (`Shards`)
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from fulmen.plugins.io.async_io import AsyncCheckpointIO
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.io.shard_reader import PlainPlanner, RefusedError, ShardReader
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import (
    atomic_save,
    is_local,
    is_sharded_folder,
    load_file,
    local_path,
    sync_folder,
    verify_file,
)
from fulmen.utilities.migration import VERSION_KEY
from fulmen.utilities.staging import create_folder_beside, put_in_place, remove_leftovers
from fulmen.utilities.tree import apply_to_collection

__all__ = [
    "MOST_BYTES_TO_CHECK",
    "ShardedCheckpoint",
    "Shards",
    "load_mapped",
    "save_sharded",
    "trainer_layout",
    "verify_folder",
]

_Tree: TypeAlias = dict[Any, Any]  # of names; a leaf is the name of an entry of the index

_META, _INDEX = "meta.pt", ".metadata"
_STATES, _STATE = "optimizer_states", "optimizer_"
MOST_BYTES_TO_CHECK = 2**34
"""Of larger folders, one process does not look into all shards just to know whether they are whole."""
_LOOSE = "fulmen_tensors"  # sharded tensors that are neither weights nor of an optimizer


# ---- write


def save_sharded(
    checkpoint: dict[str, Any],
    folder: str | os.PathLike[str],
    *,
    group: Any | None = None,
    checkpoint_io: CheckpointIO | None = None,
) -> None:
    """Write a checkpoint as a folder, each rank its own shards; all ranks of the group must call this.

    A crash at any moment leaves what the path held before, or the whole new folder.

    Args:
        checkpoint: What to write, with `DTensor`s. Weights (a flat dict) and states of optimizers by name become
            entries of the shards, all other sharded tensors too, wherever they are; the rest is that of rank 0.
        folder: A local path. Missing parents are made; a checkpoint of that name is replaced.
        group: The ranks; all by default.
        checkpoint_io: If it is an `AsyncCheckpointIO`, the tensors of this rank are copied and written in its thread.

    Raises:
        ValueError: The folder is on a server.
        FileExistsError: The path is a folder with something else in it.
        OSError: A rank could not write; the message names it.
    """
    if not is_local(folder):
        raise ValueError(
            f"The sharded checkpoint `{folder}` cannot be written to a server: all ranks write into one folder, which"
            " is then renamed, and object stores rename nothing. Use a shared file system, or save one whole file:"
            " `FSDPStrategy(state_dict_type='full')`, `ModelParallelStrategy(save_distributed_checkpoint=False)`."
        )
    target = os.path.abspath(local_path(folder))
    if isinstance(checkpoint_io, AsyncCheckpointIO):
        own = checkpoint_io.background_group(group)
        checkpoint_io.save_by(partial(_write, folder=target, group=own), checkpoint)
    else:
        _write(checkpoint, folder=target, group=group)


def _write(checkpoint: dict[str, Any], *, folder: str, group: Any | None) -> None:
    sharded, rest = _divided(checkpoint)
    descriptor = -1

    def begin() -> str:
        nonlocal descriptor
        if os.path.isdir(folder) and os.listdir(folder) and not is_sharded_folder(folder):
            raise FileExistsError(
                f"The folder `{folder}` exists, is not empty and is no sharded checkpoint, so it is not replaced."
                " Save to another path."
            )
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        remove_leftovers(os.path.dirname(folder))
        staged, descriptor = create_folder_beside(folder)
        return staged

    def finish() -> None:
        atomic_save(rest, os.path.join(staged, _META))
        sync_folder(staged)
        put_in_place(staged, folder)
        sync_folder(os.path.dirname(folder))

    staged = ""
    try:
        staged = _on_first(begin, group)
        with _write_errors_named(folder), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
            save(sharded, storage_writer=FileSystemWriter(staged), process_group=group)
        _on_first(finish, group)
    except BaseException:
        if staged and _is_first(group):
            shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _divided(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what goes into the shards, and what into `meta.pt`."""
    is_of_trainer = VERSION_KEY in checkpoint
    sharded: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in checkpoint.items():
        if name == _STATES and isinstance(value, list) and value and all(map(_is_state_by_name, value)):
            sharded.update({f"{_STATE}{number}": state for number, state in enumerate(value)})
        elif name == "state_dict" or (not is_of_trainer and (_is_weights(value) or _is_state_by_name(value))):
            sharded[name] = value
        else:
            rest[name] = value
    loose: dict[str, DTensor] = {}

    def take_out(tensor: DTensor) -> dict[str, Any]:
        number = str(len(loose))
        loose[number] = tensor
        return {_LOOSE: number, "dims": list(tensor.device_mesh.mesh_dim_names or ()), "placements": _plain(tensor)}

    emptied = apply_to_collection(rest, DTensor, take_out)
    if not loose:
        return sharded, rest
    return {**sharded, _LOOSE: loose}, emptied


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, DTensor) for each in value.values())


def _is_state_by_name(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("param_groups"), list):
        return False
    return all(isinstance(name, str) for group in value["param_groups"] for name in group["params"])


def _plain(tensor: DTensor) -> list[int | None]:
    return [placement.dim if placement.is_shard() else None for placement in tensor.placements]  # type: ignore[attr-defined]  # of a shard


def _is_first(group: Any | None) -> bool:
    return not dist.is_initialized() or dist.get_rank(group) == 0


def _on_first(action: Callable[[], Any], group: Any | None) -> Any:
    """Run something on the first rank of a group; all get its result, or its error."""
    outcome: list[Any] = [None, None]
    if _is_first(group):
        try:
            outcome = [action(), None]
        except Exception as error:
            if not dist.is_initialized():
                raise
            outcome = [None, _sendable(error)]
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, group_src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it has arguments of its own
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _write_errors_named(folder: str) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:  # which says little itself
        rank, (first, _) = next(iter(error.failures.items()))
        text = f"Rank {rank} could not write its part: {first}. The sharded checkpoint was not written, an earlier one"
        text += " of that name is untouched. Check the folder and the space on its disk"
        raise OSError(getattr(first, "errno", None), text, folder) from first


# ---- read


class ShardedCheckpoint(dict[str, Any]):
    """A checkpoint folder: what is in its `meta.pt`, and `Shards` for the states of modules and optimizers.

    The layouts of Lightning's strategies come out as one: in a checkpoint of a Trainer the weights are under
    "state_dict", the optimizers in a list under "optimizer_states"; in one of Fabric under the names of the user.

    Sharded tensors elsewhere, e.g. in the state of a callback, are missing until `fill` or `read_whole` is called.

    Args:
        folder: A local path.
        weights_only: Refuse everything but tensors and plain data in `meta.pt`. `None` leaves it to torch.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: It is no sharded checkpoint.
        DamagedFileError: It lacks files, or one of those that say what is in it is not whole.
        UnpicklingError: It holds objects that are refused.
    """

    def __init__(self, folder: str | os.PathLike[str], *, weights_only: bool | None = None) -> None:
        self.folder = Path(local_path(folder))
        self._index = _Index(self.folder)
        meta = self.folder / _META
        rest = load_file(meta, map_location="cpu", weights_only=weights_only) if meta.is_file() else {}
        super().__init__(rest)
        self._names_of_rest = list(rest)
        tree = self._index.tree
        entries = {name: self._index.at(value) for name, value in tree.items() if name != _LOOSE}
        if VERSION_KEY in rest:
            _lay_out_for_trainer(entries)
        self.update(entries)

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return _num_bytes(self._index.metadata)

    def fill(self, mesh: DeviceMesh) -> None:
        """Read the sharded tensors that are neither weights nor of an optimizer, as shards again, in place.

        Args:
            mesh: The devices of this run. A dim that the mesh of that time had, by its name, is sharded as it was;
                without any, the first dim of the tensor is sharded over the first dim of the mesh.
        """
        targets: dict[str, Tensor] = {}

        def empty(mark: dict[str, Any]) -> Tensor:
            return targets.setdefault(mark[_LOOSE], self._index.empty_on(mesh, mark))

        self._replace_loose(empty)
        self._index.read({f"{_LOOSE}.{number}": tensor for number, tensor in targets.items()})

    def read_whole(self) -> dict[str, Any]:
        """Read everything into the memory of this process.

        Returns:
            A plain dict with whole tensors on the CPU. Optimizers have their parameters by number, as
            `Optimizer.state_dict` has them.
        """
        content = self.read_as_saved()
        if VERSION_KEY in self:
            return trainer_layout(content)
        return {name: _by_number(each) if _is_state_by_name(each) else each for name, each in content.items()}

    def read_weights(self) -> dict[str, Any]:
        """Read all but the states of optimizers into the memory of this process.

        Returns:
            A plain dict with whole tensors on the CPU; the states of optimizers stay `Shards`.

        Raises:
            DamagedFileError: A Trainer saved it, and its weights are missing.
            KeyError: It has no weights of a Trainer.
        """
        if "state_dict" not in self:
            if VERSION_KEY in self:
                raise _damaged(self.folder, f"its index `{_INDEX}` has no entry `state_dict`, the weights")
            raise KeyError(
                f"The checkpoint `{self.folder}` has no entry 'state_dict', the weights of a Trainer's checkpoint; it"
                f" has {sorted(map(str, self))}. What Fabric saved is loaded by `fabric.load(folder, state)`."
            )
        loose = self._index.read_tree(self._index.tree.get(_LOOSE, {}))
        self._replace_loose(lambda mark: loose[mark[_LOOSE]])
        return {**self, "state_dict": self["state_dict"].read_whole()}

    def read_as_saved(self) -> dict[str, Any]:
        """Read everything into the memory of this process, under the names that the folder has."""
        loose = self._index.read_tree(self._index.tree.get(_LOOSE, {}))
        self._replace_loose(lambda mark: loose[mark[_LOOSE]])
        entries = {name: tree for name, tree in self._index.tree.items() if name != _LOOSE}
        rest = {name: value for name, value in self.items() if name in self._names_of_rest}
        return {**self._index.read_tree(entries), **rest}

    def _replace_loose(self, tensor_of: Callable[[dict[str, Any]], Any]) -> None:
        if _LOOSE in self._index.tree:
            self.update({name: _replaced(self[name], tensor_of) for name in self._names_of_rest})


class Shards(MutableMapping[str, Any]):
    """A part of a checkpoint folder, by name; what is asked for is read whole, the rest stays on the disk.

    Changes, such as a hook makes that renames weights, are kept in memory; the folder stays as it is.

    Args:
        index: The folder.
        tree: The names of this part.
    """

    def __init__(self, index: _Index, tree: _Tree) -> None:
        self._index = index
        self._tree = dict(tree)
        self._parts: dict[str, Shards] = {}  # dicts in it that were asked for
        self._changed: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name in self._changed:
            return self._changed[name]
        if name not in self._parts:
            value = self._index.at(self._tree[name])
            if not isinstance(value, Shards):
                return value
            self._parts[name] = value
        return self._parts[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._changed[name] = value

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        for place in (self._tree, self._parts, self._changed):
            place.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._tree, **self._changed})

    def __len__(self) -> int:
        return len({**self._tree, **self._changed})

    def size(self, *names: str) -> torch.Size | None:
        """Return the shape of a tensor on the disk; `None` for what is no tensor, or a dict of some.

        Args:
            names: Its name, with those of the dicts that it is in before it.
        """
        name = self._leaf(names)
        entry = None if name is None else self._index.entry(name)
        return entry.size if isinstance(entry, TensorStorageMetadata) else None

    def dtype(self, *names: str) -> torch.dtype:
        """Return the type of the elements of a tensor.

        Args:
            names: Its name, with those of the dicts that it is in before it.
        """
        dtype: torch.dtype = self._index.entry(str(self._leaf(names))).properties.dtype
        return dtype

    def read_into(self, targets: Mapping[str, Any]) -> None:
        """Read tensors in place: of a `DTensor` this rank's part, whatever the mesh was on which it was saved.

        Args:
            targets: Tensors by name, in dicts as those that were saved.

        Raises:
            KeyError: There is no tensor of that name.
            ValueError: It has another shape.
            DamagedFileError: A shard is missing or damaged.
        """
        flat: dict[str, Tensor] = {}
        self._collect(targets, (), flat)
        self._index.read(flat)

    def read_whole(self) -> dict[str, Any]:
        """Return all of it with whole tensors, as it was saved."""
        kept = {name: tree for name, tree in self._tree.items() if name not in {**self._changed, **self._parts}}
        content: dict[str, Any] = self._index.read_tree(kept)
        parts = {name: part.read_whole() for name, part in self._parts.items() if name not in self._changed}
        return {**content, **parts, **self._changed}

    def _collect(self, targets: Mapping[str, Any], path: tuple[str, ...], flat: dict[str, Tensor]) -> None:
        for name, target in targets.items():
            place = (*path, name)
            if not isinstance(target, Tensor):
                self._collect(target, place, flat)
                continue
            saved = self.size(*place)
            if saved != target.size():
                raise ValueError(
                    f"`{'.'.join(place)}` has the shape {tuple(saved or ())} in the checkpoint `{self._index.folder}`,"
                    f" but {tuple(target.size())} here. Build the module with the sizes that it was saved with."
                )
            flat[str(self._leaf(place))] = target

    def _leaf(self, names: tuple[str, ...]) -> str | None:
        if names[0] in self._changed:
            return None
        value: Any = self._tree
        for name in names:
            if not isinstance(value, dict) or name not in value:
                raise KeyError(f"The checkpoint `{self._index.folder}` has no tensor `{'.'.join(map(str, names))}`.")
            value = value[name]
        return None if isinstance(value, dict) else str(value)


class _Index:
    """Which entries a folder has, and the reading of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = _read_index(folder)
        self.tree: _Tree = {}
        paths = self.metadata.planner_data or {}
        for name in self.metadata.state_dict_metadata:
            *parents, last = paths.get(name, (name,))
            place = self.tree
            for key in parents:
                place = place.setdefault(key, {})
            place[last] = name

    def entry(self, name: str) -> Any:
        return self.metadata.state_dict_metadata[name]

    def at(self, tree: Any) -> Any:
        """Return a dict as it is on the disk; another value is read."""
        return Shards(self, tree) if isinstance(tree, dict) and not _is_list(tree) else self.read_tree(tree)

    def read_tree(self, tree: Any) -> Any:
        names = list(_leaves(tree))
        flat: dict[str, Any] = {}
        for name in names:
            entry = self.entry(name)
            is_tensor = isinstance(entry, TensorStorageMetadata)
            flat[name] = torch.empty(entry.size, dtype=entry.properties.dtype) if is_tensor else None
        self.read(flat)
        return _filled(tree, flat)

    def read(self, flat: dict[str, Any]) -> None:
        """Read entries, tensors in place. Each rank reads for itself: no rank waits for another."""
        if not flat:
            return
        with warnings.catch_warnings(), _damage_named(self.folder):
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be
            try:
                load(flat, storage_reader=ShardReader(self.folder, self.metadata), planner=PlainPlanner(), no_dist=True)
            except CheckpointException as error:  # which says little itself
                raise next(iter(error.failures.values()))[0] from None

    def empty_on(self, mesh: DeviceMesh, mark: dict[str, Any]) -> Tensor:
        entry = self.entry(f"{_LOOSE}.{mark[_LOOSE]}")
        dims = dict(zip(mark["dims"], mark["placements"], strict=False))
        names = [name for name in mesh.mesh_dim_names or () if name in dims]
        place = mesh if not names or tuple(names) == mesh.mesh_dim_names else mesh[tuple(names)]
        placements: list[Placement] = [Shard(dims[name]) if dims[name] is not None else Replicate() for name in names]
        if not names:
            placements = [Shard(0) if len(entry.size) else Replicate(), *[Replicate()] * (mesh.ndim - 1)]
        return torch.distributed.tensor.empty(
            *entry.size, dtype=entry.properties.dtype, device_mesh=place, placements=placements
        )


def trainer_layout(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Lay the content of a folder out as the Trainer's files are.

    Args:
        checkpoint: What `ShardedCheckpoint.read_as_saved` returned.

    Returns:
        The same with `state_dict` and `optimizer_states`, whose parameters are numbered.
    """
    laid_out = dict(checkpoint)
    _lay_out_for_trainer(laid_out)
    if _STATES in laid_out:
        laid_out[_STATES] = [_by_number(state) for state in laid_out[_STATES]]
    return laid_out


def _by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer by numbers of parameters, as `Optimizer.state_dict` has it, not by names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {
        "state": {numbers.get(name, name): each for name, each in state.get("state", {}).items()},
        "param_groups": groups,
    }


def _lay_out_for_trainer(entries: dict[str, Any]) -> None:
    """Bring the names of Lightning's strategies to those of files, in place."""
    if "model" in entries:
        entries["state_dict"] = entries.pop("model")
    names = [name for name in entries if name.startswith(_STATE) and name.removeprefix(_STATE).isdigit()]
    if names:
        names.sort(key=lambda name: int(name.removeprefix(_STATE)))
        entries[_STATES] = [entries.pop(name) for name in names]


def load_mapped(path: str | os.PathLike[str], *, weights_only: bool | None = None) -> Any:
    """Load a file of `torch.save` so that its tensors stay on the disk until they are read.

    Args:
        path: A local path; of any other, and of a file in torch's old format, everything is loaded at once.
        weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch.

    Returns:
        The object, its tensors on the CPU. Changing them does not change the file.

    Raises:
        DamagedFileError: The file is not whole.
    """
    name = local_path(path)
    if not is_local(path) or not _is_archive(name):
        return load_file(path, map_location="cpu", weights_only=weights_only)
    verify_file(path)
    try:
        return torch.load(name, map_location="cpu", mmap=True, weights_only=weights_only)
    except pickle.UnpicklingError:
        return load_file(path, map_location="cpu", weights_only=weights_only)  # says what to do about it


def verify_folder(folder: str | os.PathLike[str]) -> None:
    """Check that a sharded checkpoint is whole: each of its shards is there and matches its checksum.

    Checksums of more than 16 GB are left to those who read the shards, each its own.

    Args:
        folder: A local path.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: It is no sharded checkpoint.
        DamagedFileError: A file is missing, truncated or changed.
    """
    place = Path(local_path(folder))
    metadata = _Index(place).metadata
    parts: dict[str, list[Any]] = {}
    for each in (metadata.storage_data or {}).values():
        parts.setdefault(each.relative_path, []).append(each)
    reader = ShardReader(place, metadata)
    is_compared = _num_bytes(metadata) <= MOST_BYTES_TO_CHECK
    with _damage_named(place):
        for name, of_file in parts.items():
            with open(place / name, "rb") as file:
                if os.fstat(file.fileno()).st_size < max(each.offset + each.length for each in of_file):
                    raise _damaged(place, f"its file `{name}` is truncated")
                for each in of_file if is_compared else ():
                    reader.check(file, each)
        if (place / _META).is_file():
            verify_file(place / _META)


def _num_bytes(metadata: Metadata) -> int:
    return sum(each.length for each in (metadata.storage_data or {}).values())


def _read_index(folder: Path) -> Metadata:
    if not folder.exists():
        raise FileNotFoundError(f"There is no checkpoint folder `{folder}`. Check its name.")
    if not is_sharded_folder(folder):
        if (folder / _META).is_file() or next(folder.glob("*.distcp"), None) is not None:
            raise _damaged(folder, f"its index `{_INDEX}` is missing")
        raise ValueError(
            f"`{folder}` is no sharded checkpoint: it has no file `.metadata`. Give the folder that holds the"
            " `*.distcp` files; a checkpoint that is one file needs nothing done."
        )
    try:
        metadata = ShardReader(folder).read_metadata()
        _check_index(metadata)
        return metadata
    except RefusedError:
        raise
    except Exception as error:  # what the unpickler makes of bytes that are no pickle
        raise _damaged(folder, f"its index `{_INDEX}` cannot be read ({type(error).__name__}: {error})") from error


def _check_index(metadata: Metadata) -> None:
    """Compare the parts of an index, which has no checksum: names, shapes, and what is where in the files."""
    wanted: set[MetadataIndex] = set()
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            wanted.add(MetadataIndex(name))
            continue
        wanted.update(MetadataIndex(name, chunk.offsets) for chunk in entry.chunks)
        held = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if not isinstance(entry.properties.dtype, torch.dtype) or held != entry.size.numel():
            raise ValueError(f"the type or the shape of `{name}` is overwritten")
    places = metadata.storage_data
    if differing := [each.fqn for each in wanted.symmetric_difference(places)]:
        raise ValueError(f"`{min(differing)}` is only in one of its two lists")
    if any(min(each.offset, each.length) < 0 or not isinstance(each.relative_path, str) for each in places.values()):
        raise ValueError("the places of tensors are overwritten")
    paths = metadata.planner_data or dict.fromkeys(metadata.state_dict_metadata, ())
    is_renamed = any(path and ".".join(map(str, path)) != name for name, path in paths.items())
    if is_renamed or paths.keys() != metadata.state_dict_metadata.keys():
        raise ValueError("the names of tensors are overwritten")


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _damaged(folder, f"its file `{Path(error.filename or '').name}` is missing") from error
    except DamagedFileError as error:
        if str(error).startswith("The sharded"):
            raise
        raise _damaged(folder, str(error).partition(" Use another")[0]) from error


def _damaged(folder: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(
        f"The sharded checkpoint `{folder}` is damaged: {reason.removesuffix('.')}. Use another checkpoint, or copy it"
        " again from its source."
    )


# ---- trees


def _is_list(tree: dict[Any, Any]) -> bool:
    return bool(tree) and all(isinstance(key, int) for key in tree)


def _leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for each in tree.values():
            yield from _leaves(each)
    else:
        yield tree


def _filled(tree: Any, values: Mapping[str, Any]) -> Any:
    if not isinstance(tree, dict):
        return values[tree]
    filled = {key: _filled(each, values) for key, each in tree.items()}
    return [filled[key] for key in sorted(filled)] if _is_list(tree) else filled


def _replaced(value: Any, function: Callable[[dict[str, Any]], Any]) -> Any:
    """Return a nested value with something in the place of each mark of a sharded tensor."""
    if isinstance(value, dict):
        if _LOOSE in value:
            return function(value)
        return type(value)({key: _replaced(each, function) for key, each in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, function) for each in value)
    return value


def _is_archive(name: str) -> bool:
    with open(name, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
