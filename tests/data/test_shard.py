"""What several ranks see together is what one process would see."""

from __future__ import annotations

import copy
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import EvalBatches, TrainBatches
from fulmen.data.shard import Shard, order_of
from fulmen.engine.loaders import prepare_eval_loaders, prepare_train_loaders, seen_batch_indices
from fulmen.utilities.seed import collect_rng_states
from tests.data.fake_ranks import FakeRanks, own_random_state, run_as_ranks, seed

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
BatchSampler: Any = torch.utils.data.BatchSampler
DataLoader: Any = torch.utils.data.DataLoader
Sampler: Any = torch.utils.data.Sampler

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*shuffling enabled", "ignore:.*does not have many workers", "ignore:Total length", "ignore:.*custom batch"
)


class Drawing(Sampler):
    """A sampler of the user, that draws by one of the generators of the process."""

    def __init__(self, length: int, how: str) -> None:
        self.length, self.how = length, how
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        order = list(range(self.length))
        if self.how == "python":
            random.shuffle(order)
        elif self.how == "numpy":
            order = np.random.permutation(order).tolist()
        else:  # one number for each sample, while the batches are made
            yield from (int(torch.randint(self.length, ())) for _ in order)
            return
        yield from order

    def __len__(self) -> int:
        return self.length


class Buckets:
    """A batch sampler of the user, with batches of different sizes in a random order."""

    def __init__(self, length: int, drop_last: bool = False) -> None:
        cuts = list(range(0, length, 3))
        self.batches = [list(range(cut, min(cut + 1 + cut % 3, length))) for cut in cuts]
        self.drop_last = drop_last

    def __iter__(self):
        yield from (self.batches[i] for i in torch.randperm(len(self.batches)).tolist())

    def __len__(self) -> int:
        return len(self.batches)


SAMPLERS = ["in order", "shuffle", "own generator", "replacement", "weighted", "subset", "python", "numpy", "torch"]


def make_loader(kind: str, length: int, batch_size: int, drop_last: bool = False, **changes: Any) -> Any:
    data = list(range(length))
    sampler: Any = None
    generator = None
    if kind == "own generator":
        generator = torch.Generator().manual_seed(7)
    elif kind == "replacement":
        sampler = RandomSampler(data, replacement=True, num_samples=length, generator=torch.Generator())
    elif kind == "weighted":
        sampler = WeightedRandomSampler([1.0] * length, length)
    elif kind == "subset":
        sampler = SubsetRandomSampler(data[: max(1, length - 2)])
    elif kind in ("python", "numpy", "torch"):
        sampler = Drawing(length, kind)
    shuffle = None if sampler is not None else kind != "in order"
    return DataLoader(
        data, batch_size, shuffle=shuffle, sampler=sampler, drop_last=drop_last, generator=generator, **changes
    )


def train(loader: Any, ranks: FakeRanks, epochs: int = 2, limit: float = math.inf) -> dict[str, Any]:
    combined = CombinedLoader(loader, "max_size_cycle")
    prepare_train_loaders(combined, overfit=False, ranks=ranks)
    batches = TrainBatches(combined, limit=limit, ranks=ranks)
    seen = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        seen.append([batch.tolist() for batch, _, _ in batches])
    return {
        "seen": seen,
        "rng": collect_rng_states(include_cuda=False),
        "weight": batches.last_weight,
        "size": batches.last_size,
        "num": batches.num_batches,
        "sampler": combined.flattened[0].sampler,
        "state": batches.state_dict(),
    }


def evaluate(loader: Any, ranks: FakeRanks, stage: str = "val", passes: int = 2) -> dict[str, Any]:
    combined = CombinedLoader(loader, "sequential")
    prepare_eval_loaders(combined, stage=stage, ranks=ranks)
    batches = EvalBatches(combined, combined.lengths(), ranks=ranks)
    seen, indices = [], []
    for _ in range(passes):
        of_pass = []
        for batch, batch_idx, _ in batches:
            of_pass.append((batches.global_batch_idx(batch_idx), batch.tolist()))
            if stage == "predict":
                indices.append(seen_batch_indices(combined.flattened[0], batch_idx))
        seen.append(of_pass)
    return {
        "seen": seen,
        "rng": collect_rng_states(include_cuda=False),
        "num": batches.num_batches,
        "indices": indices,
        "is_sharded": batches.is_sharded,
    }


def same_rng(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return pickle.dumps(_plain(a)) == pickle.dumps(_plain(b))


def _plain(states: dict[str, Any]) -> Any:
    return {
        name: [each.tolist() if isinstance(each, torch.Tensor) else each for each in value]
        if isinstance(value, list)
        else value.tolist()
        for name, value in states.items()
    }


# ---- training


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(SAMPLERS),
    length=st.integers(1, 30),
    world_size=st.integers(2, 4),
    batch_size=st.integers(1, 4),
    drop_last=st.booleans(),
    in_step=st.booleans(),
)
def test_ranks_share_the_batches_of_one_process(kind, length, world_size, batch_size, drop_last, in_step):
    assume(not (kind == "torch" and drop_last))  # there, one process does not draw the samples that it drops
    seeds = [3] * world_size if in_step else [3, *range(10, 9 + world_size)]
    with own_random_state(3):
        alone = train(make_loader(kind, length, world_size * batch_size, drop_last), FakeRanks(0, 1, []))

    ranks = run_as_ranks(
        lambda ranks: train(make_loader(kind, length, batch_size, drop_last), ranks), world_size, seeds=seeds
    )

    for epoch in range(2):
        expected = alone["seen"][epoch]
        assert [len(rank["seen"][epoch]) for rank in ranks] == [len(expected)] * world_size
        for k, whole in enumerate(expected):
            for rank in range(world_size):
                part = whole[rank::world_size] or whole[:1]
                assert ranks[rank]["seen"][epoch][k] == part
    assert [rank["num"] for rank in ranks] == [alone["num"]] * world_size
    for rank in range(world_size):
        assert len(ranks[rank]["sampler"]) == sum(map(len, ranks[rank]["seen"][0]))
    assert same_rng(ranks[0]["rng"], alone["rng"])
    if in_step:
        assert all(same_rng(rank["rng"], alone["rng"]) for rank in ranks)


@settings(deadline=None, max_examples=100)
@given(length=st.integers(1, 30), world_size=st.integers(2, 4), batch_size=st.integers(1, 4), drop_last=st.booleans())
def test_weights_make_the_mean_over_ranks_that_over_samples(length, world_size, batch_size, drop_last):
    ranks = run_as_ranks(
        lambda ranks: train(make_loader("in order", length, batch_size, drop_last), ranks, epochs=1),
        world_size,
        seeds=[1] * world_size,
    )
    if ranks[0]["num"] == 0:
        return
    last = [rank["seen"][0][-1] for rank in ranks]
    sizes = [len(batch) if rank["size"] is None else rank["size"] for rank, batch in zip(ranks, last, strict=True)]
    real = [x for batch, size in zip(last, sizes, strict=True) for x in batch[:size]]

    mean = sum(rank["weight"] * np.mean(batch) for rank, batch in zip(ranks, last, strict=True)) / world_size

    assert mean == pytest.approx(np.mean(real))
    assert len(set(real)) == len(real)
    assert sum(sizes) == ((length - 1) % (world_size * batch_size) + 1 if not drop_last else world_size * batch_size)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length", [3, 12, 16, 19])
def test_a_batch_sampler_of_the_user_gives_every_second_batch(length, drop_last):
    def loader() -> Any:
        return DataLoader(list(range(length)), batch_sampler=Buckets(length, drop_last))

    with own_random_state(1):
        alone = train(loader(), FakeRanks(0, 1, []))
    first, second = run_as_ranks(lambda ranks: train(loader(), ranks), 2, seeds=[1, 2])

    for epoch in range(2):
        expected = alone["seen"][epoch]
        if drop_last:
            expected = expected[: len(expected) // 2 * 2]
        assert first["seen"][epoch] == expected[::2]
        repeat = [expected[-1]] if len(expected) % 2 else []
        assert second["seen"][epoch] == expected[1::2] + repeat
    is_uneven = bool(alone["num"] % 2) and not drop_last
    assert (first["weight"], second["weight"]) == ((2.0, 0.0) if is_uneven else (1.0, 1.0))
    assert (first["size"], second["size"]) == (None, 0 if is_uneven else None)
    assert same_rng(first["rng"], alone["rng"])


def test_a_plain_batch_sampler_is_divided_by_samples():
    def loader(batch_size: int) -> Any:
        data = list(range(11))
        return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), batch_size, False))

    with own_random_state(1):
        alone = train(loader(4), FakeRanks(0, 1, []))
    ranks = run_as_ranks(lambda ranks: train(loader(2), ranks), 2, seeds=[1, 2])

    assert [rank["seen"][1] for rank in ranks] == [[b[r::2] for b in alone["seen"][1]] for r in range(2)]
    assert ranks[0]["state"]["batch_size"] == alone["state"]["batch_size"] == [4]
    assert (ranks[0]["state"]["num_replicas"], alone["state"]["num_replicas"]) == (2, 1)


def test_without_batching_every_second_sample_is_taken():
    def loader() -> Any:
        return DataLoader(torch.arange(5), batch_size=None, shuffle=True)

    with own_random_state(1):
        alone = train(loader(), FakeRanks(0, 1, []))
    ranks = run_as_ranks(lambda ranks: train(loader(), ranks), 2, seeds=[1, 2])

    expected = alone["seen"][0]
    assert [rank["seen"][0] for rank in ranks] == [expected[::2], expected[1::2] + expected[4:]]
    assert [rank["weight"] for rank in ranks] == [2.0, 0.0]


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_order_is_that_of_one_process_with_workers(persistent_workers):
    def loader(batch_size: int) -> Any:
        return make_loader("shuffle", 10, batch_size, num_workers=1, persistent_workers=persistent_workers)

    with own_random_state(1):
        alone = train(loader(4), FakeRanks(0, 1, []))
    ranks = run_as_ranks(lambda ranks: train(loader(2), ranks), 2, seeds=[1, 2])

    assert [rank["seen"] for rank in ranks] == [[[b[r::2] for b in e] for e in alone["seen"]] for r in range(2)]
    assert same_rng(ranks[0]["rng"], alone["rng"])


def test_a_limit_inside_the_epoch_leaves_the_last_batch_full():
    ranks = run_as_ranks(lambda ranks: train(make_loader("shuffle", 9, 2), ranks, limit=2), 2, seeds=[1, 2])

    assert [(rank["weight"], rank["size"], rank["num"]) for rank in ranks] == [(1.0, None, 2)] * 2


def test_injected_samplers_look_like_those_of_torch():
    loader = make_loader("shuffle", 11, 2)
    combined = CombinedLoader(loader, "max_size_cycle")
    prepare_train_loaders(combined, overfit=False, ranks=FakeRanks(1, 2, []))
    made: Any = combined.flattened[0]
    sampler: Any = made.sampler

    assert isinstance(made.sampler, DistributedSampler)
    assert (sampler.num_replicas, sampler.rank, sampler.shuffle) == (2, 1, True)
    assert (sampler.num_samples, sampler.total_size, len(sampler), len(made)) == (5, 11, 5, 3)
    assert sampler.sampler is loader.sampler
    assert (made.batch_size, made.drop_last) == (2, False)
    sampler.set_epoch(4)
    assert sampler.epoch == 4
    assert len(set(sampler)) == 5  # no ranks are needed outside of a run


def test_the_epoch_reaches_the_sampler_of_the_user():
    inner = Drawing(4, "python")
    combined = CombinedLoader(DataLoader(list(range(4)), sampler=inner), "max_size_cycle")
    ranks = FakeRanks(0, 2, [])
    prepare_train_loaders(combined, overfit=False, ranks=ranks)

    TrainBatches(combined, ranks=ranks).set_epoch(3)

    assert inner.epoch == 3


def test_nobody_is_asked_outside_of_a_run_and_about_samples_in_order():
    for kind, number in (("in order", 0), ("shuffle", 2)):
        ranks = FakeRanks(0, 2, [])
        train(make_loader(kind, 8, 2), ranks, epochs=2)
        assert ranks.num_heard == number
    ranks = FakeRanks(0, 2, [])
    combined = CombinedLoader(make_loader("shuffle", 8, 2), "max_size_cycle")
    prepare_train_loaders(combined, overfit=False, ranks=ranks)
    list(combined.flattened[0])
    assert ranks.num_heard == 0


def test_an_order_can_be_copied_without_its_ranks():
    combined = CombinedLoader(make_loader("shuffle", 8, 2), "max_size_cycle")
    ranks = FakeRanks(0, 2, [])
    prepare_train_loaders(combined, overfit=False, ranks=ranks)
    order = order_of(combined.flattened[0])
    assert order is not None
    order.agree_on_next_pass(ranks)

    list(copy.deepcopy(order))

    assert ranks.num_heard == 0


def test_a_sampler_without_length_cannot_be_divided():
    class Endless:
        def __iter__(self):
            return iter(int, 1)

    combined = CombinedLoader(DataLoader([1, 2], sampler=Endless()), "max_size_cycle")
    with pytest.raises(TypeError, match="has no length"):
        prepare_train_loaders(combined, overfit=False, ranks=FakeRanks(0, 2, []))


def test_several_loaders_are_cycled_alike_on_all_ranks():
    def run(ranks: FakeRanks, batch_size: int) -> Any:
        loaders = {"long": make_loader("shuffle", 13, batch_size), "short": make_loader("shuffle", 5, batch_size)}
        combined = CombinedLoader(loaders, "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks)
        batches = TrainBatches(combined, ranks=ranks)
        seen = []
        for epoch in range(2):
            batches.set_epoch(epoch)
            seen += [{name: x.tolist() for name, x in batch.items()} for batch, _, _ in batches]
        return seen

    with own_random_state(1):
        alone = run(FakeRanks(0, 1, []), 4)
    ranks = run_as_ranks(lambda ranks: run(ranks, 2), 2, seeds=[1, 2])

    for rank, seen in enumerate(ranks):
        assert seen == [{name: x[rank::2] or x[:1] for name, x in batch.items()} for batch in alone]


# ---- resuming


@pytest.mark.parametrize("kind", ["shuffle", "own generator", "python", "torch"])
@pytest.mark.parametrize("gathers", [True, False])
def test_a_resumed_epoch_keeps_the_order_of_all_ranks(kind, gathers):
    """With the position of each rank, and with that of rank 0 on every rank."""

    def interrupted(ranks: FakeRanks) -> Any:
        batches = make_batches(ranks)
        batches.set_epoch(0)
        list(batches)
        batches.set_epoch(1)
        running = iter(batches)
        first = [next(running)[0].tolist() for _ in range(2)]
        return first, batches.state_dict()

    def make_batches(ranks: FakeRanks) -> TrainBatches:
        combined = CombinedLoader(make_loader(kind, 15, 2), "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks)
        return TrainBatches(combined, ranks=ranks)

    def resumed(ranks: FakeRanks) -> Any:
        batches = make_batches(ranks)
        batches.load_state_dict(copy.deepcopy(parts[ranks.global_rank if gathers else 0][1]))
        batches.set_epoch(1)
        return [batch.tolist() for batch, _, _ in batches]

    uninterrupted = run_as_ranks(lambda ranks: train(make_loader(kind, 15, 2), ranks), 2, seeds=[1, 2])
    parts = run_as_ranks(interrupted, 2, seeds=[1, 2])
    rests = run_as_ranks(resumed, 2, seeds=[8, 9])

    for rank in range(2):
        assert parts[rank][0] + rests[rank] == uninterrupted[rank]["seen"][1]


# ---- evaluation


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from([kind for kind in SAMPLERS if kind != "torch"]),
    length=st.integers(1, 30),
    world_size=st.integers(2, 4),
    batch_size=st.integers(1, 4),
    drop_last=st.booleans(),
    stage=st.sampled_from(["val", "predict"]),
)
def test_every_batch_is_evaluated_once(kind, length, world_size, batch_size, drop_last, stage):
    with own_random_state(3):
        alone = evaluate(make_loader(kind, length, batch_size, drop_last), FakeRanks(0, 1, []), stage)
    share = [[Shard(rank, world_size).share_of(alone["num"][0])] for rank in range(world_size)]

    ranks = run_as_ranks(
        lambda ranks: evaluate(make_loader(kind, length, batch_size, drop_last), ranks, stage),
        world_size,
        seeds=[3, *range(10, 9 + world_size)],
        gathered=[share],
    )

    for number in range(2):
        seen = sorted(item for rank in ranks for item in rank["seen"][number])
        assert seen == alone["seen"][number]
    assert [rank["num"] for rank in ranks] == share
    assert [len(rank["seen"][0]) for rank in ranks] == [each[0] for each in share]
    assert same_rng(ranks[0]["rng"], alone["rng"])
    assert all(rank["is_sharded"] for rank in ranks)
    if stage == "predict":  # the data are their own indices
        for rank in ranks:
            assert rank["indices"] == [batch for of_pass in rank["seen"] for _, batch in of_pass]


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_batch_sampler_of_the_user_is_evaluated_whole(stage):
    def loader() -> Any:
        return DataLoader(list(range(20)), batch_sampler=BucketsInOrder(20))

    class BucketsInOrder(Buckets):
        def __iter__(self):
            return iter(self.batches)

    alone = evaluate(loader(), FakeRanks(0, 1, []), stage)
    ranks = run_as_ranks(lambda ranks: evaluate(loader(), ranks, stage), 2, seeds=[3, 4], gathered=[[[4], [3]]])

    assert sorted(item for rank in ranks for item in rank["seen"][0]) == alone["seen"][0]
    assert ranks[1]["num"] == [3]


def test_several_shuffled_loaders_are_evaluated_once_also_by_ranks_without_a_batch():
    def run(ranks: FakeRanks) -> Any:
        combined = CombinedLoader([make_loader("shuffle", n, 2) for n in (2, 7, 1)], "sequential")
        prepare_eval_loaders(combined, stage="val", ranks=ranks)
        batches = EvalBatches(combined, combined.lengths(), ranks=ranks)
        return batches, [(j, x) for _ in range(2) for batch, _, j in batches for x in batch.tolist()]

    ranks = run_as_ranks(run, 2, seeds=[1, 2], gathered=[[[1, 2, 1], [0, 2, 0]]])

    expected = [(j, x) for j, n in enumerate((2, 7, 1)) for x in range(n)]
    assert sorted(ranks[0][1] + ranks[1][1]) == sorted(expected * 2)
    assert ranks[1][0].num_batches == [0, 2, 0]
    assert ranks[1][0].global_num_batches == [[1, 0], [2, 2], [1, 0]]
    assert ranks[1][0].has_any


def test_a_rank_without_a_batch_takes_part_in_the_agreement():
    heard = []

    def run(ranks: FakeRanks) -> Any:
        result = evaluate(make_loader("shuffle", 2, 2), ranks)
        heard.append(ranks.num_heard)
        return result

    ranks = run_as_ranks(run, 2, seeds=[1, 2], gathered=[[[1], [0]]])

    assert heard == [2, 2]
    assert [len(rank["seen"][0]) for rank in ranks] == [1, 0]


def test_one_process_has_nothing_in_between():
    combined = CombinedLoader(make_loader("in order", 4, 2), "max_size_cycle")
    loader = combined.flattened[0]
    prepare_train_loaders(combined, overfit=False, ranks=FakeRanks(0, 1, []))

    assert combined.flattened[0] is loader
    assert EvalBatches(CombinedLoader([range(3), range(2)], "sequential"), [3, 2]).global_num_batches == [[3], [2]]
    seed(0)
