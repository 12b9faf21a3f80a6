"""`WandbLogger`: what is special about it; the rest is in the contract suite. Needs no package but for real runs."""

from __future__ import annotations

import pytest
import torch

from fulmen.loggers import WandbLogger
from fulmen.utilities.exceptions import MisconfigurationException
from tests.loggers.back_ends.wandb import BackEndOfLogger

pytest.importorskip("wandb")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]


@pytest.fixture
def back_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = BackEndOfLogger(tmp_path, monkeypatch)
    yield made
    made.tear_down()


def test_project_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")

    assert WandbLogger(save_dir=tmp_path).name == "mine"
    assert WandbLogger(save_dir=tmp_path, project="other").name == "other"
    assert WandbLogger(save_dir=tmp_path, version="abc").version == "abc"
    assert WandbLogger(save_dir="x", dir=tmp_path).save_dir == str(tmp_path)


def test_offline_runs_upload_no_checkpoints():
    with pytest.raises(MisconfigurationException, match=r"log_model=True, offline=True.*WANDB_MODE"):
        WandbLogger(offline=True, log_model=True)


def test_run_in_progress_is_taken_with_a_warning(back_end):
    import wandb

    run = wandb.init(project="p", dir=back_end.folder)
    logger = back_end.make()
    with pytest.warns(UserWarning, match="in progress.*wandb.finish"):
        assert logger.experiment is run
    back_end.close(logger)


def test_run_that_is_handed_over_is_used(back_end):
    import wandb

    run = wandb.init(project="p", dir=back_end.folder)
    logger = WandbLogger(save_dir=back_end.folder, experiment=run)
    logger.log_metrics({"loss": 1.0}, step=4)
    back_end.close(logger)

    assert logger.version == run.id
    assert back_end.metrics(logger) == {"loss": [(4, 1.0)]}


def test_options_of_images_are_one_per_image(back_end):
    logger = back_end.make()
    with pytest.raises(ValueError, match="2 items are logged as 'x', but `caption` has 1"):
        logger.log_image("x", [torch.zeros(3, 4, 4)] * 2, caption=["one"])
    with pytest.raises(TypeError, match=r"Put it into a list"):
        logger.log_image("x", torch.zeros(3, 4, 4))


def test_gradients_of_a_watched_model_are_logged(back_end):
    logger, model = back_end.make(), torch.nn.Linear(2, 1)
    logger.watch(model, log_freq=1, log_graph=False)
    model(torch.ones(1, 2)).sum().backward()
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.experiment.unwatch(model)
    back_end.close(logger)

    assert any("gradients/weight" in row for row in back_end._rows(logger))
