"""Bring checkpoints of earlier Lightning versions (1.6 and later) into today's layout.

Each step is a small function that changes the checkpoint in place; `_STEPS` says from which version on it is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.warnings import PossibleUserWarning

__all__ = ["LAYOUT_VERSION", "LEGACY_VERSION_KEY", "VERSION_KEY", "Checkpoint", "migrate_checkpoint", "pl_legacy_patch"]

LAYOUT_VERSION = "2.6.6"
"""The Lightning version whose checkpoint layout this framework writes."""
VERSION_KEY = "pytorch-lightning_version"
LEGACY_VERSION_KEY = "legacy_pytorch-lightning_version"

Checkpoint: TypeAlias = dict[str, Any]

_OLDEST = (1, 6, 0)


def migrate_checkpoint(
    checkpoint: Checkpoint, target_version: str | None = None
) -> tuple[Checkpoint, dict[str, list[str]]]:
    """Bring a checkpoint into the layout of a later version, in place.

    If anything is changed, the version is raised and the old one is kept under `"legacy_pytorch-lightning_version"`.

    Args:
        checkpoint: A loaded checkpoint.
        target_version: Lightning version whose layout to reach; default: the one written today.

    Returns:
        The checkpoint, and the names of the applied steps by the version that made them necessary.

    Raises:
        KeyError: The checkpoint does not say its version.
        TypeError: It is no dict.
    """
    written_by = _version_of(checkpoint)
    target = _parse(target_version or LAYOUT_VERSION)
    if _parse(written_by) > _parse(LAYOUT_VERSION):
        rank_zero_warn(
            f"The checkpoint was written by Lightning {written_by}, whose layout may be newer than {LAYOUT_VERSION},"
            " the newest known here. If something is missing after loading, update fulmen.",
            category=PossibleUserWarning,
        )
    if _parse(written_by) >= target:
        return checkpoint, {}
    if _parse(written_by) < _OLDEST:
        rank_zero_warn(
            f"The checkpoint was written by Lightning {written_by}. Files from before 1.6 keep their counters"
            " elsewhere: weights and hyperparameters can be used, but a run that resumes from it begins at step 0."
        )

    applied: dict[str, list[str]] = {}
    for version, step in _STEPS:
        if _parse(written_by) < _parse(version) <= target:
            step(checkpoint)
            applied.setdefault(version, []).append(step.__name__.lstrip("_"))
    checkpoint[LEGACY_VERSION_KEY] = written_by
    checkpoint[VERSION_KEY] = target_version or LAYOUT_VERSION
    return checkpoint, applied


def _version_of(checkpoint: Checkpoint) -> str:
    if not isinstance(checkpoint, dict):
        raise TypeError(
            f"The file holds a {type(checkpoint).__name__}, but a checkpoint is a dict. Pass a file that a Trainer"
            " saved; to read what is in this one use `torch.load(path)`."
        )
    if VERSION_KEY not in checkpoint:
        raise KeyError(
            f"The checkpoint has no entry {VERSION_KEY!r}, so it was not written by a Trainer or its layout is unknown."
            f" It has {sorted(map(str, checkpoint))[:12]!r}. For a file with weights only, use"
            " `model.load_state_dict(torch.load(path))`."
        )
    return str(checkpoint[VERSION_KEY])


def _parse(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers.group().split(".")] if numbers else []
    return tuple([*parts, 0, 0, 0][:3])


# ---- steps


def _count_batches_that_stepped(checkpoint: Checkpoint) -> None:
    """1.6.0 to 1.6.4 lacked the count that is the x axis of loggers; with one optimizer it equals the global step."""
    fit_loop = checkpoint.get("loops", {}).get("fit_loop")
    if fit_loop is not None:
        fit_loop.setdefault("epoch_loop.state_dict", {}).setdefault("_batches_that_stepped", checkpoint["global_step"])


_SAVE_ON_TRAIN_EPOCH_END = re.compile(r", 'save_on_train_epoch_end': (None|True|False)(?=\})")


def _drop_save_on_train_epoch_end_from_keys(checkpoint: Checkpoint) -> None:
    """Since 1.9 this argument is no part of the key under which a `ModelCheckpoint` keeps its state."""
    states = checkpoint.get("callbacks") or {}
    renamed = {
        key: _SAVE_ON_TRAIN_EPOCH_END.sub("", key)
        for key in states
        if isinstance(key, str) and key.startswith("ModelCheckpoint{")
    }
    if len(set(renamed.values())) < len(renamed):
        rank_zero_warn(
            "The checkpoint has states of several `ModelCheckpoint` callbacks that now have the same key:"
            f" {list(renamed)!r}. It cannot be told whose state is whose, so none is restored.",
            category=PossibleUserWarning,
        )
        return
    checkpoint["callbacks"] = {renamed.get(key, key): state for key, state in states.items()}


def _drop_apex_state(checkpoint: Checkpoint) -> None:
    """2.0 removed support for NVIDIA apex."""
    if checkpoint.pop("amp_scaling_state", None) is not None:
        rank_zero_warn(
            "The checkpoint has the state of apex's mixed precision, which is no longer supported and is ignored."
            " Use `Trainer(precision='16-mixed')`; its loss scale adapts again within some hundred steps."
        )


_RENAMED_LOOPS = (
    # 2.0 removed truncated backpropagation and several optimizers in automatic mode, hence two levels of loops
    ("epoch_loop.batch_loop.optimizer_loop.", "epoch_loop.automatic_optimization."),
    ("epoch_loop.batch_loop.manual_loop.", "epoch_loop.manual_optimization."),
    # and the loop over evaluation loaders
    ("epoch_loop.val_loop.epoch_loop.", "epoch_loop.val_loop."),
)
_GONE = ("epoch_loop.batch_loop.state_dict", "dataloader_progress", "_results")


def _rename_loops(checkpoint: Checkpoint) -> None:
    """2.0 has fewer loops inside each other."""
    for name, state in checkpoint.get("loops", {}).items():
        renames = _RENAMED_LOOPS if name == "fit_loop" else (("epoch_loop.", ""),)
        kept = {key: value for key, value in state.items() if not key.endswith(_GONE)}
        state.clear()
        for key, value in kept.items():
            state[_renamed(key, renames)] = value
        state.get("epoch_loop.automatic_optimization.optim_progress", {}).pop("optimizer_position", None)


def _renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _rename_mixed_precision(checkpoint: Checkpoint) -> None:
    """The class that owns the gradient scaler, whose name is the key of its state, lost its suffix in 2.1."""
    for old in ("NativeMixedPrecisionPlugin", "MixedPrecisionPlugin"):
        if old in checkpoint:
            checkpoint["MixedPrecision"] = checkpoint.pop(old)


_STEPS: tuple[tuple[str, Callable[[Checkpoint], None]], ...] = (
    ("1.6.5", _count_batches_that_stepped),
    ("1.9.0", _drop_save_on_train_epoch_end_from_keys),
    ("2.0.0", _drop_apex_state),
    ("2.0.0", _rename_loops),
    ("2.1.0", _rename_mixed_precision),
)


# ---- pickles of old files


class pl_legacy_patch(AbstractContextManager["pl_legacy_patch"]):
    """Context in which pickles of Lightning before 1.3 can be read.

    Their hyperparameters can hold a placeholder for the Trainer's `gpus` argument that exists no more. Only needed with
    `torch.load(..., weights_only=False)`.

    Example:
        >>> with pl_legacy_patch():
        ...     from pytorch_lightning.utilities.argparse_utils import _gpus_arg_default
        >>> _gpus_arg_default("0")
        '0'
    """

    _MODULES = (
        "pytorch_lightning",
        "pytorch_lightning.utilities",
        "pytorch_lightning.utilities.argparse",
        "pytorch_lightning.utilities.argparse_utils",
    )

    def __enter__(self) -> pl_legacy_patch:
        """Add the missing modules."""
        self._added = [name for name in self._MODULES if name not in sys.modules]
        for name in self._added:
            module = ModuleType(name)
            module.__path__ = []
            sys.modules[name] = module
        self._placeholder_is_new: list[ModuleType] = []
        for name in self._MODULES[2:]:
            module = sys.modules[name]
            if not hasattr(module, "_gpus_arg_default"):
                module._gpus_arg_default = _same  # type: ignore[attr-defined]  # made here
                self._placeholder_is_new.append(module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove them again."""
        for module in self._placeholder_is_new:
            del module._gpus_arg_default
        for name in self._added:
            del sys.modules[name]


def _same(value: Any) -> Any:
    return value
