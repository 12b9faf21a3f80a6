"""An interrupted epoch goes on with other batches: on other numbers of ranks, or of other sizes."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import TrainBatches
from fulmen.engine.loaders import prepare_train_loaders
from tests.data.fake_ranks import FakeRanks, run_as_ranks

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader
IterableDataset: Any = torch.utils.data.IterableDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*shuffling enabled", "ignore:.*does not have many workers")


class Groups(BatchSampler):
    """A batch sampler of the user's own: neighbors together, in random order."""

    def __init__(self, length: int, size: int) -> None:
        super().__init__(range(length), size, drop_last=False)
        self.groups = [list(range(start, min(start + size, length))) for start in range(0, length, size)]

    def __iter__(self) -> Any:
        yield from (self.groups[i] for i in torch.randperm(len(self.groups)).tolist())


class EarlyGroups(Groups):
    """The same, but it draws before its first batch is asked for."""

    def __iter__(self) -> Any:
        return iter(list(super().__iter__()))


def make_loader(kind: str, length: int, size: int, ranks: FakeRanks) -> Any:
    data = range(length)
    if kind in ("own batches", "own early batches"):
        return DataLoader(data, batch_sampler=(Groups if kind == "own batches" else EarlyGroups)(length, size))
    if kind == "torch batch sampler":
        return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), size, False))
    if kind == "user's distributed sampler":
        sampler: Any = DistributedSampler(data, ranks.world_size, ranks.global_rank, seed=3)  # type: ignore[arg-type]  # as above
        return DataLoader(data, size, sampler=sampler)
    generator = torch.Generator().manual_seed(5) if kind == "own generator" else None
    return DataLoader(data, size, shuffle=kind != "in order", generator=generator, drop_last=kind == "drop last")


def open_batches(loader: Any, ranks: FakeRanks, mode: str = "max_size_cycle", limit: float = 1.0) -> TrainBatches:
    combined = CombinedLoader(loader, mode)
    prepare_train_loaders(combined, overfit=False, ranks=ranks)
    return TrainBatches(combined, limit=int(limit * combined.total_batches()), ranks=ranks)


class Interruption:
    """An epoch on some ranks that ends after a number of batches: what was seen by then, and the positions."""

    def __init__(
        self, make: Any, world_size: int, stop: int | None, states: list[Any] | None = None, peers: int = 1
    ) -> None:
        self.make, self.stop, self.states = make, stop, states
        seeds = [11 * (rank // peers) + (states is None) for rank in range(world_size)]
        by_rank = run_as_ranks(self._run, world_size, seeds=seeds, peers=peers)
        self.has_equal_peers = all(_plain(each) == _plain(by_rank[i - i % peers]) for i, each in enumerate(by_rank))
        by_rank = by_rank[::peers]
        self.seen = [batch for each in by_rank for batch in each["batches"]]
        self.positions = [each["state"] for each in by_rank]
        self.indices = by_rank[0]["indices"]
        self.num_batches = by_rank[0]["num"]
        self.later = [sample for each in by_rank for sample in each["later"]]
        self.weights = [each["weight"] for each in by_rank]

    def _run(self, ranks: FakeRanks) -> dict[str, Any]:
        batches: TrainBatches = self.make(ranks)
        batches.set_epoch(0)
        if self.states is not None:
            share = ranks.distributed_sampler_kwargs["rank"]
            batches.load_state_dict(self.states[min(share, len(self.states) - 1)])
        batches.set_epoch(0)
        weight, size = batches.last_weight, batches.last_size
        seen, indices = [], []
        for batch, batch_idx, is_last in batches:
            kept = batch if not (is_last and size == 0) else torch.tensor([], dtype=torch.long)
            seen.append(kept.tolist() if isinstance(kept, torch.Tensor) else kept)
            indices.append(batch_idx)
            if batch_idx + 1 == self.stop:
                break
        buffer = io.BytesIO()
        torch.save(batches.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        later: list[int] = []
        if self.stop is None:
            batches.set_epoch(1)
            size = batches.last_size
            later = [i for batch, _, last in batches if not (last and size == 0) for i in _flat(batch)]
        batches.close()
        return {
            "batches": seen, "indices": indices, "state": state, "num": batches.num_batches, "later": later,
            "weight": weight,
        }  # fmt: skip


def _flat(batch: Any) -> list[int]:
    parts = batch.values() if isinstance(batch, dict) else [batch]
    return [int(i) for part in parts if part is not None for i in part]


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "state"}


def samples(batches: list[Any]) -> list[int]:
    return sorted(i for batch in batches for i in batch)


KINDS = ["in order", "shuffle", "own generator", "drop last", "torch batch sampler", "own batches", "own early batches"]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    length=st.integers(1, 60),
    old=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    new=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    data=st.data(),
)
def test_each_sample_is_seen_once_and_the_last_batch_has_its_usual_number(
    kind: str, length: int, old: tuple[int, int], new: tuple[int, int], data: st.DataObject
) -> None:
    (old_world, old_size), (new_world, new_size) = old, new
    if kind.endswith("batches"):
        new_size = old_size  # another size makes other batches
    if kind == "drop last":
        assume(length >= max(old_world * old_size, new_world * new_size))

    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader(kind, length, size, ranks), ranks)

    whole = Interruption(make(old_size), old_world, None)
    if whole.num_batches < 2:
        return
    before = Interruption(make(old_size), old_world, data.draw(st.integers(1, int(whole.num_batches) - 1)))
    after = Interruption(make(new_size), new_world, None, before.positions)
    seen = samples(before.seen + after.seen)

    if kind == "drop last":
        assert len(seen) == len(set(seen)) > length - new_world * new_size
    else:
        assert seen == list(range(length))
        assert sorted(after.later) == list(range(length))
    if after.indices:
        assert after.indices == list(range(int(after.num_batches) - len(after.indices), int(after.num_batches)))
        assert sum(after.weights) == pytest.approx(new_world)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["in order", "shuffle", "own generator", "own batches"]),
    length=st.integers(1, 40),
    size=st.integers(1, 4),
    old=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    new=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
def test_ranks_that_work_on_one_batch_see_the_same_and_all_shares_together_each_sample_once(
    kind: str, length: int, size: int, old: tuple[int, int], new: tuple[int, int], data: st.DataObject
) -> None:
    (old_shares, old_peers), (new_shares, new_peers) = old, new

    def make(ranks: FakeRanks) -> TrainBatches:
        return open_batches(make_loader(kind, length, size, ranks), ranks)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Interruption(make, old_shares * old_peers, None, peers=old_peers)
        stop = data.draw(st.integers(1, max(1, int(whole.num_batches))), "interrupted after")
        before = Interruption(make, old_shares * old_peers, stop, peers=old_peers)
        after = Interruption(make, new_shares * new_peers, None, before.positions, peers=new_peers)

    assert before.has_equal_peers
    assert after.has_equal_peers
    assert samples(before.seen + after.seen) == list(range(length))
    assert sorted(after.later) == list(range(length))


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(12, 60),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=3, max_size=4),
    data=st.data(),
)
def test_an_epoch_can_be_divided_anew_again_and_again(
    length: int, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    seen: list[Any] = []
    positions = None
    for number, (world, size) in enumerate(sizes):
        is_last = number == len(sizes) - 1

        def make(ranks: FakeRanks, size: int = size) -> TrainBatches:
            return open_batches(make_loader("shuffle", length, size, ranks), ranks)

        stop = None if is_last else 1 + data.draw(st.integers(0, 3))
        if positions is not None and stop is not None:
            stop += max(0, -(-positions[0]["position"]["batches"] * positions[0]["batch_size"][0] // (world * size)))
        part = Interruption(make, world, stop, positions)
        seen += part.seen
        positions = part.positions

    assert samples(seen) == list(range(length))


def test_the_same_division_goes_on_inside_an_epoch_that_was_divided_anew() -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("shuffle", 40, size, ranks), ranks)

    first = Interruption(make(4), 2, 2)  # 16 of 40
    whole = Interruption(make(5), 2, None, first.positions)  # 16 is no multiple of 10
    part = Interruption(make(5), 2, whole.indices[1], first.positions)
    rest = Interruption(make(5), 2, None, part.positions)

    assert whole.indices == [1, 2, 3]
    assert [len(batch) for batch in whole.seen] == [5, 5, 2] * 2
    assert rest.indices == whole.indices[1:]
    assert samples(part.seen + rest.seen) == samples(whole.seen)
    assert rest.seen == [batch for rank in (0, 3) for batch in whole.seen[rank + 1 : rank + 3]]


@pytest.mark.parametrize(("world_size", "size"), [(2, 6), (3, 4), (1, 12), (6, 2)])
def test_batches_of_the_same_size_are_those_of_the_uninterrupted_run(world_size: int, size: int) -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("shuffle", 50, size, ranks), ranks)

    whole = Interruption(make(3), 4, None)
    before = Interruption(make(3), 4, 2)
    after = Interruption(make(size), world_size, None, before.positions)
    expected = [samples(whole.seen[i :: len(whole.indices)]) for i in range(2, len(whole.indices))]

    assert [samples(after.seen[i :: len(after.indices)]) for i in range(len(after.indices))] == expected


def test_a_share_of_an_epoch_ends_where_it_would_have() -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("shuffle", 48, size, ranks), ranks, limit=0.5)

    before = Interruption(make(2), 4, 1)
    after = Interruption(make(2), 1, None, before.positions)

    assert after.indices == list(range(4, 12))
    assert len(set(samples(before.seen + after.seen))) == 24


def test_an_epoch_that_was_over_stays_over() -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("shuffle", 10, size, ranks), ranks)

    before = Interruption(make(2), 2, 3)
    after = Interruption(make(4), 1, None, before.positions)

    assert samples(before.seen) == list(range(10))
    assert after.indices == after.seen == []


# ---- several loaders


@pytest.mark.parametrize(
    ("mode", "stop"), [("min_size", 2), *((f"max_size{end}", n) for end in ("", "_cycle") for n in (2, 3, 4))]
)
@pytest.mark.parametrize(("world_size", "size"), [(1, 2), (2, 2), (1, 3)])
def test_each_of_several_loaders_goes_on_where_it_was(mode: str, stop: int, world_size: int, size: int) -> None:
    lengths = {"long": 60, "short": 24}  # 8 and 3 batches of 8

    def make(size: int) -> Any:
        def of_rank(ranks: FakeRanks) -> TrainBatches:
            loaders = {name: make_loader("shuffle", length, size, ranks) for name, length in lengths.items()}
            return open_batches(loaders, ranks, mode)

        return of_rank

    def seen(name: str) -> list[int]:
        batches = [batch[name] for batch in before.seen + after.seen if batch[name] is not None]
        return [int(i) for batch in batches for i in batch]

    before = Interruption(make(2), 4, stop)
    after = Interruption(make(size), world_size, None, before.positions)

    assert after.indices[-1] == after.num_batches - 1
    if mode == "min_size":
        assert sorted(seen("short")) == list(range(24))
        assert len(set(seen("long"))) == len(seen("long"))
        return
    assert sorted(seen("long")) == list(range(60))
    times = [seen("short").count(i) for i in range(24)]
    assert set(times) == {1} if mode == "max_size" else (min(times) >= 1 and max(times) - min(times) <= 1)


# ---- what only the user knows


def test_a_distributed_sampler_of_the_user_is_passed_over_on_each_rank() -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("user's distributed sampler", 48, size, ranks), ranks)

    before = Interruption(make(3), 4, 2)
    after = Interruption(make(3), 2, None, before.positions)

    assert samples(before.seen + after.seen) == list(range(48))
    assert after.indices == list(range(4, 8))


def test_batches_that_a_sampler_of_the_user_would_have_to_split_are_said_to_repeat() -> None:
    def make(size: int) -> Any:
        return lambda ranks: open_batches(make_loader("user's distributed sampler", 48, size, ranks), ranks)

    before = Interruption(make(2), 3, 3)  # 18
    with pytest.warns(UserWarning, match="so 2 samples of this epoch are seen twice"):
        after = Interruption(make(4), 2, None, before.positions)

    assert set(samples(before.seen + after.seen)) == set(range(48))
    assert len(samples(before.seen + after.seen)) == 50


class Stream(IterableDataset):
    """Divides itself: rank r of W has every W-th sample."""

    def set_shard(self, rank: int, num_replicas: int) -> None:
        self.rank, self.num_replicas = rank, num_replicas

    def __iter__(self) -> Any:
        yield from range(getattr(self, "rank", 0), 48, getattr(self, "num_replicas", 1))


@pytest.mark.filterwarnings("ignore:To go on where the checkpoint was taken")
def test_a_stream_that_divides_itself_says_on_what_it_depends() -> None:
    def make(ranks: FakeRanks) -> TrainBatches:
        combined = CombinedLoader(DataLoader(Stream(), 3), "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks)
        return TrainBatches(combined, ranks=ranks)

    before = Interruption(make, 4, 2)
    with pytest.warns(UserWarning, match="`Stream`, which divides itself among processes") as caught:
        after = Interruption(make, 2, None, before.positions)

    assert "first 4 batches of its new part" in "".join(str(each.message) for each in caught)
    assert samples(before.seen + after.seen) == list(range(48))


def test_nothing_is_said_if_the_same_ranks_go_on() -> None:
    def make(ranks: FakeRanks) -> TrainBatches:
        return open_batches(make_loader("shuffle", 20, 2, ranks), ranks)

    before = Interruption(make, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = Interruption(make, 2, None, before.positions)

    assert samples(before.seen + after.seen) == list(range(20))
