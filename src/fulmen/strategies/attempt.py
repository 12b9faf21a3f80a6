"""Which attempt of an elastic job the processes belong to, as they agree among themselves.

torchrun's store outlives the processes that it serves, with all that those of earlier attempts have left there, e.g.
addresses where nobody listens any more. `TORCHELASTIC_RESTART_COUNT` does not tell attempts apart: each machine counts
for itself, and a machine that joins later begins at 0.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any

__all__ = ["agree_on_attempt", "store_outlives_processes"]


def store_outlives_processes() -> bool:
    """Tell whether torchrun's agent holds the store, so that processes of several attempts use it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def agree_on_attempt(store: Any, *, rank: int, world_size: int, what: str, wait: Callable[[], None]) -> str:
    """Return a name that all processes of this attempt have in common, and no other attempt has.

    Each rank calls with a word of its own, which rank 0 answers, and confirms the answer. A call that a dead process
    has left is answered as well, but never confirmed, so rank 0 goes on until the living one has called.

    Args:
        store: Where the ranks meet.
        rank: Number of this process.
        world_size: Number of processes.
        what: For what the name is used; each use is agreed on by itself.
        wait: Called between two looks; it sleeps a little, and raises when there is nothing to wait for any more.
    """
    place = f"fulmen/attempts/{what}"
    if rank == 0:
        attempt = secrets.token_hex(8)
        _answer_calls(store, place, attempt, world_size, wait)
        return attempt
    word = secrets.token_hex(8)
    store.set(f"{place}/call_of_{rank}", word)
    while not store.check([f"{place}/answer_to_{word}"]):
        wait()
    answer: str = store.get(f"{place}/answer_to_{word}").decode()
    store.set(f"{place}/{answer}/{rank}", "confirmed")
    return answer


def _answer_calls(store: Any, place: str, attempt: str, world_size: int, wait: Callable[[], None]) -> None:
    missing, answered = list(range(1, world_size)), dict[int, str]()
    while missing:
        for rank in missing:
            key = f"{place}/call_of_{rank}"
            word = store.get(key).decode() if store.check([key]) else None
            if word is not None and answered.get(rank) != word:
                store.set(f"{place}/answer_to_{word}", attempt)
                answered[rank] = word
        missing = [rank for rank in missing if not store.check([f"{place}/{attempt}/{rank}"])]
        if missing:
            wait()
