"""Which files a checkpoint callback has written, as loggers of other packages ask for them."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

__all__ = ["scan_checkpoints"]


def scan_checkpoints(
    checkpoint_callback: Any, logged_model_time: dict[str, float]
) -> list[tuple[float, str, Tensor | float | None, str]]:
    """List the files of a `ModelCheckpoint` that are new or were written again.

    Args:
        checkpoint_callback: The callback.
        logged_model_time: Path to time of the last change, of the files that are known.

    Returns:
        Time of the last change, path, score and `"latest"`, `"best"` or `"best_k"` of each, the oldest first.
    """
    found: dict[str, tuple[Any, str]] = {}
    for kind, path, score in (
        ("latest", "last_model_path", "current_score"),
        ("best", "best_model_path", "best_model_score"),
    ):
        if hasattr(checkpoint_callback, path) and hasattr(checkpoint_callback, score):
            found[str(getattr(checkpoint_callback, path))] = (getattr(checkpoint_callback, score), kind)
    for path, score in getattr(checkpoint_callback, "best_k_models", {}).items():
        found[str(path)] = (score, "best_k")
    dated = [(os.path.getmtime(path), path, *what) for path, what in found.items() if os.path.isfile(path)]
    new = (entry for entry in dated if logged_model_time.get(entry[1], float("-inf")) < entry[0])
    return sorted(new, key=lambda entry: entry[0])
