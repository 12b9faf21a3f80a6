"""The interface of loggers, and the stand-ins that log nothing."""

import copy
import pickle
import subprocess
import sys

import pytest
from torch import nn

from fulmen.loggers.logger import DummyExperiment, DummyLogger, Logger, merge_dicts, rank_zero_experiment
from fulmen.utilities.rank_zero import rank_zero_only


class ListLogger(Logger):
    """The least that a logger must write."""

    def __init__(self):
        self.rows = []
        self.saves = 0

    @property
    def name(self):
        return "list"

    @property
    def version(self):
        return 0

    @property
    @rank_zero_experiment
    def experiment(self):
        return self.rows

    def log_metrics(self, metrics, step=None):
        self.experiment.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        self.experiment.append(params)

    def save(self):
        self.saves += 1


def test_logger_without_metrics_method_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Logger()  # type: ignore[abstract]  # what the test is about


def test_defaults_of_the_interface():
    logger = ListLogger()

    assert (logger.save_dir, logger.root_dir, logger.log_dir) == (None, None, None)
    assert logger.group_separator == "/"
    logger.log_graph(nn.Linear(1, 1))
    logger.after_save_checkpoint(object())


def test_finalize_saves():
    logger = ListLogger()

    logger.finalize("success")

    assert logger.saves == 1


def test_experiment_exists_on_rank_zero_only(monkeypatch):
    logger = ListLogger()
    assert logger.experiment is logger.rows

    monkeypatch.setattr(rank_zero_only, "rank", 1)

    assert isinstance(logger.experiment, DummyExperiment)


def test_dummy_logger_accepts_any_call():
    logger = DummyLogger()

    logger.log_metrics({"loss": 1.0}, step=3)
    logger.log_hyperparams({"lr": 0.1}, "more")
    logger.log_image("key", images=[])
    logger.experiment.add_histogram("weights", [1.0])
    logger.experiment["x"] = 1
    logger.save()
    logger.finalize("success")

    assert logger.experiment["x"] is logger.experiment
    assert logger[3] is logger
    assert list(logger) == [logger]
    assert (logger.name, logger.version, logger.log_dir) == ("", "", None)


def test_dummy_logger_can_be_copied_and_pickled():
    assert isinstance(copy.deepcopy(DummyLogger()), DummyLogger)
    assert isinstance(pickle.loads(pickle.dumps(DummyLogger())), DummyLogger)


def test_merge_dicts_averages_by_default_and_takes_functions_by_key():
    merged = merge_dicts(
        [{"loss": 1.0, "n": 1, "part": {"a": 2.0, "b": 1.0}}, {"loss": 3.0, "n": 2, "part": {"a": 4.0}}],
        agg_key_funcs={"n": sum, "part": {"a": max}},
    )

    assert merged == {"loss": 2.0, "n": 3, "part": {"a": 4.0, "b": 1.0}}


def test_importing_loggers_and_profilers_loads_no_optional_package():
    code = (
        "import sys, fulmen.loggers.csv_logs, fulmen.loggers.tensorboard, fulmen.loggers.params\n"
        "import fulmen.profilers.pytorch, fulmen.profilers.simple, fulmen.profilers.advanced\n"
        "names = 'tensorboard tensorboardX yaml fsspec torchmetrics rich scipy matplotlib torch._dynamo'.split()\n"
        "print([name for name in names if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
