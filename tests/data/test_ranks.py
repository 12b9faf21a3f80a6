"""Loading data on two real processes."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import EvalBatches, TrainBatches
from fulmen.engine.loaders import eval_num_batches, prepare_eval_loaders, prepare_train_loaders
from fulmen.engine.resolve import resolve_strategy
from tests.distributed_harness import run_ranks

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader
IterableDataset: Any = torch.utils.data.IterableDataset


def _join_ranks() -> Any:
    """The strategy of this process, together with the other one."""
    strategy = resolve_strategy(
        accelerator="cpu", strategy="ddp", devices=2, num_nodes=1, precision=None, plugins=None, sync_batchnorm=False
    )
    strategy.setup_environment()
    return strategy


class HiddenGenerator:
    """A sampler of the user whose random numbers nobody else sees, different on each rank."""

    def __init__(self, length: int, rank: int) -> None:
        self.length, self.random = length, random.Random(rank)

    def __iter__(self):
        order = list(range(self.length))
        self.random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return self.length


class Stream(IterableDataset):
    """Shards of different length."""

    def set_shard(self, rank: int, num_replicas: int) -> None:
        self.length = 6 + 3 * rank

    def __iter__(self):
        return iter(range(self.length))


def _train(loader: Any, ranks: Any, epochs: int = 2) -> list[list[list[int]]]:
    combined = CombinedLoader(loader, "max_size_cycle")
    prepare_train_loaders(combined, overfit=False, ranks=ranks)
    batches = TrainBatches(combined, ranks=ranks)
    seen = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        seen.append([batch.tolist() for batch, _, _ in batches])
        if ranks is not None and ranks.global_rank == 0:
            next(iter(combined.flattened[0]))  # as a callback might do to show a batch: nobody else takes part
            torch.manual_seed(epoch)
        elif ranks is None:
            torch.manual_seed(epoch)
    return seen


def _evaluate(loaders: list[Any], ranks: Any) -> Any:
    combined = CombinedLoader(loaders, "sequential")
    prepare_eval_loaders(combined, stage="val", ranks=ranks)
    batches = EvalBatches(combined, eval_num_batches(combined, 1.0, name="limit_val_batches"), ranks=ranks)
    seen = [(j, batches.global_batch_idx(i, j), batch.tolist()) for batch, i, j in batches]
    return batches.num_batches, batches.global_num_batches, seen


def _everything_on_two_ranks() -> dict[str, Any]:
    warnings.simplefilter("ignore")
    ranks = _join_ranks()
    try:
        torch.manual_seed(100 * ranks.global_rank)
        random.seed(ranks.global_rank)
        shuffled = _train(DataLoader(range(21), 2, shuffle=True), ranks)
        torch.manual_seed(100 * ranks.global_rank)
        evaluated = _evaluate([DataLoader(range(n), 2, shuffle=True) for n in (7, 1, 8)], ranks)
        hidden = _train(DataLoader(range(8), 2, sampler=HiddenGenerator(8, ranks.global_rank)), ranks, epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            streamed = _train(DataLoader(Stream(), 2), ranks)
        own = DataLoader(range(4 + 2 * ranks.global_rank), 2)
        combined = CombinedLoader(own, "max_size_cycle")
        prepare_train_loaders(combined, overfit=False, ranks=ranks, shard=False)
        return {
            "shuffled": shuffled,
            "evaluated": evaluated,
            "hidden": hidden,
            "streamed": streamed,
            "warned": sum("ended after" in str(each.message) for each in caught),
            "num_uneven": TrainBatches(combined, ranks=ranks).num_batches,
        }
    finally:
        ranks.teardown()
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*shuffling enabled", "ignore:.*does not have many workers")
def test_two_ranks_see_together_what_one_process_sees():
    torch.manual_seed(0)
    alone = _train(DataLoader(range(21), 4, shuffle=True), None)
    torch.manual_seed(0)
    evaluated = _evaluate([DataLoader(range(n), 2, shuffle=True) for n in (7, 1, 8)], None)[2]

    results = run_ranks(_everything_on_two_ranks)

    for rank, result in enumerate(results):
        assert result["shuffled"] == [[batch[rank::2] or batch[:1] for batch in epoch] for epoch in alone]
        assert result["evaluated"][1] == [[2, 2], [1, 0], [2, 2]]
        assert result["evaluated"][0] == [each[rank] for each in result["evaluated"][1]]
        assert result["streamed"] == [[[0, 1], [2, 3], [4, 5]]] * 2
        assert result["num_uneven"] == 2
    assert [result["warned"] for result in results] == [1, 0]  # rank 0 speaks
    seen = sorted(results[0]["evaluated"][2] + results[1]["evaluated"][2])
    assert [(j, i) for j, i, _ in seen] == [(j, i) for j, i, _ in evaluated]
    for j, n in enumerate((7, 1, 8)):
        assert sorted(x for k, _, batch in seen if k == j for x in batch) == list(range(n))
    assert sorted(x for result in results for batch in result["hidden"][0] for x in batch) == list(range(8))
