from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import scenes
from tests.distributed_harness import run_ranks

TIMEOUT_S = 100


def on_two_ranks(scene: Any, *args: Any) -> list[Any]:
    return run_ranks(scene, 2, *args, timeout=TIMEOUT_S)


@pytest.mark.parametrize("size", [18, 3])  # 3: rank 1 has no batch at all
def test_metric_objects_see_every_sample_once(size: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scenes.evaluate_with_metric_objects(str(tmp_path), size)

    assert on_two_ranks(scenes.evaluate_with_metric_objects, str(tmp_path), size) == [expected, expected]
    assert expected["seen"] == list(range(size))


def test_steps_that_communicate_do_not_hang_on_uneven_ranks(tmp_path: Path) -> None:
    first, second = on_two_ranks(scenes.evaluate_with_communicating_steps, str(tmp_path))

    assert first["results"] == second["results"] == [{"count": 20.0}]
    assert first["shapes"] == second["shapes"] == [(2,)] * 3


def test_predictions_come_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    expected = [[batch.tolist() for batch in loader] for loader in scenes.predict_two_loaders(str(tmp_path))]

    for predictions in on_two_ranks(scenes.predict_two_loaders, str(tmp_path)):
        assert [[batch.tolist() for batch in loader] for loader in predictions] == expected


def test_resumed_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for result in on_two_ranks(scenes.train_and_resume, str(tmp_path)):
        assert result["same"]
        assert result["resumed"] == result["losses"][-len(result["resumed"]) :]
        assert len(result["resumed"]) == 5


def test_monitors_decide_alike_on_a_metric_of_one_rank(tmp_path: Path) -> None:
    results = on_two_ranks(scenes.monitor_and_stop, str(tmp_path))

    assert results[0] == results[1]
    assert results[0]["epochs"] == 2
    assert Path(results[0]["best"]).name == "epoch=0.ckpt"
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["epoch=0.ckpt", "last.ckpt"]


def test_logging_on_one_rank_does_not_hang(tmp_path: Path) -> None:
    first, second = on_two_ranks(scenes.log_on_one_rank, str(tmp_path))

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


def test_a_signal_to_one_rank_ends_all_at_the_same_step(tmp_path: Path) -> None:
    first, second = on_two_ranks(scenes.get_signal_on_one_rank, str(tmp_path))

    assert first == second
    assert first["code"] == 128 + 15
    assert 5 <= first["step"] < first["batches"]


def test_streams_of_different_length_end_together(tmp_path: Path) -> None:
    first, second = on_two_ranks(scenes.train_on_uneven_streams, str(tmp_path))

    assert first == second
    assert first["steps"] == 4  # 3 batches each epoch, in windows of 2
