"""Profilers in runs of the Trainer: which actions they are told of, and where reports go."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.loggers import CSVLogger
from fulmen.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")  # tiny data needs none


@pytest.fixture(autouse=True)
def _silence(capfd):
    """Kineto prints on its own."""
    yield
    capfd.readouterr()


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.layer(batch[0])

    def on_train_epoch_end(self):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Counting(Callback):
    state_key = "Counting"

    def on_train_batch_end(self, *args):
        pass


def fit(profiler, tmp_path, *, model=None, **kwargs):
    loader = DataLoader(TensorDataset(torch.ones(16, 4)), batch_size=2)
    trainer = Trainer(
        **{
            "profiler": profiler,
            "logger": False,
            "callbacks": [Counting()],
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **kwargs,
        }
    )
    trainer.fit(model or Model(), loader, loader)
    return trainer


@pytest.mark.parametrize(
    ("action", "count"),
    [
        ("run_training_epoch", 1),
        ("run_training_batch", 8),
        ("[Strategy]SingleDeviceStrategy.training_step", 8),
        ("[Strategy]SingleDeviceStrategy.backward", 8),
        ("[Strategy]SingleDeviceStrategy.validation_step", 8),
        ("[_TrainingEpochLoop].train_dataloader_next", 8),
        ("[_EvaluationLoop].val_next", 8),
        ("[LightningModule]Model.configure_optimizers", 1),
        ("[LightningModule]Model.on_train_epoch_end", 1),
        ("[Callback]Counting.on_train_batch_end", 8),
    ],
)
def test_trainer_measures_its_actions(tmp_path, action, count):
    profiler = SimpleProfiler()
    fit(profiler, tmp_path)

    assert len(profiler.recorded_durations[action]) == count
    assert profiler.current_actions == {}


@pytest.mark.parametrize("make", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_report_is_written_into_the_log_folder(tmp_path, make):
    logger = CSVLogger(tmp_path)
    fit(make(filename="report"), tmp_path, logger=logger)

    report = (tmp_path / "lightning_logs" / "version_0" / "fit-report.txt").read_text()
    assert report.startswith("FIT Profiler Report")
    assert "training_step" in report


@pytest.mark.parametrize("name", ["simple", "Advanced", "pytorch"])
def test_profilers_are_chosen_by_name(tmp_path, name):
    trainer = fit(name, tmp_path)

    assert type(trainer.profiler).__name__.lower() == f"{name.lower()}profiler"


def test_torch_profiler_names_modules_and_writes_a_trace_for_each_kind_of_step(tmp_path):
    fit(PyTorchProfiler(filename="ops"), tmp_path)

    traces = {path.name.split(".")[1]: path.read_text() for path in tmp_path.glob("*.pt.trace.json")}
    assert set(traces) == {"training_step", "validation_step"}
    assert "[pl][module]torch.nn.modules.linear.Linear: layer" in traces["training_step"]
    assert "Optimizer.step#SGD.step" in traces["training_step"]


def test_torch_profiler_records_short_runs_whole(tmp_path):
    fit(PyTorchProfiler(filename="ops"), tmp_path, fast_dev_run=True)

    assert "Profile stats for: all steps" in (tmp_path / "fit-ops.txt").read_text()


@pytest.mark.parametrize("make", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_report_of_a_run_that_failed_is_written(tmp_path, make):
    class Fails(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == 6:
                raise ArithmeticError
            return super().training_step(batch, batch_idx)

    profiler = make(filename="report")
    with pytest.raises(ArithmeticError):
        fit(profiler, tmp_path, model=Fails())
    fit(make(filename="next"), tmp_path)

    assert "training_step" in (tmp_path / "fit-report.txt").read_text()
