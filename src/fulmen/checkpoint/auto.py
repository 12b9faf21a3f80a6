"""`ckpt_path="auto"`: the newest whole checkpoint of this run and of its earlier attempts, for jobs that are restarted.

Where it looks, and nowhere else::

    the folder of each checkpoint callback           every file with its extension, `interrupted.ckpt` among them
    the same folder of earlier versions              if it was not given, but comes from the version of the first logger
    the file of each `OnExceptionCheckpoint`
    default_root_dir                                 hpc_ckpt_N.ckpt

What is newest: each checkpoint names the run that wrote it and those which that one resumed. A run that resumed another
one is newer than it, whatever the clocks of their machines say; of runs that have nothing to do with each other, and of
files without such a name, the one with the newest file counts. Within a run the number of optimizer steps decides.

Files that cannot be resumed from are passed over, in one warning: damaged ones, those with weights only, with weights
that are not finite, and, in the folders of earlier versions, those of runs with other hyperparameters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.checkpoint.contents import OWN_KEY
from fulmen.checkpoint.search import INTERRUPTED_NAME, files_of, hpc_files, is_whole_folder, modified, on_exception_file
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import is_local, is_sharded_folder, load_file, local_path, verify_file
from fulmen.utilities.finite import first_non_finite
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["explaining_misfit", "is_asked_for", "newest_of_run"]

_START_FRESH = (
    "To start anew, leave `ckpt_path` out, or give this run a folder of its own: `ModelCheckpoint(dirpath=...)`, or a"
    " logger with another `name`"
)


def newest_of_run(trainer: Trainer, *, fn: str) -> str | None:
    """Return the checkpoint that a restarted job goes on from.

    Args:
        trainer: The Trainer, with callbacks that have chosen their folders.
        fn: "fit" wants a file to train on from; the other methods are content with weights.

    Returns:
        Its path; `None` if there is none: the first start.
    """
    passed_over: dict[str, str] = {}
    chosen = None
    for candidate in _newest_first(_candidates(trainer)):
        reason = _objection(candidate, trainer, fn)
        if reason is None:
            chosen = candidate.path
            break
        passed_over[candidate.path] = reason
    if passed_over:
        outcome = "Nothing is left, so the run starts anew." if chosen is None else f"`{chosen}` is used."
        reasons = "; ".join(f"`{path}` ({reason})" for path, reason in passed_over.items())
        rank_zero_warn(f'.{fn}(ckpt_path="auto") passed over newer checkpoints: {reasons}. {outcome}')
    if chosen is None and not passed_over:
        rank_zero_info(f'.{fn}(ckpt_path="auto"): there is no checkpoint of an earlier attempt yet.')
    return chosen


def is_asked_for(trainer: Trainer, ckpt_path: Any) -> bool:
    """Tell if a run was asked to look for its newest checkpoint.

    Args:
        trainer: The Trainer of the run; what was assigned to its `ckpt_path` counts if there is no argument.
        ckpt_path: The argument of `fit`, `validate`, `test` or `predict`.
    """
    return bool((trainer.ckpt_path_of_user if ckpt_path is None else ckpt_path) == "auto")


@contextmanager
def explaining_misfit(trainer: Trainer, ckpt_path: Any) -> Iterator[None]:
    """Context for taking over a checkpoint; if the file was not named by the user, an error names it.

    Args:
        trainer: The Trainer of the run.
        ckpt_path: The argument of `fit`, `validate`, `test` or `predict`.

    Raises:
        RuntimeError: The checkpoint that `"auto"` found does not fit the model, the optimizers or the callbacks.
    """
    try:
        yield
    except Exception as error:
        if not is_asked_for(trainer, ckpt_path):
            raise
        raise RuntimeError(
            f'`ckpt_path="auto"` found `{trainer.ckpt_path}`, which does not fit this run: {error}. {_START_FRESH}.'
        ) from error


# ---- where


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: str
    modified: float
    is_of_other_version: bool
    content: dict[str, Any] | None = field(repr=False)  # `None`: it could not be read without trusting it, or at all

    @property
    def step(self) -> int:
        step = (self.content or {}).get("global_step", 0)
        return step if isinstance(step, int) else 0

    @property
    def runs(self) -> list[str]:
        """Names of the run that wrote it, last, and of those which that one has resumed."""
        own = (self.content or {}).get(OWN_KEY, {})
        return list(own.get("run") or []) or [self.path]


def _candidates(trainer: Trainer) -> list[_Candidate]:
    named = dict.fromkeys(hpc_files(trainer.default_root_dir), False)
    for callback in trainer.callbacks:
        path = on_exception_file(callback)
        if path is not None:
            named[path] = False
    for saver in trainer.checkpoint_callbacks:
        folder: str | None = getattr(saver, "dirpath", None)
        if folder is None:
            continue
        named.update(dict.fromkeys(files_of(folder, INTERRUPTED_NAME), False))
        if not hasattr(saver, "CHECKPOINT_NAME_LAST"):
            continue
        pattern = _pattern(saver)
        named.update(dict.fromkeys(files_of(folder, pattern), False))
        for earlier in _folders_of_earlier_versions(trainer, saver, folder):
            for name in (pattern, INTERRUPTED_NAME):
                named.update(dict.fromkeys(files_of(earlier, name), True))
    candidates, seen = [], set()
    for path, is_of_other_version in named.items():
        real = os.path.realpath(local_path(path)) if is_local(path) else path
        if real in seen or (is_local(path) and not os.path.exists(real)):
            continue  # a link to another one, or to nothing
        seen.add(real)
        where = real if is_local(path) else path
        candidates.append(_Candidate(path, modified(where), is_of_other_version, _content(path)))
    return candidates


def _pattern(saver: object) -> str:
    """Files can be in subfolders only if the template of their names says so."""
    templates = (str(getattr(saver, "filename", None) or ""), str(getattr(saver, "CHECKPOINT_NAME_LAST", "")))
    depth = max(template.count("/") for template in templates)
    extension = getattr(saver, "FILE_EXTENSION", ".ckpt")
    return f"**/*{extension}" if depth else f"*{extension}"


def _folders_of_earlier_versions(trainer: Trainer, saver: object, folder: str) -> list[str]:
    """Folders of the same experiment: same logger folder and name, other number."""
    logger = trainer.loggers[0] if trainer.loggers else None
    version = None if logger is None else logger.version
    if not getattr(saver, "folder_is_default", False) or isinstance(version, bool) or not isinstance(version, int):
        return []
    version_folder, name = os.path.split(folder)
    root, version_name = os.path.split(version_folder)
    if version_name != f"version_{version}":
        return []
    return [path for path in files_of(root, f"version_*/{name}") if path.rstrip("/") != folder.rstrip("/")]


def _content(path: str) -> dict[str, Any] | None:
    """Return what is in a file; of a local one the tensors stay on the disk until they are read."""
    try:
        if is_sharded_folder(path):
            content: Any = _content_of_folder(path)
        elif is_local(path):
            content = torch.load(local_path(path), map_location="cpu", mmap=True, weights_only=True)
        else:
            content = load_file(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged, or with objects in it that are not to be made: reading it for good will tell
        return None
    return content if isinstance(content, dict) else None


def _content_of_folder(path: str) -> dict[str, Any]:
    from fulmen.plugins.io.distributed_io import MOST_BYTES_TO_CHECK, ShardedCheckpoint

    checkpoint = ShardedCheckpoint(path, weights_only=True)
    if checkpoint.num_bytes > MOST_BYTES_TO_CHECK:
        del checkpoint["state_dict"]  # too much for one process to look for values that are not finite
    return checkpoint


# ---- which


def _newest_first(candidates: list[_Candidate]) -> Iterator[_Candidate]:
    runs: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        runs.setdefault(candidate.runs[-1], []).append(candidate)
    while runs:
        resumed = {name for each in runs.values() for name in each[0].runs[:-1]}
        newest = [name for name in runs if name not in resumed] or list(runs)
        name = max(newest, key=lambda name: max(each.modified for each in runs[name]))
        yield from sorted(runs.pop(name), key=lambda each: (each.step, each.modified, each.path), reverse=True)


def _objection(candidate: _Candidate, trainer: Trainer, fn: str) -> str | None:
    """Return why a file is not to be gone on from; `None` if it is."""
    content = candidate.content
    if is_local(candidate.path):
        try:
            if not os.path.isdir(local_path(candidate.path)):
                verify_file(candidate.path)
            elif not is_whole_folder(candidate.path):
                return "damaged"
        except (DamagedFileError, FileNotFoundError):
            return "damaged"
    elif content is None:
        return _objection_to_remote(candidate.path)
    if content is None:
        return None
    if fn == "fit" and "optimizer_states" not in content:
        return "it holds weights only, from which training cannot go on"
    other = _other_hparams(content, trainer) if candidate.is_of_other_version else ""
    if other:
        return f"a run with other hyperparameters: {other}"
    bad = _not_finite(content, trainer)
    return None if bad is None else f"its weights are not finite, beginning with `{bad}`"


def _objection_to_remote(path: str) -> str | None:
    try:
        load_file(path, map_location="cpu", weights_only=True)
    except DamagedFileError:
        return "damaged"
    except Exception:  # it holds more than tensors and plain data, and whoever loads it may allow that
        return None
    return None


def _other_hparams(content: dict[str, Any], trainer: Trainer) -> str:
    """Name a hyperparameter that a checkpoint and the module have with different plain values."""
    saved, now = content.get("hyper_parameters"), dict(trainer.lightning_module.hparams)
    if not isinstance(saved, dict):
        return ""
    for name in saved.keys() & now.keys():
        pair = saved[name], now[name]
        if all(value is None or isinstance(value, (bool, int, float, str)) for value in pair) and pair[0] != pair[1]:
            return f"{name}={pair[0]!r}, here {pair[1]!r}"
    return ""


def _not_finite(content: dict[str, Any], trainer: Trainer) -> str | None:
    weights = content.get("state_dict", {})
    named = ((name, weights.get(name)) for name, _ in trainer.lightning_module.named_parameters())
    return first_non_finite((name, value) for name, value in named if isinstance(value, Tensor))
