"""`MLFlowLogger`: what is special about it; the rest is in the contract suite."""

from __future__ import annotations

import pytest

from fulmen.loggers import MLFlowLogger
from tests.loggers.back_ends.mlflow import BackEndOfLogger

pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture
def back_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return BackEndOfLogger(tmp_path, monkeypatch)


def test_experiment_is_found_by_its_name_or_made(back_end):
    first, second = back_end.make(experiment_name="a"), back_end.make(experiment_name="a")

    assert first.experiment_id == second.experiment_id
    assert first.run_id != second.run_id
    assert (first.name, first.version) == (first.experiment_id, first.run_id)


def test_names_and_long_values_are_cut_to_what_mlflow_takes(back_end):
    logger = back_end.make()
    with pytest.warns(UserWarning, match=r"'loss@\[1\]' is logged as 'loss1'"):
        logger.log_metrics({"loss@[1]": 1.0}, step=0)
    with pytest.warns(UserWarning, match="leaves out the metric 'word'"):
        logger.log_metrics({"word": "text"}, step=0)
    logger.log_hyperparams({"long": "x" * 300, **{f"p{i}": i for i in range(150)}})
    back_end.close(logger)

    assert back_end.metrics(logger) == {"loss1": [(0, 1.0)]}
    assert len(back_end.hyperparameters(logger)) == 151
    assert back_end.hyperparameters(logger)["long"] == "x" * 250


def test_changed_parameters_of_a_resumed_run_are_named_and_the_new_ones_kept(back_end):
    first = back_end.make()
    first.log_hyperparams({"lr": 0.1})
    first.finalize("success")
    second = back_end.again(first)
    with pytest.warns(UserWarning, match=r"earlier values of the parameters \['lr'\]"):
        second.log_hyperparams({"lr": 0.2, "more": 1})
    back_end.close(second)

    assert back_end.hyperparameters(second) == {"lr": "0.1", "more": "1"}


def test_asking_for_the_run_does_not_open_it_again(back_end):
    logger = back_end.make(tags={"team": "blue"}, run_name="mine")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.finalize("failed")
    run = back_end._client().get_run(logger.version)

    assert back_end.status(logger) == "failed"
    assert run.data.tags["team"] == "blue"
    assert run.info.run_name == "mine"
    assert logger.save_dir == str(back_end.folder / "runs")


def test_values_sent_in_the_background_are_there_after_the_run(back_end):
    logger = back_end.make(synchronous=False)
    for step in range(20):
        logger.log_metrics({"loss": float(step)}, step=step)
    back_end.close(logger)

    assert sorted(back_end.metrics(logger)["loss"]) == [(step, float(step)) for step in range(20)]


def test_server_has_no_folder():
    assert MLFlowLogger(tracking_uri="http://127.0.0.1:1").save_dir is None
    assert MLFlowLogger(tracking_uri="file:./runs").save_dir == "./runs"
