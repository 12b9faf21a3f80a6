"""torch's process-wide switches for reproducibility and speed."""

from __future__ import annotations

import os
from typing import Literal

import torch

from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["set_torch_flags"]


def set_torch_flags(*, deterministic: bool | Literal["warn"] | None = None, benchmark: bool | None = None) -> None:
    """Set how torch chooses its algorithms, for this process.

    Args:
        deterministic: True: only algorithms that give the same result each time, an operation without one raises;
            "warn": there it warns; False: any; `None`: leave it as it is.
        benchmark: Let cuDNN try which algorithm is fastest. `None`: off if `deterministic`, else leave it as it is.

    Raises:
        ValueError: `deterministic` is none of these.
    """
    if deterministic not in (None, True, False, "warn"):
        raise ValueError(
            f"`deterministic={deterministic!r}` is not known."
            " Pass True (raise where an operation cannot be), 'warn', False, or None (leave torch's setting)."
        )
    if deterministic and benchmark:
        rank_zero_warn(
            "`deterministic` and `benchmark=True` contradict each other: cuDNN may choose another algorithm in the next"
            " run. Set `benchmark=False` for results that can be repeated."
        )
    if deterministic and benchmark is None:
        benchmark = False
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark
    if deterministic is None:
        return
    torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        # cuBLAS repeats its results only with a workspace of fixed size; see torch's notes on reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
