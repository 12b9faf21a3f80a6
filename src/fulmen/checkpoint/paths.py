"""Which file `ckpt_path` means: a path, `"best"`, `"last"`, `"auto"`, `"hpc"`, or none."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fulmen.checkpoint.auto import newest_of_run
from fulmen.checkpoint.search import (
    INTERRUPTED_NAME,
    files_of,
    hpc_files,
    hpc_number,
    is_checkpoint_folder,
    is_whole_folder,
    modified,
    on_exception_file,
)
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import is_local, load_file, local_path, verify_file
from fulmen.utilities.model_registry import (
    download_model_from_registry,
    find_model_local_ckpt_path,
    is_registry_address,
)
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["INTERRUPTED_NAME", "newest_hpc_checkpoint", "newest_whole_checkpoint", "next_hpc_path", "resolve_ckpt_path"]


def resolve_ckpt_path(
    trainer: Trainer,
    ckpt_path: str | Path | None,
    *,
    fn: str,
    model_provided: bool,
    set_by_user: str | Path | None = None,
) -> str | None:
    """Find the file to load for a run. Call it after the callbacks' `setup`, where they choose their folders.

    Args:
        trainer: The Trainer of the run.
        ckpt_path: The argument of `fit`, `validate`, `test` or `predict`. A file that is called like one of the words
            needs a folder in front: `"./auto"`.
        fn: The name of that method.
        model_provided: Whether the user passed a model; without one, the best checkpoint of the last fit is meant.
        set_by_user: What the user assigned to `trainer.ckpt_path`, if anything.

    Returns:
        A path or URL; `None` if nothing is to be loaded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no "best" or "hpc" checkpoint.
    """
    if set_by_user is not None:
        if ckpt_path is None:
            ckpt_path = set_by_user
        else:
            rank_zero_warn(
                f"`trainer.ckpt_path` is {str(set_by_user)!r} and `.{fn}(ckpt_path={str(ckpt_path)!r})` was called."
                " The argument is used."
            )
    if ckpt_path is None:
        return _default(trainer, fn=fn, model_provided=model_provided)
    if ckpt_path == "best":
        return _best(trainer, fn)
    if ckpt_path == "last":
        return _last(trainer, fn)
    if ckpt_path == "auto":
        return _auto(trainer, fn)
    if ckpt_path == "hpc":
        return _hpc(trainer, fn)
    if is_registry_address(ckpt_path):
        download_model_from_registry(ckpt_path, trainer)
        return find_model_local_ckpt_path(ckpt_path, trainer.model_registry, trainer.default_root_dir)
    return _existing(os.fspath(ckpt_path))


def _default(trainer: Trainer, *, fn: str, model_provided: bool) -> str | None:
    if fn == "fit":
        # a run that broke down goes on by itself, that is what the callback is for; the first run finds nothing
        breakdowns = not trainer.fast_dev_run and any(on_exception_file(callback) for callback in trainer.callbacks)
        return _newest_whole(list(_last_files(trainer))) if breakdowns else None
    if model_provided:
        return None
    rank_zero_warn(
        f"`.{fn}(ckpt_path=None)` was called without a model. The best model of the previous `fit` call will be used."
        f" To use the weights in memory, pass the model: `trainer.{fn}(model)`. To hide this, pass `ckpt_path='best'`."
    )
    return _best(trainer, fn)


def _existing(path: str) -> str:
    if "://" in path and not is_local(path):
        return path  # asking a server costs a request; loading does it anyway
    if not os.path.exists(local_path(path)):
        raise FileNotFoundError(
            f"Checkpoint file not found: `{path}`"
            + ("" if os.path.isabs(path) else f" (in the folder `{os.getcwd()}`)")
            + ". Check the path, or use 'best' or 'last'."
        )
    if os.path.isdir(local_path(path)) and not is_checkpoint_folder(path):
        raise IsADirectoryError(
            f"`ckpt_path={path!r}` is a folder without the shards of a checkpoint (`.metadata`). Name the file, or the"
            " checkpoint's own folder, in it."
        )
    return path


# ---- best


def _best(trainer: Trainer, fn: str) -> str:
    callbacks = trainer.checkpoint_callbacks
    if not callbacks:
        raise ValueError(
            f'`.{fn}(ckpt_path="best")` is set but `ModelCheckpoint` is not configured.'
            " So no file is known to be the best. Use `Trainer(callbacks=[ModelCheckpoint(...)])`, or pass a path."
        )
    if len(callbacks) > 1:
        rank_zero_warn(
            f'`.{fn}(ckpt_path="best")` found {len(callbacks)} checkpoint callbacks. The best file of the first one'
            " is used; pass the path `callback.best_model_path` to choose another."
        )
    path: str = getattr(callbacks[0], "best_model_path", "")
    if path:
        return path
    if trainer.fast_dev_run:
        raise ValueError(
            f'You cannot execute `.{fn}(ckpt_path="best")` with `fast_dev_run=True`, which saves nothing.'
            f" Please pass an exact checkpoint path to `.{fn}(ckpt_path=...)`, or the model itself."
        )
    raise ValueError(
        f'`.{fn}(ckpt_path="best")` is set but `{type(callbacks[0]).__name__}` has saved nothing in this process:'
        " it is not configured to save the best model, or `fit` was not run."
        " Set its `save_top_k`, or pass an exact path."
    )


# ---- last


def _last(trainer: Trainer, fn: str) -> str | None:
    path = _newest_whole(list(_last_files(trainer)))
    if path is None:
        rank_zero_warn(
            f'.{fn}(ckpt_path="last") is set, but there is no last checkpoint available. No checkpoint will be loaded.'
            " To have one, use `ModelCheckpoint(save_last=True)` with a fixed `dirpath`."
        )
    return path


def _auto(trainer: Trainer, fn: str) -> str | None:
    path = newest_of_run(trainer, fn=fn)
    if path is None and fn != "fit":
        rank_zero_warn(
            f'.{fn}(ckpt_path="auto") is set, but there is no checkpoint of this run. The weights in memory are used.'
        )
    return path


def _last_files(trainer: Trainer) -> Iterator[str]:
    for saver in trainer.checkpoint_callbacks:
        prefix: str | None = getattr(saver, "CHECKPOINT_NAME_LAST", None)
        folder: str | None = getattr(saver, "dirpath", None)
        if folder is not None:
            yield from files_of(folder, INTERRUPTED_NAME)
        if prefix is not None and folder is not None:
            # the name can be a template, as in "{epoch}-last"
            fixed = re.sub(r"\{.*?\}", "*", prefix)
            yield from files_of(folder, f"{fixed}*{getattr(saver, 'FILE_EXTENSION', '.ckpt')}")
    for callback in trainer.callbacks:
        path = on_exception_file(callback)
        if path is not None:
            yield path


def _newest_whole(paths: list[str]) -> str | None:
    """The newest undamaged one of `paths`; if there is none but a damaged one, of all checkpoints beside them."""
    damaged: list[str] = []
    for path in _newest_first(paths):
        if _is_whole(path):
            if damaged:
                _warn_about_damage(damaged, path)
            return path
        damaged.append(path)
    beside = {other for path in damaged for other in files_of(os.path.dirname(path), "*.ckpt")}
    for path in _newest_first(list(beside - set(damaged))):
        if _is_whole(path):
            _warn_about_damage(damaged, path)
            return path
    if damaged:
        raise DamagedFileError(
            f"All checkpoints that could be the last one are damaged: {damaged}, and no whole one is beside them."
            " Copy one again from its source, or start anew without `ckpt_path`."
        )
    return None


def _newest_first(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: (modified(path), path), reverse=True)


def _is_whole(path: str) -> bool:
    try:
        if is_local(path) and os.path.isdir(local_path(path)):
            return is_whole_folder(path)
        if is_local(path):
            verify_file(path)
        else:
            load_file(path, map_location="cpu", weights_only=True)  # the only way to know
    except (DamagedFileError, FileNotFoundError):  # a link can lead nowhere
        return False
    except pickle.UnpicklingError:  # whole, with objects in it that loading it for good may allow
        return True
    return True


def _warn_about_damage(damaged: list[str], used: str) -> None:
    rank_zero_warn(f"Damaged checkpoints are passed over: {damaged}. The newest whole one is used: `{used}`.")


# ---- hpc


def newest_hpc_checkpoint(folder: str) -> str | None:
    """Return the file `hpc_ckpt_N.ckpt` with the highest N, as saved when a cluster takes the machine away.

    Args:
        folder: `trainer.default_root_dir`.

    Returns:
        Its path; `None` if there is none.
    """
    return max(hpc_files(folder), key=hpc_number, default=None)


def next_hpc_path(folder: str) -> str:
    """Return the path of the next `hpc_ckpt_N.ckpt` to be saved in `folder`."""
    newest = newest_hpc_checkpoint(folder)
    number = 1 if newest is None else hpc_number(newest) + 1
    return f"{str(folder).rstrip('/')}/hpc_ckpt_{number}.ckpt"


def newest_whole_checkpoint(paths: list[str], folders: list[str]) -> str | None:
    """Return the newest undamaged checkpoint.

    Args:
        paths: Files to choose from.
        folders: Folders, each `*.ckpt` in which is one to choose from.
    """
    candidates = {*paths, *(path for folder in folders for path in files_of(folder, "*.ckpt"))}
    return _newest_whole(list(candidates))


def _hpc(trainer: Trainer, fn: str) -> str:
    path = newest_hpc_checkpoint(trainer.default_root_dir)
    if path is None:
        raise ValueError(
            f'`.{fn}(ckpt_path="hpc")` is set but no HPC checkpoint was found: no `hpc_ckpt_*.ckpt` is in'
            f" `{trainer.default_root_dir}`. Set `default_root_dir` to that of the earlier run, or pass an exact path."
        )
    return path
