"""Seeds, and the state of every random number generator."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fulmen.utilities.lazy import is_installed
from fulmen.utilities.rank_zero import rank_prefixed_message, rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "collect_rng_states",
    "isolate_rng",
    "max_seed_value",
    "min_seed_value",
    "pl_worker_init_function",
    "reset_seed",
    "seed_everything",
    "set_rng_states",
]

min_seed_value = 0
max_seed_value = 2**32 - 1  # the range that numpy accepts

_SEED_VARIABLE = "PL_GLOBAL_SEED"
_WORKERS_VARIABLE = "PL_SEED_WORKERS"


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the generators of Python, NumPy and torch (all devices).

    The seed is also put into the environment variable `PL_GLOBAL_SEED`, for processes started later.

    Args:
        seed: The seed, 0 to 2**32 - 1; `None` takes `PL_GLOBAL_SEED`, or 0 with a warning.
        workers: Seed the worker processes of the Trainer's dataloaders too, each differently (`PL_SEED_WORKERS`).
        verbose: Log the seed on every call.

    Returns:
        The seed in use.

    Raises:
        ValueError: The seed is not an integer in that range.

    Example::

        seed_everything(42, workers=True)
    """
    seed = _default_seed() if seed is None else int(seed)
    if not min_seed_value <= seed <= max_seed_value:
        raise ValueError(
            f"The seed {seed} is not in bounds: NumPy accepts {min_seed_value} to {max_seed_value}."
            " Choose a seed in this range."
        )
    if verbose:
        rank_zero_info(rank_prefixed_message(f"Seed set to {seed}", _rank_to_show()), stacklevel=5)
    os.environ[_SEED_VARIABLE] = str(seed)
    os.environ[_WORKERS_VARIABLE] = str(int(workers))
    _seed_generators(torch_seed=seed, python_seed=seed, numpy_seed=seed)
    return seed


def _default_seed() -> int:
    text = os.environ.get(_SEED_VARIABLE)
    if text is None:
        rank_zero_warn(
            f"`seed_everything()` got no seed and `{_SEED_VARIABLE}` is not set, so the seed is 0. Pass a seed.",
            stacklevel=5,
        )
        return 0
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"Invalid seed: the environment variable `{_SEED_VARIABLE}` is {text!r}, not an integer."
            " Unset it, or pass a seed."
        ) from error


def _rank_to_show() -> int | None:
    return rank_zero_only.rank or None


def _seed_generators(*, torch_seed: int, python_seed: int, numpy_seed: int) -> None:
    random.seed(python_seed)
    if is_installed("numpy"):
        import numpy as np

        np.random.seed(numpy_seed)
    torch.manual_seed(torch_seed)  # all devices


def reset_seed() -> None:
    """Go back to the state right after the last `seed_everything`; nothing if there was none."""
    seed = os.environ.get(_SEED_VARIABLE)
    if seed is not None:
        workers = os.environ.get(_WORKERS_VARIABLE, "0")
        seed_everything(int(seed), workers=bool(int(workers)), verbose=False)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """Seed a dataloader worker so that its generators differ from those of every other worker and rank.

    For `DataLoader(worker_init_fn=...)`.

    Args:
        worker_id: Number of the worker.
        rank: Rank of the main process; default the rank of this process.
    """
    rank = rank_zero_only.rank if rank is None else rank
    base_seed = torch.initial_seed() - worker_id  # a DataLoader seeds its worker with base_seed + worker_id
    digest = hashlib.sha256(f"{base_seed}/{rank}/{worker_id}".encode()).digest()
    _seed_generators(
        torch_seed=int.from_bytes(digest[:8], "big"),
        python_seed=int.from_bytes(digest[8:16], "big"),
        numpy_seed=int.from_bytes(digest[16:20], "big"),
    )


def collect_rng_states(include_cuda: bool = True) -> dict[str, Any]:
    """Return the state of every random number generator of this process.

    The result is plain data (dictionaries, lists, numbers, strings, tensors), which `torch.load(weights_only=True)`
    reads. NumPy is left out while it is not imported, a CUDA or MPS device while it was not used: neither has drawn
    any number then.

    Args:
        include_cuda: Collect the generators of CUDA and MPS devices.

    Returns:
        A dictionary for `set_rng_states`.
    """
    version, python_state, next_gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(python_state, dtype=torch.int64), next_gauss],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached_gaussian = numpy.random.get_state()
        states["numpy"] = [name, torch.tensor(keys.tolist()), int(position), int(has_gauss), float(cached_gaussian)]
    if include_cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # in torch
        states["cuda"] = torch.cuda.get_rng_state_all()
    if include_cuda and torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Put back what `collect_rng_states` returned; also after a trip through a file, on whatever device it landed.

    Args:
        states: The states. Generators that are not in it stay as they are, devices that this machine lacks are skipped.
    """
    torch.set_rng_state(states["torch"].cpu())
    version, python_state, next_gauss = states["python"]
    random.setstate((version, tuple(python_state.tolist()), next_gauss))
    if "numpy" in states and is_installed("numpy"):
        import numpy as np

        name, keys, position, has_gauss, cached_gaussian = states["numpy"]
        np.random.set_state((name, np.array(keys.tolist(), dtype=np.uint32), position, has_gauss, cached_gaussian))
    if "cuda" in states and torch.cuda.is_available():
        for device_idx, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state.cpu(), device_idx)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"].cpu())


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Context in which random numbers may be drawn or seeds set without an effect on what comes after it.

    Args:
        include_cuda: Isolate the generators of CUDA and MPS devices too.

    Example::

        with isolate_rng():
            seed_everything(1)
            noise = torch.rand(3)
    """
    if is_installed("numpy"):
        import numpy  # noqa: F401 - so that its state is collected although the block may be the first to import it
    states = collect_rng_states(include_cuda)
    try:
        yield
    finally:
        set_rng_states(states)
