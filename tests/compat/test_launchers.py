from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Trainer
from fulmen.compat.launchers import MultiProcessingLauncher, SubprocessScriptLauncher
from fulmen.demos import BoringModel
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.launchers import multiprocessing, subprocess_script
from tests.support import quiet


class _Counter:
    """Stands where a Trainer does."""

    count = 0


class _Counting(MultiProcessingLauncher):
    """A launcher of a user, which brings back a count."""

    def get_extra_results(self, trainer: Any) -> dict[str, Any]:
        return {"count": trainer.count, "process": os.getpid()}

    def update_main_process_results(self, trainer: Any, extra: dict[str, Any]) -> None:
        trainer.count, trainer.process = extra["count"], extra["process"]


def _count(counter: Any, by: int) -> str:
    counter.count += by
    return "done"


@pytest.mark.distributed
def test_hooks_bring_back_what_the_trainer_of_rank_0_became() -> None:
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment())
    counter: Any = _Counter()
    result = _Counting(strategy, start_method="fork").launch(_count, counter, by=2, trainer=counter)

    assert (result, counter.count) == ("done", 2)
    assert counter.process != os.getpid()


def test_state_of_a_trainer_is_what_comes_back(tmp_path: Path) -> None:
    trainer, model = Trainer(**quiet(tmp_path, max_epochs=1, limit_train_batches=2)), BoringModel()
    trainer.fit(model)
    launcher = MultiProcessingLauncher(DDPStrategy(), start_method="fork")
    extra = launcher.get_extra_results(trainer)
    bias = extra["state_dict"]["layer.bias"].clone()
    with torch.no_grad():
        model.layer.bias.zero_()
    extra["state_dict"]["layer.bias"] = bias
    launcher.update_main_process_results(trainer, extra)

    assert torch.equal(model.layer.bias, bias)


def test_a_launcher_without_a_strategy_runs_in_processes_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    launcher = SubprocessScriptLauncher(TorchElasticEnvironment(), num_processes=2, num_nodes=1)
    counter: Any = _Counter()

    assert launcher.launch(_count, counter, by=3, trainer=counter) == "done"
    assert (counter.count, launcher.procs, launcher.is_interactive_compatible) == (3, [], False)


def test_launchers_that_a_strategy_made_are_of_these_classes() -> None:
    strategy: Any = DDPStrategy()

    assert isinstance(multiprocessing.MultiProcessingLauncher(strategy, "fork"), MultiProcessingLauncher)
    assert isinstance(subprocess_script.SubprocessScriptLauncher(strategy), SubprocessScriptLauncher)
    assert not isinstance(multiprocessing.MultiProcessingLauncher(strategy, "fork"), _Counting)
