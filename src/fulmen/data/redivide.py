"""Going on inside an epoch with other batches than it began with: on another number of ranks, or of another size.

A position counts batches, but what has been seen are samples. From both follows which batch a run would be at that has
had the new batches from the beginning, and that is where the epoch goes on. If a batch would have to be split for that,
what is left is divided from the very next sample on, and numbered so that the last batch has its usual number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.rebuild import rebuild
from fulmen.data.rng import raw_rng_states, same_rng_states
from fulmen.data.sampler import (
    BatchShard,
    DistributedSamplerWrapper,
    TrainBatchShard,
    TrainShard,
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
)
from fulmen.data.shard import Shard, order_of
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.utilities.seed import isolate_rng

__all__ = ["Opening", "global_batch_size", "redivided"]


_OF_ITEMS = ("checksum", "drawn", "part", "pending", "pending_ids")  # about single items of a rank


@dataclass(slots=True)
class Opening:
    """Where the passes of an epoch begin: at its first sample, unless the epoch was divided anew.

    Attributes:
        batch: Index of the first batch that the loaders give.
        passed: For each loader, how many of its items they leave out for that; empty if none.
    """

    batch: int = 0
    passed: list[int] = field(default_factory=list)

    def apply(self, loader: CombinedLoader) -> None:
        """Let the next passes begin there.

        Args:
            loader: The loaders; a plain one is replaced by one that can begin anywhere.
        """
        if self.passed:
            loader.flattened = [_able_to_start_anywhere(each) for each in loader.flattened]
            for each, number in zip(loader.flattened, self.passed, strict=True):
                _start_at(each, number)

    def forget(self, loader: CombinedLoader, index: int | None = None) -> None:
        """Let later passes be whole again.

        Args:
            loader: The loaders.
            index: Only of this one, which starts again inside of the epoch.
        """
        if not self.passed:
            return
        if index is not None:
            _start_at(loader.flattened[index], 0)
            self.passed[index] = 0
            return
        for each in loader.flattened:
            _start_at(each, 0)
        self.batch, self.passed = 0, []

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"batch": self.batch, "passed": list(self.passed)}


def redivided(
    loader: CombinedLoader, state: dict[str, Any], *, num_batches: int | float, shard: Shard
) -> tuple[dict[str, Any], Opening]:
    """Return where an interrupted epoch goes on with the batches of now, and let its loaders begin there.

    Args:
        loader: The loaders of now.
        state: What `TrainBatches.state_dict` returned inside of the epoch, maybe with other batches.
        num_batches: Batches of an epoch of now.
        shard: Which part of the data this process reads now.

    Returns:
        The state as if it had been written with the batches of now, and where the passes begin.
    """
    opening = Opening(**state.get("opening", {}))
    replicas_then = state.get("num_replicas", shard.num_replicas)
    sizes_then = state.get("batch_size") or [None] * len(loader.flattened)
    shares = [
        _items_of_a_batch(each, size, replicas_then, shard.num_replicas)
        for each, size in zip(loader.flattened, sizes_then, strict=False)
    ]
    is_same_size = all(then == now for then, now in shares)
    if is_same_size and replicas_then == shard.num_replicas:
        opening.apply(loader)
        return state, opening
    done, position = state["position"]["batches"], state["position"]
    if is_same_size:
        opening.apply(loader)
    elif done >= state.get("num_batches", inf):
        position, opening = {**position, "batches": int(num_batches)}, Opening()
    else:
        position, opening = _moved(loader, position, opening, shares)
        then, now = shares[0]
        rank_zero_info(
            f"The epoch was interrupted after {done} batches of {then}, by {replicas_then} process(es). It goes on with"
            f" batches of {now}, by {shard.num_replicas} process(es), as batch {position['batches']} of {num_batches}."
        )
    if replicas_then != shard.num_replicas:
        _warn_about_unknown_parts(loader.flattened, replicas_then, shard.num_replicas, position["batches"])
    loaders = [
        _of_other_items(_begun_alike(each, now, replicas_then), shard, replicas_then)
        for each, now in zip(position.get("loaders", []), loader.flattened, strict=False)
    ]
    sizes = [global_batch_size(each) for each in loader.flattened]
    now_state = {"num_replicas": shard.num_replicas, "batch_size": sizes, "num_batches": num_batches}
    return {
        **state,
        **now_state,
        "position": {**position, "loaders": loaders},
        "opening": opening.state_dict(),
    }, opening


def _moved(
    loader: CombinedLoader, position: dict[str, Any], opening: Opening, shares: list[tuple[int, int]]
) -> tuple[dict[str, Any], Opening]:
    """Count the position of each loader in batches of now, or let it begin after what was seen."""
    states = position.get("loaders") or [{"consumed": position["batches"] - opening.batch}] * len(shares)
    passed = opening.passed or [0] * len(shares)
    seen = [  # of one that starts again next, its new pass
        0 if state.get("is_over") else number + state["consumed"] * then
        for number, state, (then, _) in zip(passed, states, shares, strict=True)
    ]
    consumed = [number // now for number, (_, now) in zip(seen, shares, strict=True)]
    repeated = max(number % now for number, (_, now) in zip(seen, shares, strict=True))
    is_first = _in_first_pass(position.get("rows"), len(shares))
    opening = Opening()
    if repeated and "loaders" in position and all(_can_start_anywhere(each) for each in loader.flattened):
        opening, number_of_all = Opening(passed=seen), loader.total_batches()
        opening.apply(loader)
        left = [length for length, each in zip(loader.lengths(), is_first, strict=True) if each]
        rest = (min if loader.mode == "min_size" else max)(left, default=0)
        opening.batch = batch = int(number_of_all - rest)
        consumed = [0] * len(consumed)
    else:
        batch = min([number for number, each in zip(consumed, is_first, strict=True) if each] or consumed)
        if repeated:
            _warn_repeated(repeated)
    consumed = [s["consumed"] if s.get("is_over") else number for s, number in zip(states, consumed, strict=True)]
    moved = [_with_consumed(*each) for each in zip(position.get("loaders", []), consumed, strict=False)]
    rows = position.get("rows")
    if rows is not None:
        rows = {**rows, "first_rows": [batch - number for number in consumed]}
    return {**position, "batches": batch, "loaders": moved, "rows": rows}, opening


def _in_first_pass(rows: dict[str, Any] | None, number: int) -> list[bool]:
    """For each loader, whether it goes on inside the pass with which it began the epoch."""
    if rows is None:
        return [True] * number
    has_ended = zip(rows["has_ended"], rows["ended_at"], rows.get("is_exhausted", [False] * number), strict=True)
    return [not ended and ended_at is None and not is_exhausted for ended, ended_at, is_exhausted in has_ended]


def _with_consumed(state: dict[str, Any], consumed: int) -> dict[str, Any]:
    """The position of a loader at another batch of the same pass."""
    if state.get("is_over") or state["consumed"] == consumed:
        return state
    moved = {**state, "consumed": consumed}
    for part in ("pass", "replay"):
        if state.get(part) is not None:
            moved[part] = {**state[part], "consumed": consumed}
    if state.get("kind") == "state":
        rank_zero_warn(_HAS_OWN_STATE)
        return {"kind": "", "consumed": consumed, "is_over": False}
    return moved


def _begun_alike(state: dict[str, Any], loader: Any, replicas_then: int) -> dict[str, Any]:
    """Let a sampler draw from the random numbers that it drew from, wherever the loader of now begins it.

    One process begins it when it opens the loader, several when the first item is asked for.
    """
    begun = state.get("pass") or {}
    if not begun.get("at_iter") or not begun.get("at_draw"):
        return state
    order = order_of(loader)
    if order is None and replicas_then > 1 and _replicas_of_sampler(loader) is None:
        return {**state, "pass": {**begun, "at_iter": [begun["at_draw"]]}}
    if order is not None and replicas_then == 1 and _draws_when_begun(order.source):
        return {**state, "pass": {**begun, "at_draw": begun["at_iter"][-1]}}
    return state


def _draws_when_begun(sampler: Iterable[Any]) -> bool:
    """Whether a sampler draws random numbers before its first item is asked for."""
    with isolate_rng(include_cuda=False):
        before = raw_rng_states()
        iter(sampler)
        return not same_rng_states(before, raw_rng_states())


def _of_other_items(state: dict[str, Any], shard: Shard, replicas_then: int) -> dict[str, Any]:
    """The position of a loader without what it tells about single items, which are others on each rank now."""
    if "pass" in state:
        state = {**state, "pass": {name: part for name, part in state["pass"].items() if name not in _OF_ITEMS}}
    workers = state.get("workers")
    if workers is not None and shard.rank >= replicas_then:  # these are those of rank 0
        seed = (workers["base_seed"] + shard.rank * _SEED_STEP) % 2**63
        state = {**state, "workers": {"base_seed": seed, "first_id": 0, "states": [None] * len(workers["states"])}}
    return state


# ---- how loaders count


def global_batch_size(loader: Any) -> int | None:
    """Return the number of samples in a batch of all ranks together, `None` where it is not known.

    Of an iterable dataset it is that of this rank: only the dataset knows how it is divided.

    Args:
        loader: Any loader.
    """
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not isinstance(size, int):
        return None
    return size * (_replicas_of_sampler(loader) or 1)


def _replicas_of_sampler(loader: Any) -> int | None:
    """Among how many ranks the loader's sampler divides its samples: ours, or one of the user's."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        replicas = getattr(getattr(sampler, "shard", sampler), "num_replicas", None)
        if isinstance(replicas, int):
            return replicas
    return None


def _is_iterable(loader: Any) -> bool:
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def _items_of_a_batch(loader: Any, size_then: int | None, replicas_then: int, replicas: int) -> tuple[int, int]:
    """How many items of a loader were in a batch of all ranks, and how many are: samples, or batches of a sampler."""
    size = global_batch_size(loader)
    gives_batches = _gives_own_batches(loader)
    if size is None or size_then is None:
        return (replicas_then, replicas) if gives_batches else (1, 1)
    if gives_batches and size_then * replicas == size * replicas_then:
        return replicas_then, replicas
    return (size_then * replicas_then, size * replicas) if _is_iterable(loader) else (size_then, size)


def _gives_own_batches(loader: Any) -> bool:
    """Whether whole batches of the user's own batch sampler are divided among ranks."""
    inner = getattr(loader, "batch_sampler", None)
    if isinstance(inner, BatchShard):
        return True
    is_own = inner is not None and type(inner) is not BatchSampler and getattr(loader, "batch_size", None) is None
    return is_own and _replicas_of_sampler(loader) is None


# ---- beginning at any item


def _can_start_anywhere(loader: Any) -> bool:
    if order_of(loader) is not None:
        return True
    if not isinstance(loader, DataLoader) or _is_iterable(loader) or _replicas_of_sampler(loader) is not None:
        return False
    return not callable(getattr(loader, "state_dict", None))  # which keeps a position of its own


def _able_to_start_anywhere(loader: Any) -> Any:
    """The loader, or one that gives the same and whose passes can begin at any item."""
    if order_of(loader) is not None:
        return loader
    shard, dataset, batches = Shard(0, 1), loader.dataset, loader.batch_sampler
    if batches is None:
        return rebuild(loader, sampler=TrainShard(loader.sampler, dataset, shard))
    if type(batches) is not BatchSampler:
        return rebuild(loader, batch_sampler=TrainBatchShard(batches, shard))
    size, drop_last = batches.batch_size, batches.drop_last
    sampler = TrainShard(batches.sampler, dataset, shard, batch_size=size, drop_last=drop_last)
    if loader.batch_size is not None:
        return rebuild(loader, sampler=sampler)
    return rebuild(loader, batch_sampler=BatchSampler(sampler, size, drop_last))


def _start_at(loader: Any, number: int) -> None:
    order = order_of(loader)
    if order is not None:
        order.start_at(number)


# ---- what cannot be known


_SEED_STEP = 0x9E3779B97F4A7C15  # seeds of workers are consecutive numbers: far from those of other ranks
_HAS_OWN_STATE = (
    "An epoch goes on with batches of another size. The loader tells its own position, which is only valid for batches"
    " as they were, so batches are only counted: some samples of this epoch may be seen twice and others not at all."
    " Choose a batch size and a number of processes with the same product as before, or use a plain `DataLoader`."
)
_INTERLEAVED = (DistributedSampler, DistributedSamplerWrapper, UnrepeatedDistributedSampler)


def _warn_repeated(number: int) -> None:
    rank_zero_warn(
        "An epoch goes on with batches of another size, and what was seen is no whole number of them. The loader cannot"
        f" begin inside of a batch, so {number} samples of this epoch are seen twice. Choose a batch size and a number"
        " of processes with the same product as before if each has to be seen once."
    )


def _warn_about_unknown_parts(loaders: Sequence[Any], replicas_then: int, replicas: int, batch: int) -> None:
    for loader in loaders:
        dataset, sampler = getattr(loader, "dataset", None), _sampler_of_user(loader)
        if _is_iterable(loader) or getattr(loader, "fulmen_sharded", False):
            who = f"`{type(dataset if _is_iterable(loader) else loader).__name__}`, which divides itself"
        elif sampler is not None and type(sampler) not in (*_INTERLEAVED, UnrepeatedDistributedSamplerWrapper):
            who = f"`{type(sampler).__name__}`, a sampler of your own that divides the samples"
        else:
            continue
        rank_zero_warn(
            f"An epoch that {replicas_then} process(es) have begun goes on on {replicas}, with {who} among processes."
            f" Each of them passes over the first {batch} batches of its new part. If process r of W has the samples r,"
            " r + W, r + 2 W, ... each is seen once in this epoch; otherwise some are seen twice and others not at all."
            f" Resume with {replicas_then} process(es), or with a map-style dataset and no such sampler, which the"
            " Trainer divides."
        )


def _sampler_of_user(loader: Any) -> Any:
    """The sampler that divides samples among ranks and is not ours."""
    if order_of(loader) is not None:
        return None
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None)):
        if isinstance(getattr(sampler, "num_replicas", None), int):
            return sampler
    return None
