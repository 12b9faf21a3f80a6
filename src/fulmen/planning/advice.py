"""What would make a module fit that does not."""

from __future__ import annotations

from collections.abc import Iterator

from fulmen.planning.plan import Memory
from fulmen.planning.sizes import gib_text

__all__ = ["advice_for"]

_MODEL = ("weights", "gradients", "optimizer state")
_WORTH_SAYING = 0.1  # of what is too much: what frees less is no help


def advice_for(
    memory: dict[str, Memory],
    *,
    too_much: int,
    batch_size: int | None,
    num_ranks: int,
    is_sharded: bool,
    phase: str,
) -> list[str]:
    """Say what would help against what is too much, with the memory that it concerns.

    Args:
        memory: Of one rank.
        too_much: How many bytes do not fit.
        batch_size: Samples in a batch of one rank.
        num_ranks: How many ranks there are.
        is_sharded: Whether ranks hold parts of the weights only.
        phase: When most is held.
    """
    held = {role: size.at_peak for role, size in memory.items()}
    worth = _WORTH_SAYING * too_much
    found = list(_on_weights(sum(held[role] for role in _MODEL), too_much, num_ranks, is_sharded))
    if is_sharded and held["communication"] >= worth:
        found.append(
            f"smaller units: {gib_text(held['communication'])} is whole at a time to be exchanged; name the blocks of"
            " the module in the strategy's `auto_wrap_policy`, or shard them one by one"
        )
    if held["activations"] >= worth:
        found.extend(_on_activations(held["activations"], too_much, batch_size))
    if phase == "optimizer step" and held["temporaries"] >= worth:
        found.append(
            "an optimizer with `fused=True` or `foreach=False`: this one takes"
            f" {gib_text(held['temporaries'])} for its work"
        )
    return found or [f"a device with {gib_text(sum(held.values()))} and more"]


def _on_weights(model: int, too_much: int, num_ranks: int, is_sharded: bool) -> Iterator[str]:
    if is_sharded:
        if model > too_much:
            times = model / (model - too_much)
            yield f"more ranks: with {times:.2g} times as many, weights, gradients and optimizer state shrink enough"
        return
    freed = model * (num_ranks - 1) // num_ranks
    if num_ranks > 1 and freed >= _WORTH_SAYING * too_much:
        yield (
            f"shards: `--strategy fsdp` divides {gib_text(model)} of weights, gradients and optimizer state among"
            f" {num_ranks:,} ranks, and frees up to {gib_text(freed)}"
        )
    elif num_ranks == 1 and model >= _WORTH_SAYING * too_much:
        yield f"several devices: `--strategy fsdp` divides {gib_text(model)} among them"


def _on_activations(activations: int, too_much: int, batch_size: int | None) -> Iterator[str]:
    yield (
        f"activation checkpointing, where it is not used yet: it computes most of {gib_text(activations)} of"
        " activations again instead of keeping it"
    )
    if batch_size is None or batch_size == 1:
        return
    smaller = int(batch_size * (1 - too_much / activations)) if activations > too_much else 0
    if smaller >= 1:
        yield f"a smaller batch: {smaller:,} in place of {batch_size:,} per rank would fit"
    else:
        yield (
            "a smaller batch, which alone is not enough: of a batch of 1 about"
            f" {gib_text(activations / batch_size)} of activations would be left"
        )
