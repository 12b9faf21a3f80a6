"""What is in a checkpoint, as plain data: for `fulmen inspect`, which shows it, and for its `--json`."""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fulmen.checkpoint.contents import OWN_KEY
from fulmen.checkpoint.file_formats import FileContents, read_any
from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import is_local, local_path, problem_without_meta, verify_file
from fulmen.utilities.migration import LEGACY_VERSION_KEY, VERSION_KEY, migrate_checkpoint
from fulmen.utilities.plain_data import NotPlainError, to_plain
from fulmen.utilities.tree import apply_to_collection

__all__ = ["summarize_checkpoint"]

_KNOWN = {
    *("epoch", "global_step", "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", "hparams_name"),
    *("hyper_parameters", "hparams_type", "datamodule_hparams_name", "datamodule_hyper_parameters"),
    *("datamodule_hparams_type", OWN_KEY, VERSION_KEY, LEGACY_VERSION_KEY),
}  # fmt: skip
_FEW_BYTES = 2
_MATCH, _NONE_THERE, _NOT_COMPARED = "match", "none in this kind of file", "not compared"


def summarize_checkpoint(
    path: str | os.PathLike[str], *, quick: bool = False, trust: bool = False, key: str | None = None
) -> dict[str, Any]:
    """Describe a checkpoint.

    Args:
        path: The file, or a folder of shards.
        quick: Read no tensors: no checksums, no search for values that are not finite.
        trust: Also make objects that are no plain data, which runs code of the file.
        key: Where the weights are; looked for by default.

    Returns:
        Facts that JSON can hold. `["health"]["problems"]` lists, as phrases, what is wrong with it.

    Raises:
        FileNotFoundError: There is no such file.
        KeyError: It has no weights under `key`.
        ValueError: It is a folder that is no checkpoint.
    """
    summary: dict[str, Any] = {"path": os.fspath(path), **_on_disk(os.fspath(path))}
    checksums, problems = _NOT_COMPARED, []
    try:
        if not quick:
            checksums = _compare_checksums(os.fspath(path))
        file = read_any(path, trust=trust, key=key)
    except (DamagedFileError, pickle.UnpicklingError) as error:
        is_damaged = isinstance(error, DamagedFileError)
        health = {"checksums": "do not match" if is_damaged else checksums, "problems": [str(error)]}
        return {**summary, "format": "unreadable", "health": health}
    if file.format != "safetensors" and not file.is_sharded and VERSION_KEY in file.content:
        summary["written_by"] = _written_by(file.content)
        migrate_checkpoint(file.content)
    if file.is_sharded and "state_dict" in file.content and (problem := problem_without_meta(path)):
        problems.append(problem)
    weights = [_tensor_facts(name, value, quick) for name, value in file.weights.items() if isinstance(value, Tensor)]
    bad = [f"`{each['name']}`: {each['not_finite']}" for each in weights if "not_finite" in each]
    optimizers = [_optimizer(state, quick) for state in _listed(file.content.get("optimizer_states"))]
    bad += [f"optimizer {number}: {each['not_finite']}" for number, each in enumerate(optimizers)
            if "not_finite" in each]  # fmt: skip
    return {
        **summary,
        "format": file.format,
        "is_sharded": file.is_sharded,
        **_progress(file),
        **(_of_deepspeed(file) if is_deepspeed_folder(file.path) else {}),
        "weights_key": file.weights_key,
        "weights": weights,
        **_hparams(file.content),
        "callbacks": _plain(file.content.get("callbacks") or {}),
        "optimizers": optimizers,
        "lr_schedulers": _plain(_listed(file.content.get("lr_schedulers"))),
        "other": _other(file),
        "health": {"checksums": checksums, "finite": None if quick else not bad, "not_loaded": file.refused,
                   "problems": problems + bad},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a tensor as what kind it is, an unknown object as its `repr`."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.is_meta else _tensor_text(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    try:
        value = to_plain(value)
    except NotPlainError:
        return repr(value)
    return value if isinstance(value, (type(None), bool, int, float, str)) else str(value)


# ---- the file


def _on_disk(path: str) -> dict[str, Any]:
    if not is_local(path):
        return {}
    place = Path(local_path(path))
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {path!r}")
    files = [each for each in place.rglob("*") if each.is_file()] if place.is_dir() else [place]
    saved = datetime.datetime.fromtimestamp(place.stat().st_mtime).astimezone()
    return {"size_bytes": sum(each.stat().st_size for each in files), "modified": saved.isoformat(timespec="seconds")}


def _compare_checksums(path: str) -> str:
    if path.endswith(".safetensors"):
        return _NONE_THERE
    if not (is_local(path) and os.path.isdir(local_path(path))):  # what reads a folder compares
        verify_file(path)
    return _MATCH


def _written_by(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {"layout_of_lightning": str(content.get(LEGACY_VERSION_KEY) or content[VERSION_KEY])}
    own = content.get(OWN_KEY)
    return {**found, "layout_of_fulmen": own.get("version")} if isinstance(own, Mapping) else found


# ---- how far it was


def _progress(file: FileContents) -> dict[str, Any]:
    content = file.content
    facts: dict[str, Any] = {name: _plain(content[name]) for name in ("epoch", "global_step") if name in content}
    position = _position(content)
    if position:
        facts["position"] = position
    if "state_dict" in content or "loops" in content:
        states = content.get("optimizer_states")  # of a folder of shards always a list
        is_whole = bool(states) if file.is_sharded else states is not None
        facts["can_resume"] = "loops" in content and is_whole
    own = content.get(OWN_KEY)
    if isinstance(own, Mapping) and isinstance(own.get("run"), list):
        facts["runs"] = [str(each) for each in own["run"]]
    return facts


def _of_deepspeed(file: FileContents) -> dict[str, Any]:
    """Return who wrote the folder; its optimizer states, which are not read, go with the loops of a Trainer."""
    folder = DeepSpeedFolder(file.path)
    facts = {"engine": "deepspeed", "deepspeed": {"num_processes": folder.world_size, "stage": folder.stage}}
    return {**facts, "can_resume": "loops" in file.content, "resume_conditions": folder.conditions}


def _position(content: Mapping[str, Any]) -> str | None:
    """Return in words where the fit was, from its counters."""
    try:
        loop = content["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
        number = int(epochs["completed"])
        if epochs["processed"] > epochs["completed"]:
            return f"at the end of epoch {number}, after {batches['completed']} batches"
        if epochs["started"] > epochs["completed"]:
            return f"in the middle of epoch {number}, after {batches['completed']} batches"
    except (KeyError, TypeError, ValueError):
        return None
    return f"before epoch {number}"


# ---- tensors


def _tensor_facts(name: str, tensor: Tensor, quick: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": str(name),
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "values": tensor.numel(),
        "bytes": tensor.numel() * tensor.element_size(),
    }
    bad = None if quick else _not_finite(tensor)
    return facts if bad is None else {**facts, "not_finite": bad}


def _not_finite(tensor: Tensor) -> str | None:
    """Return how many values are NaN or infinite, as a phrase; `None` if none is."""
    if tensor.is_meta or not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    if values.element_size() < _FEW_BYTES:
        values = values.float()  # torch has no such question for 8 bits
    if bool(torch.isfinite(values).all()):
        return None
    num_nan = int(torch.isnan(values).sum())
    num_bad = int((~torch.isfinite(values)).sum())
    kinds = [f"{num} {kind}" for num, kind in ((num_nan, "NaN"), (num_bad - num_nan, "infinite")) if num]
    return f"{' and '.join(kinds)} of {values.numel()} values"


def _tensors_in(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    apply_to_collection(value, Tensor, found.append)
    yield from found


def _tensor_text(tensor: Tensor) -> str:
    return f"<{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}>"


# ---- the rest


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _optimizer(state: Any, quick: bool) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        return {"what": _plain(state)}
    groups = [group for group in _listed(state.get("param_groups")) if isinstance(group, Mapping)]
    tensors = list(_tensors_in(state.get("state", {})))
    facts: dict[str, Any] = {
        "param_groups": [
            {**{name: _plain(each) for name, each in group.items() if name != "params"},
             "num_params": len(_listed(group.get("params")))}
            for group in groups
        ],
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }  # fmt: skip
    bad = [] if quick else [text for text in map(_not_finite, tensors) if text]
    return {**facts, "not_finite": bad[0]} if bad else facts


def _hparams(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters; those that are in the file as pickles only, which stay closed, by a mark."""
    own = content.get(OWN_KEY)
    pickled = own.get("pickled_hparams", {}) if isinstance(own, Mapping) else {}
    found: dict[str, Any] = {}
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        values = content.get(key)
        named = {} if not isinstance(values, Mapping) else {str(name): _plain(value) for name, value in values.items()}
        for name in pickled.get(key, {}):
            named.setdefault(str(name), "<pickled, not loaded>")
        if named:
            found[key] = named
    return found


def _other(file: FileContents) -> dict[str, str]:
    """Return the entries that are not spoken of elsewhere: name to what they hold."""
    weights_key = (file.weights_key or "").partition(".")[0]
    if file.format == "weights":
        return {}
    if file.format == "safetensors":
        return {name: _short(_plain(value)) for name, value in file.content.items()}
    return {str(name): _kind(value) for name, value in file.content.items()
            if name not in _KNOWN and name != weights_key}  # fmt: skip


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict of {len(value)}: {_short(', '.join(map(str, value)))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return _short(str(_plain(value)))


def _short(text: Any) -> str:
    words = str(text)
    return words if len(words) <= 100 else f"{words[:97]}..."
