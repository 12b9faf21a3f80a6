"""Callbacks that change weights, on two ranks: all ranks end with the same weights, also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import Callback
from fulmen.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    KnowledgeDistillation,
    ModelPruning,
    StochasticWeightAveraging,
)
from tests.callbacks.small_digits import Reader, SaveAt, differences, fit, seeded
from tests.distributed_harness import run_all, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_MAX_EPOCHS = 4
_SAVED_AT = 5  # 2 steps an epoch


def callback_named(name: str) -> Any:
    torch.manual_seed(8)
    return {
        "ema": lambda: EMAWeightAveraging(decay=0.7),
        "swa": lambda: StochasticWeightAveraging(0.02, 2, annealing_epochs=2),
        "finetuning": lambda: BackboneFinetuning(1),
        "frozen": lambda: BackboneFinetuning(2, train_bn=False),
        "random pruning": lambda: ModelPruning("random_unstructured", resample_parameters=True, amount=0.2),
        "distillation": lambda: KnowledgeDistillation(Reader(width=32)),
    }[name]()


def train_and_resume(folder: str, name: str) -> dict[str, Any]:
    """Train whole, and again from a file in mid-epoch; return both weights, and the metrics of the last validation."""
    path = Path(folder) / "saved.ckpt"
    settings: dict[str, Any] = {"devices": 2, "strategy": "ddp", "max_epochs": _MAX_EPOCHS}
    whole, resumed = seeded(Reader), seeded(Reader, seed=99)
    save = SaveAt("on_train_batch_end", _SAVED_AT, path)
    first = fit(whole, Path(folder), callback_named(name), save, **settings)
    second = fit(resumed, Path(folder), callback_named(name), ckpt_path=path, **settings)
    return {
        "whole": _plain(whole.state_dict()),
        "resumed": _plain(resumed.state_dict()),
        "losses": (whole.losses[_SAVED_AT:], resumed.losses),
        "metrics": [{key: float(value) for key, value in each.callback_metrics.items()} for each in (first, second)],
    }


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


NAMES = ["ema", "swa", "finetuning", "frozen", "random pruning", "distillation"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks have after each run, all played in the same processes."""
    jobs = [(train_and_resume, (str(tmp_path_factory.mktemp("run")), name)) for name in NAMES]
    of_ranks = run_ranks(run_all, 2, jobs, timeout=250)
    return dict(zip(NAMES, zip(*of_ranks, strict=True), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_and_a_resumed_run_is_the_same_run(name: str, results: dict[str, Any]) -> None:
    first, second = results[name]
    parameters = [key for key, _ in Reader().named_parameters()]

    assert [key for key in parameters if not torch.equal(first["whole"][key], second["whole"][key])] == []
    for rank in (first, second):
        assert rank["losses"][1] == rank["losses"][0]
        assert [key for key in parameters if not torch.equal(rank["resumed"][key], rank["whole"][key])] == []
        assert rank["metrics"][1] == rank["metrics"][0]
    assert differences(first["resumed"], first["whole"]) == []


@pytest.mark.parametrize(
    "callback", [BackboneFinetuning(1), StochasticWeightAveraging(1e-2, 0.5)], ids=["finetuning", "swa"]
)
def test_optimizers_that_a_callback_has_changed_come_back_from_spawned_processes(
    callback: Callback, tmp_path: Path
) -> None:
    trainer = fit(Reader(), tmp_path, callback, max_epochs=2, devices=2, strategy="ddp_spawn")
    groups, schedulers = trainer.optimizers[0].param_groups, trainer.lr_scheduler_configs

    assert trainer.state.finished
    if isinstance(callback, BackboneFinetuning):
        assert groups[-1]["lr"] == callback.previous_backbone_lr
    else:
        assert [type(config.scheduler).__name__ for config in schedulers] == ["SWALR"]
