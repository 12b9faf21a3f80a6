"""What every logger does, read back from the tracker that it writes to."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.loggers.logger import DummyExperiment
from fulmen.utilities.rank_zero import rank_zero_only
from tests.loggers.back_ends.adapter import KINDS, all_back_ends
from tests.support import quiet

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:The checkpoint folder",
        "ignore:.*holds the metrics of an earlier",
        "ignore::DeprecationWarning",  # the packages of trackers, against those they need
        "ignore::FutureWarning",
        "ignore::ResourceWarning",
    ),
]

ESSENTIAL = (  # for back ends that take long to start
    "test_metrics_stand_at_their_steps",
    "test_nested_hyperparameters_are_kept",
    "test_media_are_kept_or_refused",
    "test_several_loggers_get_the_rows_of_a_run_of_the_trainer",
    "test_failure_of_a_run_is_told",
    "test_checkpoints_are_kept_as_asked_for",
)


@pytest.fixture(params=all_back_ends())
def back_end(request, tmp_path, monkeypatch):
    if request.param.few and request.node.originalname not in ESSENTIAL:
        pytest.skip("makes no difference to this back end")
    monkeypatch.chdir(tmp_path)
    made = request.param(tmp_path, monkeypatch)
    yield made
    made.tear_down()


def points(back_end, logger):
    return {
        name: [(step, round(value, 5)) for step, value in curve] for name, curve in back_end.metrics(logger).items()
    }


# ---- numbers
def test_metrics_stand_at_their_steps(back_end):
    logger = back_end.make()
    logger.log_metrics({"loss": 3.0, "val/acc": 0.25}, step=0)
    logger.log_metrics({"loss": 2.0}, step=5)
    logger.log_metrics({"loss": 1.0, "late": -1.5}, step=7)
    back_end.close(logger)

    assert points(back_end, logger) == {
        "loss": [(0, 3.0), (5, 2.0), (7, 1.0)],
        "val/acc": [(0, 0.25)],
        "late": [(7, -1.5)],
    }


def test_tensors_and_numpy_scalars_become_numbers(back_end):
    logger = back_end.make()
    logger.log_metrics({"t": torch.tensor(0.5), "one": torch.tensor([3]), "n": np.float32(0.25), "i": 2}, step=1)
    back_end.close(logger)

    assert points(back_end, logger) == {"t": [(1, 0.5)], "one": [(1, 3.0)], "n": [(1, 0.25)], "i": [(1, 2.0)]}


def test_prefix_is_put_in_front(back_end):
    logger = back_end.make(prefix="run")
    logger.log_metrics({"loss": 3.0}, step=2)
    back_end.close(logger)

    assert points(back_end, logger) == {"run-loss": [(2, 3.0)]}


def test_values_that_are_not_finite_and_rows_without_a_step_do_no_harm(back_end):
    logger = back_end.make()
    logger.log_metrics({"bad": float("nan")}, step=0)
    logger.log_metrics({"bad": float("inf")}, step=1)
    logger.log_metrics({"loss": 1.0})
    logger.log_metrics({"loss": 2.0}, step=3)
    back_end.close(logger)

    assert [value for _, value in points(back_end, logger)["loss"]] == [1.0, 2.0]
    assert points(back_end, logger)["loss"][-1] == (3, 2.0)


# ---- hyperparameters
@dataclasses.dataclass
class Augmentation:
    flip: bool = True
    size: int = 32


def test_nested_hyperparameters_are_kept(back_end):
    logger = back_end.make()
    logger.log_hyperparams({"optimizer": {"name": "sgd", "lr": 0.5}, "augmentation": Augmentation(), "epochs": 3})
    back_end.close(logger)

    found = back_end.hyperparameters(logger)
    expected = {"optimizer/name": "sgd", "optimizer/lr": 0.5, "augmentation/size": 32, "epochs": 3}
    assert {name: str(found[name]) for name in expected} == {name: str(value) for name, value in expected.items()}
    if back_end.keeps_booleans:
        assert str(found["augmentation/flip"]) == "True"


@pytest.mark.filterwarnings("ignore:.*holds only the type's name")
def test_hyperparameters_of_any_type_are_taken(back_end):
    logger = back_end.make()
    logger.log_hyperparams(Namespace(lr=0.5, layers=[1, 2], act=torch.nn.ReLU, net=torch.nn.Linear(1, 1), none=None))
    logger.log_hyperparams({"path": Path("data"), "dtype": torch.float16, "empty": {}, "text": "x" * 300})
    back_end.close(logger)

    assert str(back_end.hyperparameters(logger)["lr"]) == "0.5"


# ---- beginning, processes
def test_making_a_logger_writes_nothing(back_end):
    before = sorted(back_end.folder.rglob("*"))
    back_end.make()

    assert sorted(back_end.folder.rglob("*")) == before


def test_missing_package_is_named_with_what_to_install(back_end, monkeypatch):
    if back_end.package is None:
        pytest.skip("needs no package")
    for name in [name for name in sys.modules if name.partition(".")[0] == back_end.package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, back_end.package, None)
    if back_end.package == "tensorboard":
        monkeypatch.setitem(sys.modules, "tensorboardX", None)

    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'fulmen\[{back_end.extra}\]'"):
        back_end.make()


def test_other_ranks_log_nothing(back_end, monkeypatch):
    before = sorted(back_end.folder.rglob("*"))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = back_end.make()
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_hyperparams({"lr": 0.5})
    if "image" in back_end.media:
        logger.log_image("image", [torch.zeros(3, 4, 4)], step=0)
    logger.save()
    logger.finalize("success")

    assert isinstance(logger.experiment, DummyExperiment)
    assert sorted(back_end.folder.rglob("*")) == before


def test_loggers_travel_to_other_processes(back_end):
    fresh = pickle.loads(pickle.dumps(back_end.make()))
    fresh.log_metrics({"loss": 1.0}, step=0)
    back_end.close(fresh)
    pickle.dumps(fresh)

    assert points(back_end, fresh) == {"loss": [(0, 1.0)]}


# ---- resuming
def test_run_is_gone_on_with(back_end):
    if not back_end.continues_runs:
        pytest.skip("the tracker begins a new run each time")
    first = back_end.make()
    first.log_hyperparams({"lr": 0.5})
    first.log_metrics({"loss": 3.0}, step=0)
    back_end.close(first)
    second = back_end.again(first)
    second.log_hyperparams({"lr": 0.5})
    second.log_metrics({"loss": 2.0}, step=1)
    back_end.close(second)

    assert second.version == first.version
    assert points(back_end, second) == {"loss": [(0, 3.0), (1, 2.0)]}


def test_rows_after_a_checkpoint_are_there_once(back_end):
    if not back_end.takes_rows_back:
        pytest.skip("the tracker cannot take rows back, and the logger's docstring says so")
    first = back_end.make()
    first.log_metrics({"loss": 3.0}, step=0)
    first.save()
    position = first.position()
    first.log_metrics({"loss": 9.0}, step=1)
    first.log_metrics({"loss": 9.0, "lost": 1.0}, step=2)
    back_end.close(first)
    second = back_end.again(first)
    second.resume_at(position)
    second.log_metrics({"loss": 2.0}, step=1)
    back_end.close(second)

    assert points(back_end, second) == {"loss": [(0, 3.0), (1, 2.0)]}


# ---- the end
def test_success_is_told(back_end):
    if not back_end.knows_failure:
        pytest.skip("the tracker does not note how a run ended")
    logger = back_end.make()
    logger.log_metrics({"loss": 3.0}, step=0)
    back_end.close(logger)

    assert back_end.status(logger) == "success"


def test_logging_goes_on_after_a_run_as_a_test_follows_training(back_end):
    logger = back_end.make()
    logger.log_metrics({"loss": 3.0}, step=0)
    logger.finalize("success")
    logger.log_metrics({"test": 0.5}, step=1)
    back_end.close(logger)

    assert points(back_end, logger) == {"loss": [(0, 3.0)], "test": [(1, 0.5)]}


# ---- pictures, text, tables, files
def log_one_of(kind, logger, folder, step):
    if kind == "image":
        logger.log_image("seen", [torch.zeros(3, 4, 6), np.zeros((4, 6, 3), np.uint8)], step=step)
    elif kind == "figure":
        figure_module = pytest.importorskip("matplotlib.figure")
        figure = figure_module.Figure(figsize=(2, 1), dpi=50)
        figure.subplots().plot([1, 2, 3])
        logger.log_figure("seen", figure, step=step)
    elif kind == "text":
        logger.log_text("seen", "a <b> & c", step=step)
    elif kind == "table":
        logger.log_table("seen", columns=["word", "count"], data=[["a", 1], ["b", 2]], step=step)
    elif kind == "histogram":
        logger.log_histogram("seen", torch.tensor([0.0, 1.0, 1.0, 2.0, float("nan")]), step=step, bins=4)
    elif kind == "audio":
        logger.log_audio("seen", [torch.linspace(-1, 1, 800)], step=step, sample_rate=8000)
    elif kind == "video":
        logger.log_video("seen", [torch.zeros(3, 3, 16, 16)], step=step, fps=2)
    else:
        path = folder / "notes.txt"
        path.write_text("kept")
        logger.log_artifact(str(path))


def is_as_expected(kind, content):
    if kind in ("image", "figure"):
        return tuple(content) == ((6, 4) if kind == "image" else (100, 50))
    if kind == "text":
        return content == "a <b> & c"
    if kind == "table":
        columns, rows = content
        cells = [[str(cell) for cell in row] for row in rows]
        return list(columns) == ["word", "count"] and cells == [["a", "1"], ["b", "2"]]
    if kind == "histogram":
        return content in (4, None)
    return content == b"kept" if kind == "artifact" else bool(content)


@pytest.mark.parametrize("kind", KINDS)
def test_media_are_kept_or_refused(back_end, kind):
    logger = back_end.make()
    if kind not in back_end.media:
        refused = "image" if kind == "figure" else kind
        with pytest.raises(NotImplementedError, match=rf"{type(logger).__name__}\.log_{refused}"):
            log_one_of(kind, logger, back_end.folder, 3)
        return
    logger.log_metrics({"loss": 1.0}, step=0)
    log_one_of(kind, logger, back_end.folder, 3)
    back_end.close(logger)

    found = back_end.media_of(logger, kind, "notes.txt" if kind == "artifact" else "seen")
    assert len(found) == (2 if kind == "image" else 1)
    assert all(is_as_expected(kind, content) for _, content in found), found
    if kind != "artifact" and back_end.keeps_media_steps:
        assert {step for step, _ in found} == {3}


# ---- in runs
class Model(LightningModule):
    def __init__(self, fails=False, lr=0.125):
        super().__init__()
        self.save_hyperparameters(ignore=["fails"])
        self.layer = torch.nn.Linear(4, 1)
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if self.fails and self.global_step == 2:
            raise RuntimeError("as it happens")
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader():
    return DataLoader(TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))), batch_size=2)


def fit(folder, logger, fails=False, **settings):
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings}
    Trainer(**quiet(folder, logger=logger, **settings)).fit(Model(fails), loader(), loader())


def test_several_loggers_get_the_rows_of_a_run_of_the_trainer(back_end):
    logger, other = back_end.make(), CSVLogger(back_end.folder / "beside", version=0)
    fit(back_end.folder, [logger, other])
    back_end.close(logger)

    import csv

    with Path(other.log_dir, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {
        name: [(int(row["step"]), round(float(row[name]), 5)) for row in rows if row[name]]
        for name in ("loss", "val_loss")
    }
    assert len(expected["loss"]) == 8
    assert points(back_end, logger) == expected
    assert str(back_end.hyperparameters(logger)["lr"]) == "0.125"


def test_failure_of_a_run_is_told(back_end):
    if not back_end.knows_failure:
        pytest.skip("the tracker does not note how a run ended")
    logger = back_end.make()
    with pytest.raises(RuntimeError, match="as it happens"):
        fit(back_end.folder, logger, fails=True)
    status = back_end.status(logger)

    assert status == "failed"
    assert len(points(back_end, logger)["loss"]) == 2


def test_x_axis_counts_samples(back_end):
    logger = back_end.make()
    logger.x_axis = "sample"
    fit(back_end.folder, logger, max_epochs=1)
    back_end.close(logger)

    found = points(back_end, logger)
    assert [step for step, _ in found["loss"]] == [2, 4, 6, 8]
    assert [step for step, _ in found["val_loss"]] == [8]


def test_fast_dev_run_leaves_the_logger_alone(back_end):
    before = sorted(back_end.folder.rglob("*"))
    logger = back_end.make()
    fit(back_end.folder, logger, fast_dev_run=True)

    assert sorted(back_end.folder.rglob("*")) == before


def test_fabric_logs(back_end):
    logger = back_end.make()
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    fabric.log("loss", torch.tensor(3.0), step=0)
    fabric.log_dict({"loss": 2.0, "acc": 0.5}, step=4)
    back_end.close(logger)

    assert points(back_end, logger) == {"loss": [(0, 3.0), (4, 2.0)], "acc": [(4, 0.5)]}


# ---- checkpoints
@pytest.mark.parametrize("log_model", [False, True, "all"])
def test_checkpoints_are_kept_as_asked_for(back_end, log_model):
    if not back_end.keeps_checkpoints:
        pytest.skip("the logger keeps no checkpoints")
    logger = back_end.make(log_model=log_model)
    saver = ModelCheckpoint(back_end.folder / "c", monitor="val_loss", save_top_k=1, filename="{epoch}")
    fit(back_end.folder, logger, callbacks=[saver], enable_checkpointing=True, max_epochs=3)
    back_end.close(logger)

    kept = back_end.checkpoints(logger)
    best = os.path.basename(saver.best_model_path)
    assert best == "epoch=2.ckpt"
    assert set(kept) == {False: set(), True: {best}, "all": {"epoch=0.ckpt", "epoch=1.ckpt", best}}[log_model]
    if log_model and kept[best]:
        assert kept[best] >= {"latest", "best"}


def test_wrong_log_model_is_refused(back_end):
    if not back_end.keeps_checkpoints:
        pytest.skip("the logger keeps no checkpoints")
    with pytest.raises(ValueError, match=r"log_model='some'.*'all' \(at each save\)"):
        back_end.make(log_model="some")
