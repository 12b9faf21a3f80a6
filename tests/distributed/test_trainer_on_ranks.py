from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.loggers import CSVLogger
from tests.distributed import scenes
from tests.distributed_harness import run_all, run_ranks

TIMEOUT_S = 100
pytestmark = pytest.mark.timeout(300)


def on_two_ranks(scene: Any, *args: Any) -> list[Any]:
    return run_ranks(scene, 2, *args, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What two ranks return for the scenes that go well, played in the same processes one after the other."""
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "metric objects, 18": (scenes.evaluate_with_metric_objects, (18,)),
        "metric objects, 3": (scenes.evaluate_with_metric_objects, (3,)),  # rank 1 has no batch at all
        "communicating steps": (scenes.evaluate_with_communicating_steps, ()),
        "predictions": (scenes.predict_two_loaders, ()),
        "resumed": (scenes.train_and_resume, ()),
        "monitors": (scenes.monitor_and_stop, ()),
        "log on one rank": (scenes.log_on_one_rank, ()),
        "streams": (scenes.train_on_uneven_streams, ()),
        "evaluated streams": (scenes.evaluate_uneven_streams, ()),
        "clocks": (scenes.validate_by_clocks_that_differ, ()),
        "own values": (scenes.decide_by_values_of_each_rank, ()),
        "line search": (scenes.train_with_line_search, ()),
        "file of others": (scenes.resume_from_a_file_of_others, ()),
        "signal": (scenes.get_signal_on_one_rank, ()),
    }
    jobs = [(scene, (str(tmp_path_factory.mktemp("run")), *args)) for scene, args in calls.values()]
    return dict(zip(calls, zip(*run_ranks(run_all, 2, jobs, timeout=200), strict=True), strict=True))


@pytest.mark.parametrize("size", [18, 3])
def test_metric_objects_see_every_sample_once(size: int, tmp_path: Path, played: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scenes.evaluate_with_metric_objects(str(tmp_path), size)

    assert played[f"metric objects, {size}"] == (expected, expected)
    assert expected["seen"] == list(range(size))


def test_steps_that_communicate_do_not_hang_on_uneven_ranks(played: Any) -> None:
    first, second = played["communicating steps"]

    assert first["results"] == second["results"] == [{"count": 20.0}]
    assert first["shapes"] == second["shapes"] == [(2,)] * 3


def test_predictions_come_in_the_order_of_the_dataset(tmp_path: Path, played: Any) -> None:
    expected = [[batch.tolist() for batch in loader] for loader in scenes.predict_two_loaders(str(tmp_path))]

    for predictions in played["predictions"]:
        assert [[batch.tolist() for batch in loader] for loader in predictions] == expected


def test_resumed_training_is_the_same_to_the_bit(played: Any) -> None:
    for result in played["resumed"]:
        assert result["same"]
        assert result["resumed"] == result["losses"][-len(result["resumed"]) :]
        assert len(result["resumed"]) == 5


def test_monitors_decide_alike_on_a_metric_of_one_rank(played: Any) -> None:
    results = played["monitors"]

    assert results[0] == results[1]
    assert results[0]["epochs"] == 2
    assert Path(results[0]["best"]).name == "epoch=0.ckpt"
    assert sorted(path.name for path in Path(results[0]["best"]).parent.iterdir()) == ["epoch=0.ckpt", "last.ckpt"]


def test_logging_on_one_rank_does_not_hang(played: Any) -> None:
    first, second = played["log on one rank"]

    assert first["zero_epoch"] == second["zero_epoch"] == 5.0
    assert first["rank_epoch"] == second["rank_epoch"] == 0.5
    assert first["rank_step"] == second["rank_step"] == 0.5


def test_should_stop_on_one_rank_ends_in_an_error_that_names_it(tmp_path: Path, capfd: Any) -> None:
    try:
        messages = on_two_ranks(scenes.stop_on_one_rank, str(tmp_path))
    except RuntimeError:  # the other was ended where it waited, and what it printed says why
        messages = [capfd.readouterr().err]

    assert any("Rank 1 of 2 stopped training" in message for message in messages), messages
    assert any("reduce_boolean_decision" in message for message in messages)


def test_skipping_a_batch_on_one_rank_is_an_error(tmp_path: Path) -> None:
    messages = on_two_ranks(scenes.skip_on_one_rank, str(tmp_path))

    assert "returned None on batch 0 on rank 1 of 2" in messages[1]
    assert "rank 1" in messages[0].lower()


def test_a_signal_to_one_rank_ends_all_at_the_same_step(played: Any) -> None:
    first, second = played["signal"]

    assert first == second
    assert first["code"] == 128 + 15
    assert 5 <= first["step"] < first["batches"]


def test_streams_of_different_length_end_together(played: Any) -> None:
    first, second = played["streams"]

    assert first == second
    assert first["steps"] == 4  # 3 batches each epoch, in windows of 2


def test_evaluated_streams_may_end_at_different_times(played: Any) -> None:
    assert played["evaluated streams"] == ([{"count": 32.0}], [{"count": 32.0}])  # 12 and 20


def test_the_clock_of_one_rank_decides_when_to_validate(played: Any) -> None:
    assert played["clocks"] == ([], [])


def test_ranks_decide_alike_by_values_that_each_has_logged_for_itself(played: Any) -> None:
    first, second = played["own values"]

    assert first == second
    assert first["score"] == 10.0  # the mean of both ranks
    assert first["total"] == 2.0  # the sum over both, taken once
    assert first["lr"] == pytest.approx(0.05 * 0.1**2)
    assert first["named"] == "name=0-v2.ckpt"


def test_a_line_search_takes_the_same_steps_on_all_ranks(played: Any) -> None:
    first, second = played["line search"]

    assert isinstance(first, float)
    assert first == second


def test_a_checkpoint_without_our_own_part_resumes_on_all_ranks(played: Any) -> None:
    assert played["file of others"] == (4, 4)


def test_a_run_in_forked_processes_brings_back_what_only_they_have_made(tmp_path: Path) -> None:
    class Late(scenes.LogsInValidation):
        def configure_model(self) -> None:
            if not hasattr(self, "late"):
                self.late = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.late(self.layer(batch[0] / 10)).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            steps = int(self.trainer.estimated_stepping_batches)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def configure_callbacks(self) -> Any:
            return [EarlyStopping("score", patience=9)]

    best = ModelCheckpoint(monitor="score", save_last=True)
    run = scenes.trainer(
        str(tmp_path), devices=2, strategy="ddp_fork", max_epochs=2, callbacks=[best], enable_checkpointing=True,
        logger=CSVLogger(tmp_path), log_every_n_steps=1,
    )  # fmt: skip
    model = Late()
    run.fit(model, DataLoader(scenes.numbers(16), 4), DataLoader(scenes.numbers(8), 4))
    run.save_checkpoint(tmp_path / "after.ckpt")

    assert run.num_training_batches == run.estimated_stepping_batches // 2 == 2
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == run.global_step == 4
    assert {name for name, _ in model.named_parameters()} >= {"layer.weight", "late.weight"}
    assert Path(best.best_model_path).is_file()
    assert Path(best.last_model_path).name == "last.ckpt"
    assert best.best_k_models.keys() == {best.best_model_path}
    assert Path(run.log_dir or "").name == "version_0"  # the folder of the run, not the next free one
    assert Path(run.log_dir or "", "metrics.csv").is_file()
    assert torch.load(tmp_path / "after.ckpt")["global_step"] == 4
