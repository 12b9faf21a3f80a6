"""What packages use of Lightning though it begins with `_`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.compat.evaluation_loop import EvaluationLoop
from fulmen.compat.saved_files import scan_checkpoints
from fulmen.compat.semi_private import ON_TRAINER, AcceleratorConnector, attach
from fulmen.compat.wrapping_io import WrappingCheckpointIO
from fulmen.demos.boring_classes import BoringModel
from fulmen.trainer.states import RunningStage, TrainerFn
from tests.support import quiet, run_python


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ON_TRAINER:
        monkeypatch.setattr(Trainer, name, None, raising=False)  # so that it is taken away again
        delattr(Trainer, name)
    attach()
    return Trainer


def _short(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return quiet(tmp_path, limit_train_batches=2, limit_val_batches=1, **changes)


def test_a_trainer_tells_whether_it_is_distributed(attached: Any, tmp_path: Path) -> None:
    one, two = attached(**quiet(tmp_path)), attached(**quiet(tmp_path, devices=2, strategy="ddp"))

    assert one._accelerator_connector.is_distributed is False
    assert two._accelerator_connector.is_distributed is True
    assert two._accelerator_connector.cluster_environment is two.strategy.cluster_environment
    assert one._accelerator_connector.checkpoint_io is one.strategy.checkpoint_io


def test_a_trainer_dumps_a_checkpoint_without_writing_it(attached: Any, tmp_path: Path) -> None:
    trainer = attached(**_short(tmp_path))
    trainer.fit(BoringModel())
    whole, weights = (trainer._checkpoint_connector.dump_checkpoint(weights_only) for weights_only in (False, True))

    assert whole["global_step"] == 2
    assert "optimizer_states" in whole
    assert "optimizer_states" not in weights
    assert list(weights["state_dict"]) == list(BoringModel().state_dict())


def test_arguments_select_hardware_without_a_trainer() -> None:
    connector = AcceleratorConnector(accelerator="auto" if not torch.cuda.is_available() else "cpu", devices=2)

    assert (connector._accelerator_flag, connector._devices_flag, connector.is_distributed) == ("cpu", 2, True)
    assert AcceleratorConnector(accelerator="cpu")._devices_flag == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import lightning as L\nprint(hasattr(L.Trainer, '_checkpoint_connector'))",
        "from fulmen import Trainer\nimport pytorch_lightning\nprint(hasattr(Trainer, '_checkpoint_connector'))",
    ],
)
def test_they_are_there_only_through_the_layer(code: str) -> None:
    through = run_python("-c", f"import fulmen.compat\nfulmen.compat.install()\n{code}")

    assert through.stdout.strip() == "True", through.stderr


@pytest.mark.slow
def test_without_the_layer_the_trainer_has_none_of_them() -> None:
    code = f"from fulmen import Trainer; print([name for name in {list(ON_TRAINER)} if hasattr(Trainer, name)])"

    assert run_python("-c", code).stdout.strip() == "[]"


def test_a_module_whose_trainer_was_taken_away_trains_again(tmp_path: Path) -> None:
    model = BoringModel()
    Trainer(**_short(tmp_path)).fit(model)
    model.__dict__.pop("_trainer")  # as neuralforecast does between runs
    trainer = Trainer(**_short(tmp_path))
    trainer.fit(model)

    assert model.trainer is trainer


# ---- files
def test_files_of_a_callback_are_listed_until_they_are_known(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_last=True)
    Trainer(**_short(tmp_path, callbacks=[saver], enable_checkpointing=True)).fit(BoringModel())
    for number, name in enumerate(("step=1.ckpt", "step=2.ckpt", "last.ckpt")):
        os.utime(tmp_path / name, (number, number))
    found = scan_checkpoints(saver, {})
    known = {path: time for time, path, _, _ in found[:-1]}

    assert {Path(path).name for _, path, _, _ in found} == {"step=2.ckpt", "last.ckpt"}
    assert [Path(path).name for _, path, _, _ in found] == ["step=2.ckpt", "last.ckpt"]
    assert found[-1][3] == "latest"
    assert scan_checkpoints(saver, known) == found[-1:]
    assert scan_checkpoints(saver, {path: time + 1 for time, path, _, _ in found}) == []


class Counting(WrappingCheckpointIO):
    """As packages derive theirs: they override one method and pass the rest on."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[str] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any | None = None) -> None:
        self.saved.append(Path(path).name)
        super().save_checkpoint(checkpoint, path, storage_options)


def test_a_derived_checkpoint_io_writes_reads_and_removes(tmp_path: Path) -> None:
    plugin = Counting()
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=1)
    trainer = Trainer(**_short(tmp_path, callbacks=[saver], enable_checkpointing=True, plugins=[plugin]))
    trainer.fit(BoringModel())

    assert plugin.saved == ["step=1.ckpt", "step=2.ckpt"]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"]
    assert plugin.load_checkpoint(tmp_path / "step=2.ckpt")["global_step"] == 2


class Shown(EvaluationLoop):
    """As packages derive theirs: the results in a form of their own."""

    @staticmethod
    def _print_results(results: list[dict[str, Any]], stage: str) -> None:
        print(f"{stage}: {sorted(results[0])}")  # noqa: T201 - what a package does


class Watching(BoringModel):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.is_inference = torch.is_inference_mode_enabled()
        self.log("x", 1.0)


def test_a_derived_evaluation_loop_runs_and_shows_the_results(tmp_path: Path, capsys: Any) -> None:
    trainer, model = Trainer(**_short(tmp_path)), Watching()
    usual = trainer.test_loop
    trainer.test_loop = Shown(trainer, TrainerFn.TESTING, RunningStage.TESTING, inference_mode=False)
    results = trainer.test(model)

    assert results == [{"x": 1.0}]
    assert capsys.readouterr().out == "test: ['x']\n"
    assert (model.is_inference, trainer.inference_mode) == (False, True)
    assert isinstance(usual, EvaluationLoop)
    assert not isinstance(usual, Shown)
    trainer.test_loop = Shown(trainer, TrainerFn.TESTING, RunningStage.TESTING, verbose=False)
    trainer.test(model)
    assert (capsys.readouterr().out, model.is_inference) == ("", True)
