"""Event files, read back by TensorBoard's own reader."""

import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from fulmen.loggers import TensorBoardLogger, tensorboard
from fulmen.utilities.rank_zero import rank_zero_only


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder):
    events = read(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hparams_of(folder):
    """What the HPARAMS page shows: the values and the names of metrics."""
    content = read(folder).SummaryMetadata
    start = plugin_data_pb2.HParamsPluginData.FromString(content("_hparams_/session_start_info").plugin_data.content)
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content("_hparams_/experiment").plugin_data.content)
    values = {name: getattr(v, v.WhichOneof("kind")) for name, v in start.session_start_info.hparams.items()}
    return values, [info.name.tag for info in experiment.experiment.metric_infos]


def test_metrics_are_read_back(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 0.5, "acc": torch.tensor(0.25), "n": np.float32(2.0)}, step=3)
    logger.log_metrics({"loss": 0.125}, step=4)
    logger.finalize("success")

    assert scalars(logger.log_dir) == {"loss": [(3, 0.5), (4, 0.125)], "acc": [(3, 0.25)], "n": [(3, 2.0)]}


def test_prefix_is_put_in_front_of_metrics(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="run")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")

    assert scalars(logger.log_dir) == {"run-loss": [(0, 0.5)], "run-hp_metric": [(0, -1.0)]}


def test_dict_of_values_becomes_curves_of_one_chart(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": {"train": 0.5, "val": torch.tensor(0.25)}}, step=1)
    logger.finalize("success")

    assert scalars(Path(logger.log_dir) / "loss_train") == {"loss": [(1, 0.5)]}
    assert scalars(Path(logger.log_dir) / "loss_val") == {"loss": [(1, 0.25)]}


@pytest.mark.parametrize("value", ["text", torch.ones(2), None, {"inner": "text"}])
def test_value_that_is_no_scalar_is_refused(tmp_path, value):
    logger = TensorBoardLogger(tmp_path)

    with pytest.raises(ValueError, match=r"(one number per metric|TensorBoard draws numbers)"):
        logger.log_metrics({"x": value}, step=0)
    logger.finalize("failed")


def test_sub_dir_holds_the_event_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="exp", version=2, sub_dir="fold_1")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("success")

    assert logger.log_dir == str(tmp_path / "exp" / "version_2" / "fold_1")
    assert logger.sub_dir == "fold_1"
    assert scalars(logger.log_dir) == {"loss": [(0, 0.5)]}


def test_hyperparameters_come_with_a_placeholder_metric(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"opt": {"lr": 0.5}, "layers": [1, 2], "bias": True, "scale": torch.tensor(2.0)})
    logger.finalize("success")

    values, metrics = hparams_of(logger.log_dir)
    assert values == {"opt/lr": 0.5, "layers": "[1, 2]", "bias": True, "scale": 2.0}
    assert metrics == ["hp_metric"]
    assert scalars(logger.log_dir) == {"hp_metric": [(0, -1.0)]}


@pytest.mark.parametrize(
    ("metrics", "step", "expected"),
    [
        (0.5, None, {"hp_metric": [(0, 0.5)]}),
        ({"acc": 0.5}, 7, {"acc": [(7, 0.5)]}),
        ({"acc": torch.tensor(0.5)}, None, {"acc": [(0, 0.5)]}),
    ],
)
def test_hyperparameters_with_results(tmp_path, metrics, step, expected):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams(Namespace(lr=0.5), metrics, step)
    logger.finalize("success")

    assert scalars(logger.log_dir) == expected
    assert hparams_of(logger.log_dir) == ({"lr": 0.5}, list(expected))


def test_hyperparameters_without_placeholder(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.5})
    logger.finalize("success")

    assert scalars(logger.log_dir) == {}
    assert hparams_of(logger.log_dir) == ({"lr": 0.5}, [])


def test_hyperparameters_are_also_a_yaml_file(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"opt": {"lr": 0.5}})
    logger.log_hyperparams(Namespace(n=1))
    logger.save()

    assert logger.hparams == {"opt": {"lr": 0.5}, "n": 1}
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"opt": {"lr": 0.5}, "n": 1}
    logger.finalize("success")


def test_run_without_hyperparameters_does_not_replace_those_of_an_earlier_one(tmp_path):
    first = TensorBoardLogger(tmp_path, version=0)
    first.log_hyperparams({"lr": 0.5})
    first.finalize("success")
    second = TensorBoardLogger(tmp_path, version=0)
    second.log_metrics({"loss": 0.5}, step=0)
    second.finalize("success")

    assert yaml.safe_load((tmp_path / "lightning_logs" / "version_0" / "hparams.yaml").read_text()) == {"lr": 0.5}


class Net(nn.Module):
    def __init__(self, example):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.example_input_array = example

    def forward(self, x, scale=1.0):
        return self.norm(self.layer(x)) * scale


@pytest.mark.parametrize("example", [torch.ones(4, 3), (torch.ones(4, 3), torch.tensor(2.0))])
def test_graph_is_recorded_without_changing_the_model(tmp_path, example):
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    model = Net(example).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logger.log_graph(model)
    logger.finalize("success")

    names = {node.name for node in read(logger.log_dir).Graph().node}
    assert any("layer" in name for name in names)
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_graph_takes_an_explicit_input(tmp_path):
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_graph(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3))
    logger.finalize("success")

    assert read(logger.log_dir).Tags()["graph"]


@pytest.mark.parametrize("example", [None, {"x": torch.ones(1, 3)}])
def test_graph_without_usable_example_warns(tmp_path, example):
    logger = TensorBoardLogger(tmp_path, log_graph=True)

    with pytest.warns(UserWarning, match="cannot trace Net.*example_input_array"):
        logger.log_graph(Net(example))


def test_graph_is_not_recorded_unless_asked_for(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_graph(Net(torch.ones(4, 3)))

    assert os.listdir(tmp_path) == []


def test_logging_goes_on_after_finalize(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("success")
    logger.log_metrics({"loss": 0.25}, step=1)
    logger.finalize("success")

    assert scalars(logger.log_dir) == {"loss": [(0, 0.5), (1, 0.25)]}


def test_logger_survives_pickling(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("success")
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"acc": 0.5}, step=1)
    other.finalize("success")

    assert other.log_dir == logger.log_dir
    assert scalars(logger.log_dir) == {"loss": [(0, 0.5)], "acc": [(1, 0.5)]}


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensorBoardLogger(tmp_path, version=0)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.experiment.add_scalar("x", 1.0)
    logger.finalize("success")

    assert os.listdir(tmp_path) == []


def test_writer_arguments_reach_the_writer(tmp_path):
    logger = TensorBoardLogger(tmp_path, filename_suffix=".mine")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("success")

    assert any(name.endswith(".mine") for name in os.listdir(logger.log_dir))


def test_missing_package_is_named_at_construction(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "is_installed", lambda name: False)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fulmen\[loggers\]'"):
        TensorBoardLogger(tmp_path)
