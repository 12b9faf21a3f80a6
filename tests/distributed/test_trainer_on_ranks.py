from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

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


def test_should_stop_on_one_rank_ends_in_an_error_that_names_it(tmp_path: Path) -> None:
    messages = on_two_ranks(scenes.stop_on_one_rank, str(tmp_path))

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
