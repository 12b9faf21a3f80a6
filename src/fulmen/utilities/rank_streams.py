"""Random numbers of ranks that there were not before."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fulmen.utilities.seed import collect_rng_states, isolate_rng

__all__ = ["streams_of_new_rank", "with_streams_of_new_rank"]


def streams_of_new_rank(by_rank: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Return the random state of a rank that is new: always the same one, and another than that of any other rank.

    But a generator that was alike on several ranks is so on the new ones, too: a sampler may rely on it.

    Args:
        by_rank: What `collect_rng_states` returned on each of the ranks that there were.
        rank: The new rank.
    """
    first = by_rank[0]
    digest = hashlib.sha256(f"rank {rank}".encode() + bytes(first["torch"].tolist())).digest()
    torch_seed, python_seed, numpy_seed = (int.from_bytes(digest[i : i + 4], "big") for i in (0, 8, 16))
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(torch_seed)  # not that of the devices
        random.seed(python_seed)
        if "numpy" in first and "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(numpy_seed)
        streams = collect_rng_states(include_cuda=False)
    if "cuda" in first and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        streams["cuda"] = [torch.Generator(f"cuda:{i}").manual_seed(torch_seed).get_state() for i in devices]
    for name, state in first.items():
        if len(by_rank) > 1 and all(_is_same(state, each.get(name)) for each in by_rank[1:]):
            streams[name] = state
    return {name: state for name, state in streams.items() if name in first}


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_is_same, a, b))
    return bool(a == b)


def with_streams_of_new_rank(by_rank: Sequence[Any], rank: int) -> Any:
    """Return what rank 0 has, with the streams of a new rank in the place of each random state inside.

    Args:
        by_rank: What each of the ranks that there were has: plain data with the same layout.
        rank: The new rank.
    """
    first = by_rank[0]
    if isinstance(first, dict):
        if {"torch", "python"} <= first.keys():
            return streams_of_new_rank([each for each in by_rank if isinstance(each, dict)], rank)
        others = [each for each in by_rank if isinstance(each, dict)]
        return {key: with_streams_of_new_rank([each[key] for each in others if key in each], rank) for key in first}
    if isinstance(first, (list, tuple)):
        alike = [each for each in by_rank if isinstance(each, (list, tuple)) and len(each) == len(first)]
        return type(first)(with_streams_of_new_rank(items, rank) for items in zip(*alike, strict=True))
    return first
