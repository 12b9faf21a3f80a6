from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from fulmen import Trainer, seed_everything
from fulmen.tuner import Tuner
from tests.distributed_harness import run_all, run_ranks
from tests.support import quiet
from tests.tuner.models import Model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def search_batch_size(folder: str, mode: str, method: str) -> dict[str, Any]:
    """Memory of rank 1 is smaller than that of rank 0."""
    seed_everything(3, verbose=False)
    rank = int(os.environ["RANK"])
    model: Any = Model(num_samples=200)
    model.limit = (50, 13)[rank]
    model.error = lambda: torch.OutOfMemoryError("CUDA out of memory.")
    trainer = Trainer(**quiet(folder, devices=2, strategy="ddp"))  # type: ignore[arg-type]  # a str will do
    best = Tuner(trainer).scale_batch_size(model, mode=mode, margin=0, method=method)  # type: ignore[arg-type]  # as above
    model.train_dataloader = lambda: model._loader()
    trainer.fit(model)
    return {"best": best, "largest": max(model.sizes), "weights": model.net[0].weight.tolist()}


def search_learning_rate(folder: str, search: bool) -> dict[str, Any]:
    seed_everything(3, verbose=False)
    model = Model(num_samples=64)
    trainer = Trainer(**quiet(folder, devices=2, strategy="ddp"))  # type: ignore[arg-type]  # a str will do
    results = None
    if search:
        finder = Tuner(trainer).lr_find(model, update_attr=False, num_training=12)
        results = None if finder is None else finder.results
    trainer.fit(model)
    return {"results": results, "losses": model.losses}


def test_ranks_agree_on_what_they_find_and_go_on_as_if_they_had_not_searched(tmp_path):
    jobs: list[Any] = [
        (search_batch_size, (str(tmp_path), "binsearch", "fit")),
        (search_batch_size, (str(tmp_path), "power", "validate")),
        (search_learning_rate, (str(tmp_path), True)),
        (search_learning_rate, (str(tmp_path), False)),
    ]
    first, second = run_ranks(run_all, 2, jobs, timeout=200)

    assert first[0]["best"] == second[0]["best"] == 13
    assert first[0]["largest"] == second[0]["largest"] == 13
    assert first[0]["weights"] == second[0]["weights"]
    assert first[1]["best"] == second[1]["best"] == 8
    assert first[2]["results"] == second[2]["results"]
    assert (first[2]["losses"], second[2]["losses"]) == (first[3]["losses"], second[3]["losses"])


@pytest.mark.slow
def test_result_comes_back_from_spawned_processes(tmp_path):
    model = Model(num_samples=40)
    trainer = Trainer(**quiet(tmp_path, devices=2, strategy="ddp_fork"))
    before = [parameter.tolist() for parameter in model.parameters()]
    best = Tuner(trainer).scale_batch_size(model)

    assert best == model.batch_size == 20  # of each rank
    assert [parameter.tolist() for parameter in model.parameters()] == before
