"""Snapshots of the generators of a process."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fulmen.data.rng import raw_rng_states, same_rng_states


def test_two_snapshots_of_one_state_are_the_same_wherever_they_lie_in_memory() -> None:
    kept = [raw_rng_states() for _ in range(5)]

    assert all(same_rng_states(kept[0], each) for each in kept)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand, np.random.randn])
def test_a_draw_from_any_generator_is_seen(draw) -> None:
    before = raw_rng_states()
    draw()

    assert not same_rng_states(before, raw_rng_states())
