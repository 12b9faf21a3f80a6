"""Random numbers of processes that work on one batch together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fulmen.utilities.seed import collect_rng_states, set_rng_states

if TYPE_CHECKING:
    from fulmen.strategies.strategy import Strategy

__all__ = ["draw_alike", "drawing_as_first"]


def draw_alike(strategy: Strategy) -> None:
    """Let processes that get the same batches draw the same random numbers from now on, those of the first of them.

    Otherwise each would drop other activations of a layer that they have together. All processes must call it; it does
    nothing where each has batches of its own.

    Args:
        strategy: Knows which processes these are, and their device.
    """
    if strategy.data_parallel_size == strategy.world_size:
        return
    states = _states(strategy.root_device)
    _set_states(strategy.gather_shares(states)[strategy.data_parallel_rank], strategy.root_device)


@contextmanager
def drawing_as_first(strategy: Strategy) -> Iterator[None]:
    """Context in which all processes draw the random numbers of rank 0, e.g. for weights that they make in parts.

    Processes that had other numbers go on with theirs afterwards, those that had the same go on alike.

    Args:
        strategy: Knows the processes and their device; all of them must enter the context.
    """
    own = _states(strategy.root_device)
    first = strategy.broadcast(own)
    _set_states(first, strategy.root_device)
    yield
    if not torch.equal(own["torch"], first["torch"]):
        _set_states(own, strategy.root_device)


def _states(device: torch.device) -> dict[str, Any]:
    states = collect_rng_states(include_cuda=False)
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def _set_states(states: dict[str, Any], device: torch.device) -> None:
    set_rng_states(states)
    if "device" in states:
        torch.cuda.set_rng_state(states["device"].cpu(), device)
