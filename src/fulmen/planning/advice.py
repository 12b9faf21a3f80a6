"""What would make a module fit that does not."""

from __future__ import annotations

from collections.abc import Iterator

from fulmen.planning.plan import Memory
from fulmen.planning.sizes import gib_text

__all__ = ["advice_for"]

_MODEL = ("weights", "gradients", "optimizer state")


def advice_for(
    memory: dict[str, Memory], *, too_much: int, batch_size: int | None, num_ranks: int, is_sharded: bool
) -> Iterator[str]:
    """Say what would help, with the memory that it frees, the most first where it can be told.

    Args:
        memory: Of one rank.
        too_much: How many bytes do not fit.
        batch_size: Samples in a batch of one rank.
        num_ranks: How many ranks there are.
        is_sharded: Whether ranks hold parts of the weights only.
    """
    model = sum(memory[role].at_peak for role in _MODEL)
    activations = memory["activations"].at_peak
    if not is_sharded and num_ranks > 1:
        freed = model * (num_ranks - 1) // num_ranks
        yield (
            f"shards: `--strategy fsdp` divides {gib_text(model)} of weights, gradients and optimizer state among"
            f" {num_ranks:,} ranks, and frees up to {gib_text(freed)}"
        )
    elif not is_sharded:
        yield f"several devices: `--strategy fsdp` divides {gib_text(model)} among them"
    elif model > too_much:
        times = model / (model - too_much)
        yield f"more ranks: with {times:.2g} times as many, weights, gradients and optimizer state shrink enough"
    if activations:
        yield (
            f"activation checkpointing, where it is not used yet: it computes most of {gib_text(activations)} of"
            " activations again instead of keeping it"
        )
    if batch_size is not None and batch_size > 1 and activations:
        smaller = int(batch_size * (1 - too_much / activations)) if activations > too_much else 0
        if smaller >= 1:
            yield f"a smaller batch: {smaller:,} in place of {batch_size:,} per rank would fit"
        else:
            yield (
                "a smaller batch, which alone is not enough: of a batch of 1 about"
                f" {gib_text(activations / batch_size)} of activations would be left"
            )
