"""What the loggers of trackers have in common: their package, their checkpoints."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field
from typing import Any, Literal

from fulmen.utilities.files import is_local, local_path
from fulmen.utilities.lazy import is_installed, require

__all__ = ["CheckpointFile", "CheckpointUploads", "check_installed"]


def check_installed(package: str, *, extra: str, for_: str) -> None:
    """Raise what `require` would raise, without importing the package if it is there.

    Args:
        package: Name of the module.
        extra: The extra of `fulmen` that installs it.
        for_: The class that needs it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if not is_installed(package):
        require(package, extra=extra, for_=for_)


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint to upload."""

    path: str
    score: float | None  # value of the monitored metric
    aliases: list[str]  # `latest` and `best`, where they are true
    metadata: dict[str, Any] = field(default_factory=dict)  # how it came about, as plain data


class CheckpointUploads:
    """Says which files of a `ModelCheckpoint` a tracker has not got yet.

    Args:
        log_model: False: none. True: what is left when training has ended, all of them at once; at each save if the
            callback keeps all (`save_top_k=-1`). `"all"`: every one, when it is saved.
        owner: Class of the logger, for the error.

    Raises:
        ValueError: `log_model` is something else.
    """

    def __init__(self, log_model: bool | Literal["all"], owner: str) -> None:
        if log_model not in (True, False, "all"):
            raise ValueError(
                f"`{owner}(log_model={log_model!r})` says not when checkpoints are uploaded. Choose False (never), True"
                " (when training has ended) or 'all' (at each save)."
            )
        self.log_model = log_model
        self._uploaded: dict[str, float] = {}  # path to time of its last change
        self._callback: Any = None

    def due(self, callback: Any) -> list[CheckpointFile]:
        """Note a callback that has saved, and return what goes up now.

        Args:
            callback: The `ModelCheckpoint`; only a weak reference is kept.
        """
        if self.log_model is False:
            return []
        self._callback = callback if isinstance(callback, weakref.ProxyTypes) else weakref.proxy(callback)
        if self.log_model == "all" or callback.save_top_k == -1:
            return self._new(callback)
        return []

    def rest(self) -> list[CheckpointFile]:
        """Return what goes up at the end of the run."""
        try:
            return [] if self._callback is None else self._new(self._callback)
        except ReferenceError:  # the Trainer is gone
            return []

    def _new(self, callback: Any) -> list[CheckpointFile]:
        best, last = str(callback.best_model_path), str(callback.last_model_path)
        scores = {str(path): _number(score) for path, score in callback.best_k_models.items()}
        scores.setdefault(best, _number(callback.best_model_score))
        scores.setdefault(last, _number(callback.current_score))
        changed = {path: _changed_at(path) for path in scores if path}
        latest = max((path for path, time in changed.items() if time is not None), key=lambda p: changed[p], default="")  # type: ignore[arg-type, return-value]  # None are left out
        files = []
        for path, time in sorted(changed.items(), key=lambda item: item[1] or 0.0):
            if time is None or self._uploaded.get(path) == time:  # not written yet, or known
                continue
            self._uploaded[path] = time
            aliases = [name for name, is_it in (("latest", path == latest), ("best", path == best)) if is_it]
            files.append(CheckpointFile(path, scores[path], aliases, _metadata(callback, path, scores[path])))
        return files

    def __getstate__(self) -> dict[str, Any]:
        """All but the callback, so that the logger can go to other processes."""
        return {**self.__dict__, "_callback": None}


def _changed_at(path: str) -> float | None:
    if not is_local(path) or not os.path.exists(local_path(path)):
        return None
    local = local_path(path)
    inside = [os.path.join(folder, name) for folder, _, names in os.walk(local) for name in names]  # a sharded one
    return max(os.stat(each).st_mtime_ns for each in [local, *inside]) / 1e9


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _metadata(callback: Any, path: str, score: float | None) -> dict[str, Any]:
    monitor = callback.monitor
    return {
        "original_filename": os.path.basename(path),
        "monitor": monitor,
        "mode": callback.mode,
        "save_top_k": callback.save_top_k,
        **({} if monitor is None or score is None else {"score": score}),
    }
