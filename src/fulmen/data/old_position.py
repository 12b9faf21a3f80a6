"""Positions that the first version wrote: the loaders are opened anew, and what was consumed is loaded and dropped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import set_rng_states

__all__ = ["begin_old_position", "restore_old_generators"]


def begin_old_position(state: dict[str, Any], loaders: list[Any], *, goes_on: bool) -> None:
    """Set generators to where an epoch began, if an old position tells it, or to where they were when it was saved.

    Args:
        state: The old position; one that has only a number of batches changes nothing.
        loaders: The loaders, not opened yet.
        goes_on: The epoch goes on inside.
    """
    position = state["position"]
    restore_old_generators(state, loaders)
    if not goes_on:
        drawn = position.get("drawn_before", 0) + position["batches"] + position["is_ahead"]
    else:
        drawn = position.get("drawn_before", 0)
    if len(loaders) == 1 and isinstance(loaders[0], Iterator) and drawn:
        next(islice(loaders[0], drawn - 1, None), None)
    if goes_on and position.get("rng_at_start") is not None:
        restore_old_generators({"generators": position["generators_at_start"]}, loaders)
        set_rng_states(position["rng_at_start"])


def restore_old_generators(state: dict[str, Any], loaders: list[Any]) -> None:
    """Put back the generators of loaders and samplers.

    Args:
        state: An old position or evaluation state; without generators, nothing happens.
        loaders: The loaders.
    """
    states = state.get("generators", [])
    generators = list(_generators(loaders))
    if not states:
        return
    if len(generators) != len(states):
        rank_zero_warn(
            f"The loaders hold {len(generators)} `torch.Generator`s, but the checkpoint has states of {len(states)},"
            " so their order of samples starts anew. Make the loaders as they were made in the run that is resumed."
        )
        return
    for generator, each in zip(generators, states, strict=True):
        generator.set_state(each.cpu())


def _generators(loaders: list[Any]) -> Iterator[torch.Generator]:
    seen = set()
    for loader in loaders:
        sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        for owner in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and id(generator) not in seen:
                seen.add(id(generator))
                yield generator
