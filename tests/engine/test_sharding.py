"""Loaders divided among processes, and what cannot be divided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler, SequentialSampler

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import EvalBatches, TrainBatches
from fulmen.data.rebuild import recording_dataloader_arguments
from fulmen.data.sampler import TrainShard
from fulmen.data.shard import Shard
from fulmen.engine.iterable_datasets import is_sharded
from fulmen.engine.loaders import (
    prepare_eval_loaders,
    prepare_train_loaders,
    sequential_for_overfit,
    shard_for_fabric,
)
from fulmen.engine.sharding import shard_for_evaluation, shard_for_training, whole
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.warnings import PossibleUserWarning
from tests.data.fake_ranks import FakeRanks, own_random_state, run_as_ranks

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
BatchSampler: Any = torch.utils.data.BatchSampler
ChainDataset: Any = torch.utils.data.ChainDataset
DataLoader: Any = torch.utils.data.DataLoader
IterableDataset: Any = torch.utils.data.IterableDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SECOND = Shard(rank=1, num_replicas=2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class Sharding(Stream):
    rank, num_replicas = 0, 1

    def set_shard(self, rank: int, num_replicas: int) -> None:
        self.rank, self.num_replicas = rank, num_replicas

    def __iter__(self):
        return iter(range(self.rank, 8, self.num_replicas))


class Shardable(Stream):
    def shard(self, num_shards: int, index: int) -> Any:
        part = Sharding()
        part.set_shard(index, num_shards)
        return part


class OwnLoader(DataLoader):
    """A loader of the user with an argument of its own."""

    def __init__(self, data: Any, flavor: str, **kwargs: Any) -> None:
        super().__init__(data, **kwargs)
        self.flavor = flavor


def items(loader: Any) -> list[int]:
    return [x for batch in loader for x in batch.tolist()]


def double(samples: list[int]) -> torch.Tensor:
    return 2 * torch.tensor(samples)


# ---- what stays as the user made it


def test_the_class_and_the_arguments_of_a_loader_are_kept():
    generator = torch.Generator()
    with recording_dataloader_arguments():
        loader = OwnLoader(
            list(range(7)), "sweet", batch_size=2, shuffle=True, collate_fn=double, num_workers=1, generator=generator,
            multiprocessing_context="fork",
        )  # fmt: skip
    loader.later = "set after construction"

    made = shard_for_training(loader, SECOND, name="train_dataloader")

    assert type(made) is OwnLoader
    assert (made.flavor, made.later, made.batch_size, made.num_workers) == ("sweet", loader.later, 2, 1)
    assert made.collate_fn is double
    assert made.generator is generator
    assert made.multiprocessing_context.get_start_method() == "fork"
    assert made.sampler.sampler is loader.sampler


def test_samplers_that_divide_already_are_kept():
    class OfOthers(SequentialSampler):
        num_replicas, rank = 2, 1

    data: Any = list(range(8))
    samplers: list[Any] = [DistributedSampler(data, 2, 1, shuffle=False), OfOthers(data)]
    for sampler in samplers:
        loader = DataLoader(data, 2, sampler=sampler)
        assert shard_for_training(loader, SECOND, name="x") is loader
        loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False))
        assert shard_for_evaluation(loader, SECOND, name="x") is loader


def test_nothing_is_divided_if_not_wanted():
    ranks = FakeRanks(1, 2, [])
    combined = CombinedLoader(DataLoader(range(8), 2), "max_size_cycle")
    loader = combined.flattened[0]
    prepare_train_loaders(combined, overfit=False, ranks=ranks, shard=False)
    assert combined.flattened == [loader]
    stream = CombinedLoader(DataLoader(Stream(), 2), "sequential")
    prepare_eval_loaders(stream, stage="val", ranks=ranks, shard=False)
    assert len(items(stream.flattened[0])) == 8


def test_a_loader_of_an_earlier_run_is_divided_anew():
    loader = DataLoader(range(8), 2, shuffle=True)
    trained = shard_for_training(loader, SECOND, name="x")
    assert whole(trained).sampler is loader.sampler
    for stage in ("val", "predict"):
        combined = CombinedLoader(trained, "sequential")
        with pytest.warns(PossibleUserWarning, match="shuffling enabled"):
            prepare_eval_loaders(combined, stage=stage, ranks=FakeRanks(0, 4, []))
        assert len(combined.flattened[0]) == 1
        assert len(whole(combined.flattened[0])) == 4
    own = DataLoader(range(8), batch_sampler=[[0, 1], [2]])
    assert whole(shard_for_training(own, SECOND, name="x")).batch_sampler == [[0, 1], [2]]
    assert whole(own) is own
    assert whole([1]) == [1]


# ---- overfitting


def test_overfitting_takes_the_same_batches_in_order_on_all_ranks():
    def run(ranks: FakeRanks) -> Any:
        combined = CombinedLoader(DataLoader(range(8), 2, shuffle=True), "max_size_cycle")
        with pytest.warns(UserWarning, match="overfit"):
            prepare_train_loaders(combined, overfit=True, ranks=ranks)
        batches = TrainBatches(combined, limit=1, ranks=ranks)
        return [[batch.tolist() for batch, _, _ in batches] for _ in range(2)]

    assert run_as_ranks(run, 2, seeds=[1, 2]) == [[[[0, 2]]] * 2, [[[1, 3]]] * 2]


def test_overfitting_keeps_each_rank_at_its_part_of_a_distributed_sampler():
    data: Any = list(range(8))
    loader = DataLoader(data, 2, sampler=DistributedSampler(data, 2, 1, shuffle=True))
    with pytest.warns(UserWarning, match="overfit"):
        made = sequential_for_overfit(loader, name="train")
    assert items(made) == [1, 3, 5, 7]
    assert sequential_for_overfit(made, name="train") is made


# ---- iterable datasets


def test_an_iterable_dataset_that_repeats_itself_is_refused_with_advice():
    for prepare in (
        lambda combined, ranks: prepare_train_loaders(combined, overfit=False, ranks=ranks),
        lambda combined, ranks: prepare_eval_loaders(combined, stage="test", ranks=ranks),
    ):
        combined = CombinedLoader(DataLoader(Stream()), "sequential")
        with pytest.raises(MisconfigurationException, match=r"all of it(.|\n)*def set_shard(.|\n)*fulmen_sharded"):
            prepare(combined, FakeRanks(0, 2, []))


def test_an_iterable_dataset_is_divided_by_its_own_means():
    for dataset in (Sharding(), Shardable(), ChainDataset([Sharding()])):
        with recording_dataloader_arguments():
            loader = OwnLoader(dataset, "salty", batch_size=3)
        made = shard_for_training(loader, SECOND, name="x")
        assert items(made) == [1, 3, 5, 7]
        assert made.flavor == "salty"


def test_an_iterable_dataset_can_say_that_it_is_divided():
    stream = Stream()
    stream.fulmen_sharded = True
    loader = DataLoader(stream)
    assert shard_for_training(loader, SECOND, name="x") is loader
    loader = DataLoader(ChainDataset([stream, stream]))
    assert shard_for_training(loader, SECOND, name="x") is loader
    assert not is_sharded(ChainDataset([stream, Stream()]))


def test_datasets_of_packages_that_look_at_the_rank_are_known():
    class StreamingDataset(Stream):
        pass

    StreamingDataset.__module__ = "litdata.streaming.dataset"

    class Own(StreamingDataset):
        pass

    assert is_sharded(Own())
    assert not is_sharded(Stream())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_hugging_face_stream_is_split_by_node(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets: Any = pytest.importorskip("datasets")
    distributed: Any = pytest.importorskip("datasets.distributed")

    stream = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=2)
    made = shard_for_training(DataLoader(stream, batch_size=2), SECOND, name="x")
    first = shard_for_training(DataLoader(stream, batch_size=2), Shard(0, 2), name="x")
    seen = [[x for batch in each for x in batch["x"].tolist()] for each in (first, made)]
    assert sorted(seen[0] + seen[1]) == list(range(8))
    assert len(seen[1]) == 4

    split = distributed.split_dataset_by_node(stream, rank=1, world_size=2)
    loader = DataLoader(split)
    assert shard_for_training(loader, SECOND, name="x") is loader


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
def test_a_stateful_loader_of_torchdata_is_divided():
    StatefulDataLoader: Any = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def run(ranks: FakeRanks) -> Any:
        loader = StatefulDataLoader(list(range(11)), batch_size=2, shuffle=True)
        combined = CombinedLoader(loader, "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks)
        batches = TrainBatches(combined, ranks=ranks)
        assert type(combined.flattened[0]) is StatefulDataLoader
        assert isinstance(combined.flattened[0].sampler, TrainShard)
        return [[batch.tolist() for batch, _, _ in batches] for _ in range(2)]

    ranks = run_as_ranks(run, 2, seeds=[1, 2])
    for epoch in range(2):
        assert sorted(x for rank in ranks for batch in rank[epoch] for x in batch) == list(range(11))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
def test_a_stateful_loader_goes_on_with_the_order_of_all_ranks():
    StatefulDataLoader: Any = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make(ranks: FakeRanks) -> TrainBatches:
        combined = CombinedLoader(StatefulDataLoader(list(range(16)), batch_size=2, shuffle=True), "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks)
        return TrainBatches(combined, ranks=ranks)

    def interrupted(ranks: FakeRanks) -> Any:
        batches = make(ranks)
        running = iter(batches)
        first = [next(running)[0].tolist() for _ in range(2)]
        return first, batches.state_dict(), batches.loader_states()

    def resumed(ranks: FakeRanks) -> Any:
        batches = make(ranks)
        _, position, states = parts[ranks.global_rank]
        batches.load_loader_states(states)
        batches.load_state_dict(position)
        return [batch.tolist() for batch, _, _ in batches]

    parts = run_as_ranks(interrupted, 2, seeds=[1, 2])
    rests = run_as_ranks(resumed, 2, seeds=[5, 6])

    seen = [x for part, rest in zip(parts, rests, strict=True) for batch in part[0] + rest for x in batch]
    assert sorted(seen) == list(range(16))


def test_other_iterables_are_warned_about():
    with pytest.warns(PossibleUserWarning, match="of which every process reads all batches"):
        shard_for_training([1, 2], SECOND, name="train_dataloader")

    class Own(list[int]):
        fulmen_sharded = True

    own = Own([1, 2])
    assert shard_for_training(own, SECOND, name="train_dataloader") is own


# ---- ending together


def uneven(lengths: list[list[float]]) -> FakeRanks:
    return FakeRanks(0, len(lengths), [], gathered=[lengths])


def test_all_ranks_take_the_smallest_number_of_batches():
    combined = CombinedLoader([range(5), range(9)], "max_size_cycle")
    with pytest.warns(UserWarning, match=r"rank 0: 5, rank 1: 3\).*smallest number, 3"):
        prepare_train_loaders(combined, overfit=False, ranks=uneven([[5, 9], [3, 9]]), shard=False)
    assert combined.limits == [3, math.inf]
    assert combined.total_batches() == 9
    single = CombinedLoader(range(5), "max_size_cycle")
    with pytest.warns(UserWarning, match="different numbers of batches"):
        prepare_train_loaders(single, overfit=False, ranks=uneven([[5], [3]]), shard=False)
    assert [batch for batch, _, _ in TrainBatches(single)] == [0, 1, 2]


def test_a_rank_without_batches_is_an_error_unless_allowed():
    combined = CombinedLoader(range(5), "max_size_cycle")
    with pytest.raises(RuntimeError, match="no batches on some ranks"):
        prepare_train_loaders(combined, overfit=False, ranks=uneven([[5], [0]]), shard=False)
    with pytest.warns(UserWarning, match="different numbers"):
        prepare_train_loaders(combined, overfit=False, ranks=uneven([[5], [0]]), shard=False, allow_zero_length=True)
    assert combined.total_batches() == 0


def test_ranks_with_and_without_length_cannot_train_together():
    combined = CombinedLoader(range(5), "max_size_cycle")
    with pytest.raises(RuntimeError, match="length on some ranks only"):
        prepare_train_loaders(combined, overfit=False, ranks=uneven([[5], [math.inf]]), shard=False)
    with pytest.raises(RuntimeError, match="different numbers of loaders"):
        prepare_train_loaders(combined, overfit=False, ranks=uneven([[5], [5, 5]]), shard=False)


class Ending(FakeRanks):
    """Rank 0 of two; the other one has this many batches."""

    def __init__(self, other: int) -> None:
        super().__init__(0, 2, [])
        self.other = other
        self.asked = 0

    def agree(self, values: list[int], op: str = "max") -> list[int]:
        assert op == "min"
        self.asked += 1
        return [min(values[0], self.asked <= self.other)]

    def gather_objects(self, obj: Any) -> list[Any]:
        return [obj, self.asked <= self.other]


def test_loaders_without_length_end_together():
    batches = TrainBatches(CombinedLoader((x for x in range(9)), "max_size_cycle"), ranks=Ending(3))
    with pytest.warns(UserWarning, match=r"after 3 batches on the ranks \[1\], while the ranks \[0\] had more"):
        assert list(batches) == [(0, 0, False), (1, 1, False), (2, 2, True)]

    batches = TrainBatches(CombinedLoader((x for x in range(3)), "max_size_cycle"), ranks=Ending(3))
    assert [is_last for _, _, is_last in batches] == [False, False, True]
    batches = TrainBatches(CombinedLoader((x for x in range(9)), "max_size_cycle"), limit=2, ranks=Ending(9))
    assert [is_last for _, _, is_last in batches] == [False, True]
    batches = TrainBatches(CombinedLoader((x for x in range(9)), "max_size_cycle"), ranks=Ending(0))
    with pytest.warns(UserWarning, match="after 0 batches"):
        assert list(batches) == []


@pytest.mark.filterwarnings("ignore:To go on where the checkpoint was taken")
def test_the_batch_that_was_lost_at_the_end_counts_as_read():
    def stream() -> Any:
        return CombinedLoader((x for x in range(9)), "max_size_cycle")

    batches = TrainBatches(stream(), ranks=Ending(3))
    with pytest.warns(UserWarning, match="after 3 batches"):
        list(batches)
    batches.set_epoch(1)
    resumed = TrainBatches(stream(), ranks=Ending(99))
    resumed.load_state_dict(batches.state_dict())
    resumed.set_epoch(1)
    assert next(iter(resumed))[0] == 4


# ---- Fabric


def test_fabric_agrees_on_the_order_in_every_pass():
    def run(ranks: FakeRanks) -> Any:
        loader = shard_for_fabric(DataLoader(range(7), 2, shuffle=True), ranks)
        return [[batch.tolist() for batch in loader] for _ in range(2)]

    with own_random_state(1):
        alone = [[b.tolist() for b in loader] for loader in [DataLoader(range(7), 4, shuffle=True)] for _ in range(2)]
    ranks = run_as_ranks(run, 2, seeds=[1, 2])

    assert ranks == [[[batch[rank::2] for batch in epoch] for epoch in alone] for rank in range(2)]


def test_fabric_refuses_by_value_error():
    with pytest.raises(ValueError, match="fulmen_sharded"):
        shard_for_fabric(DataLoader(Stream()), FakeRanks(0, 2, []))
    loader = DataLoader(Stream())
    assert shard_for_fabric(loader, FakeRanks(0, 1, [])) is loader


def test_loaders_that_are_not_divided_by_us_have_no_global_order():
    batches = EvalBatches(CombinedLoader([range(3)], "sequential"), [3], ranks=FakeRanks(1, 2, []))
    assert batches.shards == [None]
    assert batches.global_batch_idx(2) == 2
    assert not batches.is_sharded
