"""Converts between checkpoints of Trainers, plain `state_dict` files and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fulmen.checkpoint.contents import OWN_KEY
from fulmen.checkpoint.file_formats import FULMEN, LIGHTNING, SAFETENSORS, WEIGHTS, FileContents, read_any
from fulmen.utilities.files import atomic_open, atomic_save, is_local
from fulmen.utilities.lazy import require
from fulmen.utilities.migration import LAYOUT_VERSION, VERSION_KEY, migrate_checkpoint
from fulmen.utilities.plain_data import NotPlainError, split_settings, to_plain

__all__ = ["DTYPES", "FORMATS", "Conversion", "convert_checkpoint"]

FORMATS = (FULMEN, LIGHTNING, WEIGHTS, SAFETENSORS)
DTYPES = {
    **dict.fromkeys(("float32", "32"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "16"), torch.float16),
    **dict.fromkeys(("float64", "64"), torch.float64),
}
_BY_SUFFIX = {".ckpt": FULMEN, ".pt": WEIGHTS, ".pth": WEIGHTS, ".bin": WEIGHTS, ".safetensors": SAFETENSORS}
# what only matters to train on; also of Lightning's precision plugins and of averages of weights
_TRAINING_KEYS = (
    *("optimizer_states", "lr_schedulers", "callbacks", "averaging_state", "current_model_state"),
    *("MixedPrecision", "FSDPPrecision", "amp_scaling_state", "native_amp_scaling_state"),
)  # fmt: skip
_PICKLED = "pickled_hparams"
_KEPT_OF_OWN = ("version", _PICKLED)
_HPARAMS_KEYS = ("hyper_parameters", "datamodule_hyper_parameters")
_WEIGHTS_KEYS = ("state_dict", "current_model_state")
_CARRIED = ("epoch", "global_step", "hparams_name", "hyper_parameters")  # into safetensors and back, as JSON
_CARRIER = "fulmen"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert_checkpoint` has done.

    Attributes:
        path: The file that was written.
        from_format: What the input was.
        to_format: What was written.
        num_tensors: Weights in it.
        num_bytes: Their size.
        notes: What was left out or changed on the way, as phrases.
    """

    path: Path
    from_format: str
    to_format: str
    num_tensors: int
    num_bytes: int
    notes: list[str] = field(default_factory=list)


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    strip_prefixes: Sequence[str] = (),
    add_prefix: str = "",
    weights_only: bool = False,
    dtype: torch.dtype | None = None,
    key: str | None = None,
    trust: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write what is in a checkpoint as a file of another kind.

    Args:
        source: A checkpoint of fulmen or Lightning (files of 1.6 and later are brought into the layout of 2.6), a
            `state_dict`, a safetensors file, or a folder of shards.
        target: The file to write.
        to: `"fulmen"` or `"lightning"`: a checkpoint; `"weights"`: a `state_dict`; `"safetensors"`. By default what the
            ending of `target` says: `.ckpt`, `.pt`, `.safetensors`.
        strip_prefixes: Beginnings of the weights' names to take off, each at most once, in this order.
        add_prefix: A beginning to put before each name, after that.
        weights_only: Leave out what is only needed to train on.
        dtype: Convert weights that are floating-point numbers.
        key: Where in the input the weights are, with dots; looked for by default.
        trust: Also make objects that are no plain data, which runs code of the file.
        overwrite: Whether `target` may exist.

    Returns:
        What was done.

    Raises:
        FileExistsError: `target` is there.
        FileNotFoundError: `source` is not there.
        ValueError: The formats or options do not go together, or there are no weights.
        DamagedFileError: The input is not whole.
        UnpicklingError: It holds more than tensors and plain data.
    """
    to = to or _format_of(target)
    if not is_local(target):
        raise ValueError(f"`{target}` is no local path. Write a local file, and copy it.")
    path = Path(target)
    if path.exists() and not overwrite:
        raise FileExistsError(f"`{path}` exists, and is not overwritten. Choose another name, or pass `--overwrite`.")
    if path.exists() and path.samefile(source):
        raise FileExistsError(f"`{path}` is the input itself. Choose another name for the output.")
    if to == SAFETENSORS:
        require("safetensors", extra="safetensors", for_="fulmen convert")
    file = read_any(source, trust=trust, key=key)
    if not file.weights:
        raise ValueError(
            f"`{source}` has no weights that could be found. Say where they are by `--key`;"
            f" `fulmen inspect {source}` shows what is in it."
        )
    notes: list[str] = []
    _refuse_objects_left_out(file, to, weights_only, notes)
    rename = _renaming(file.weights, strip_prefixes, add_prefix, notes)
    checkpoint = None
    if to in (FULMEN, LIGHTNING):
        checkpoint = _as_checkpoint(file, to, weights_only=weights_only, notes=notes)
        _check_dtype(checkpoint, dtype)
        for each in _WEIGHTS_KEYS:
            if each in checkpoint:
                checkpoint[each] = _changed(checkpoint[each], rename, dtype)
        atomic_save(checkpoint, path)
        weights = checkpoint["state_dict"]
    else:
        _note_left_out(file, to, notes)
        weights = _changed(file.weights, rename, dtype)
        if to == WEIGHTS:
            atomic_save(weights, path)
        else:
            weights = _only_tensors(weights, notes)
            _save_safetensors(weights, file, path, notes)
    tensors = [each for each in weights.values() if isinstance(each, Tensor)]
    size = sum(each.numel() * each.element_size() for each in tensors)
    return Conversion(path, file.format, to, len(tensors), size, notes)


def _format_of(target: str | os.PathLike[str]) -> str:
    suffix = Path(target).suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise ValueError(
            f"what kind of file `{target}` is to be does not follow from its ending {suffix!r}. Use one of"
            f" {', '.join(_BY_SUFFIX)}, or say it by `--to`."
        )
    return _BY_SUFFIX[suffix]


def _refuse_objects_left_out(file: FileContents, to: str, weights_only: bool, notes: list[str]) -> None:
    """A checkpoint in which stand-ins take the place of objects is not what was asked for."""
    if not file.refused:
        return
    names = ", ".join(file.refused)
    if to in (FULMEN, LIGHTNING) and not weights_only:
        raise ValueError(
            f"`{file.path}` holds objects that are no plain data ({names}), which would be lost. If you trust where it"
            " comes from, `--trust` makes them, which runs its code; `--weights-only` goes without what cannot be read."
        )
    notes.append(f"not loaded, as it is no plain data: {names}")


# ---- checkpoints


def _as_checkpoint(file: FileContents, to: str, *, weights_only: bool, notes: list[str]) -> dict[str, Any]:
    if file.format in (FULMEN, LIGHTNING) or file.is_sharded:
        checkpoint = dict(file.content)
        if VERSION_KEY in checkpoint:
            _, applied = migrate_checkpoint(checkpoint)
            notes += [f"changed for the layout of {version}: {', '.join(steps)}" for version, steps in applied.items()]
    else:
        checkpoint = {"epoch": 0, "global_step": 0, "loops": {}, **_carried(file)}
        notes.append("holds no training state: load it with `load_from_checkpoint`, or `ckpt_path=` of test or predict")
    checkpoint.setdefault(VERSION_KEY, LAYOUT_VERSION)
    checkpoint["state_dict"] = file.weights
    if weights_only:
        dropped = [name for name in _TRAINING_KEYS if checkpoint.pop(name, None) is not None]
        notes += [f"left out: {', '.join(dropped)}"] if dropped else []
    own = checkpoint.pop(OWN_KEY, {})
    checkpoint = _plain_where_refused(checkpoint, file)
    if to == FULMEN:
        kept = {name: own[name] for name in _KEPT_OF_OWN if name in own} if weights_only else own
        pickled = _make_hparams_plain(checkpoint)
        checkpoint[OWN_KEY] = {"version": 1, **({_PICKLED: pickled} if pickled else {}), **kept}
    elif set(own) - {"version"}:
        notes.append(f"left out, as only fulmen reads it: {', '.join(sorted(set(own) - {'version'}))}")
    return checkpoint


def _make_hparams_plain(checkpoint: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Store hyperparameters as a Trainer here does; return those that are no plain data, pickled."""
    pickled = {}
    for key in _HPARAMS_KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            parts = split_settings(checkpoint[key])
            checkpoint[key] = parts.plain
            if parts.pickled:
                pickled[key] = parts.pickled
    return pickled


def _plain_where_refused(checkpoint: dict[str, Any], file: FileContents) -> dict[str, Any]:
    """Drop what holds stand-ins, so that the result is plain data."""
    if not file.refused:
        return checkpoint
    kept: dict[str, Any] = {}
    for name, value in checkpoint.items():
        if isinstance(value, Mapping) and name not in _WEIGHTS_KEYS:
            kept[name] = {key: each for key, each in value.items() if _is_plain(each)}
        elif name in _WEIGHTS_KEYS or _is_plain(value):
            kept[name] = value
    return kept


def _is_plain(value: Any) -> bool:
    try:
        to_plain(value)
    except NotPlainError:
        return False
    return True


def _check_dtype(checkpoint: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    if dtype is not None and checkpoint.get("optimizer_states"):
        raise ValueError(
            "`--dtype` changes weights only, and the states of optimizers in this checkpoint belong to the weights as"
            " they are. Add `--weights-only`, or set the precision of the run: `Trainer(precision=...)`."
        )


# ---- weights


def _renaming(
    weights: Mapping[str, Any], strip_prefixes: Sequence[str], add_prefix: str, notes: list[str]
) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for prefix in strip_prefixes:
            name = name.removeprefix(prefix)
        return add_prefix + name

    for prefix in strip_prefixes:
        if not any(name.startswith(prefix) for name in weights):
            first = ", ".join(list(weights)[:5])
            raise ValueError(f"no weight's name begins with `--strip-prefix={prefix}`; they are called {first}, ...")
    renamed = {name: rename(name) for name in weights}
    if len(set(renamed.values())) < len(renamed):
        twice = next(new for new in renamed.values() if list(renamed.values()).count(new) > 1)
        raise ValueError(f"without these prefixes two weights would both be called {twice!r}. Strip fewer of them.")
    changed = sum(old != new for old, new in renamed.items())
    if strip_prefixes or add_prefix:
        notes.append(f"renamed {changed} of {len(renamed)} weights")
    return rename


def _changed(weights: Mapping[str, Any], rename: Callable[[str], str], dtype: torch.dtype | None) -> dict[str, Any]:
    """Rename and cast; tensors that shared memory still do."""
    cast: dict[tuple[Any, ...], Tensor] = {}

    def value(old: Any) -> Any:
        if dtype is None or not isinstance(old, Tensor) or not old.is_floating_point():
            return old
        place = (old.data_ptr(), old.shape, old.stride())
        if not old.numel() or place not in cast:
            cast[place] = old.to(dtype)
        return cast[place]

    return {rename(name): value(each) for name, each in weights.items()}


def _note_left_out(file: FileContents, to: str, notes: list[str]) -> None:
    if file.weights_key is not None:
        kept = {file.weights_key, VERSION_KEY, *(_for_metadata(file) if to == SAFETENSORS else ())}
        left_out = [str(name) for name in file.content if name not in kept]
        notes += [f"left out: {', '.join(left_out)}"] if left_out else []


def _only_tensors(weights: dict[str, Any], notes: list[str]) -> dict[str, Tensor]:
    others = [name for name, each in weights.items() if not isinstance(each, Tensor)]
    if others:
        notes.append(f"left out, as safetensors hold tensors only: {', '.join(others)}")
    return {name: each for name, each in weights.items() if isinstance(each, Tensor)}


# ---- safetensors


def _save_safetensors(weights: dict[str, Tensor], file: FileContents, path: Path, notes: list[str]) -> None:
    save = require("safetensors.torch", extra="safetensors", for_="fulmen convert").save
    seen: set[int] = set()
    whole: dict[str, Tensor] = {}
    shared = []
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        if place in seen and tensor.numel():
            shared.append(name)
            tensor = tensor.clone()  # the format has no way to say that two are one
        seen.add(place)
        whole[name] = tensor.contiguous()
    if shared:
        notes.append(f"stored by themselves, though they share memory with others: {', '.join(shared)}")
    carried = _for_metadata(file)
    metadata = {"format": "pt", **({_CARRIER: json.dumps(carried)} if carried else {})}
    with atomic_open(path) as output:
        output.write(save(whole, metadata))


def _for_metadata(file: FileContents) -> dict[str, Any]:
    return {name: file.content[name] for name in _CARRIED if name in file.content and _fits_json(file.content[name])}


def _carried(file: FileContents) -> dict[str, Any]:
    text = file.content.get(_CARRIER) if file.format == SAFETENSORS else None
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return {name: found[name] for name in _CARRIED if name in found} if isinstance(found, dict) else {}


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
