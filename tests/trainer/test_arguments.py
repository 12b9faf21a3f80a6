"""What the arguments of the Trainer do; wrong ones: `test_wrong_inputs.py`, those that bound a fit: `tests/loops`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint, ModelSummary, RichModelSummary, RichProgressBar, Timer, TQDMProgressBar
from fulmen.loggers import CSVLogger, TensorBoardLogger
from fulmen.loggers.logger import DummyLogger
from fulmen.plugins.layer_sync import LayerSync
from fulmen.plugins.precision.double import DoublePrecision
from fulmen.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler, SimpleProfiler
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),  # the advice depends on the machine
    pytest.mark.filterwarnings("ignore:.*has shuffling enabled"),  # on purpose
    pytest.mark.filterwarnings("ignore:.*but there is no validation dataloader"),  # on purpose
]


class Model(LightningModule):
    """Writes down the samples it sees: `t3` in training, `v`, `e` and `p` in the others, `s` in the sanity check."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[str] = []

    def _see(self, letter: str, batch: Any, dataloader_idx: int = 0) -> None:
        letter = "s" if self.trainer.sanity_checking else letter
        self.seen.append(f"{letter}{int(batch[0])}" + ("'" * dataloader_idx))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._see("t", batch)
        loss: Tensor = self.layer(batch[0]).sum()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._see("v", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._see("e", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self._see("p", batch, dataloader_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def data(number: int = 4, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(number)).view(-1, 1)), **arguments)


def names(things: Any) -> list[str]:
    return [type(thing).__name__ for thing in things]


# ---- environment
def test_arguments_not_passed_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MIN_EPOCHS", "7")
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "9")
    monkeypatch.setenv("PL_TRAINER_PRECISION", "64-true")
    monkeypatch.setenv("PL_TRAINER_LIMIT_VAL_BATCHES", "")
    trainer = Trainer(**quiet(tmp_path, max_epochs=8))

    assert (trainer.min_epochs, trainer.max_epochs, trainer.precision) == (7, 8, "64-true")
    assert trainer.limit_val_batches == 1.0


def test_a_subclass_is_looked_up_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MyTrainer(Trainer):
        def __init__(self, extra: int, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.extra = extra

    monkeypatch.setenv("PL_TRAINER_MIN_EPOCHS", "7")
    monkeypatch.setenv("PL_MYTRAINER_MIN_EPOCHS", "3")
    trainer = MyTrainer(1, **quiet(tmp_path, max_epochs=8))

    assert (trainer.min_epochs, trainer.extra) == (3, 1)


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        Trainer("cpu")  # type: ignore[call-arg]


# ---- callbacks
def test_the_list_of_callbacks_stays_as_it_is(tmp_path: Path) -> None:
    given = [Callback()]
    trainer = Trainer(**quiet(tmp_path, callbacks=given, enable_model_summary=True))

    assert names(given) == ["Callback"]
    assert names(trainer.callbacks) == ["Callback", "RichModelSummary"]


def test_default_callbacks_and_their_order(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=Callback(), max_time="00:00:01:00")

    assert names(trainer.callbacks) == ["Callback", "Timer", "RichProgressBar", "RichModelSummary", "ModelCheckpoint"]


def test_without_rich_the_defaults_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulmen.trainer.defaults.is_installed", lambda name: name != "rich")
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path)

    assert names(trainer.callbacks) == ["TQDMProgressBar", "ModelSummary", "ModelCheckpoint"]


def test_given_callbacks_take_the_place_of_the_defaults(tmp_path: Path) -> None:
    given = [ModelCheckpoint(), Timer(timedelta(1)), TQDMProgressBar(), ModelSummary(), Callback()]
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=given, max_time="00:00:01:00")

    assert trainer.callbacks == [*given[1:], given[0]]


def test_the_enable_flags_leave_the_defaults_out(tmp_path: Path) -> None:
    flags = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    kinds: tuple[type, ...] = (ModelCheckpoint, RichProgressBar, RichModelSummary)
    for flag, kind in zip(flags, kinds, strict=True):
        trainer = Trainer(**quiet(tmp_path, **{flag: True}))
        assert [type(callback) for callback in trainer.callbacks] == [kind]
    assert Trainer(**quiet(tmp_path)).callbacks == []


@pytest.mark.parametrize("group", ["lightning.pytorch.callbacks_factory", "fulmen.callbacks_factory"])
def test_callbacks_of_entry_points_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    (tmp_path / "their_package.py").write_text(
        "from fulmen import Callback\nclass Theirs(Callback): pass\n"
        "def several(): return [Theirs(), Theirs()]\ndef one(): return Theirs()\n"
    )
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\na = their_package:several\nb = their_package:one\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert names(Trainer(**quiet(tmp_path)).callbacks) == ["Theirs", "Theirs", "Theirs"]


def test_configure_callbacks_replaces_those_of_its_class_and_parents(tmp_path: Path) -> None:
    class Parent(Callback):
        pass

    class Child(Parent):
        pass

    class Own(Model):
        def configure_callbacks(self) -> Any:
            return Child()

    trainer = Trainer(**quiet(tmp_path, callbacks=[Parent(), Callback(), Child()]))
    trainer.fit(Own(), data())

    assert names(trainer.callbacks) == ["Callback", "Child"]


# ---- loggers and folders
def test_the_forms_of_logger(tmp_path: Path) -> None:
    a, b = CSVLogger(tmp_path), TensorBoardLogger(tmp_path)
    forms: list[tuple[Any, list[Any]]] = [(False, []), ([], []), (a, [a]), ((a, b), [a, b]), (iter([b]), [b])]
    for form, expected in forms:
        assert Trainer(**quiet(tmp_path, logger=form)).loggers == expected
    for form in (True, None):
        assert names(Trainer(**quiet(tmp_path, logger=form)).loggers) == ["TensorBoardLogger"]


def test_without_tensorboard_the_default_logger_is_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulmen.utilities.lazy.is_installed", lambda name: False)

    assert names(Trainer(**quiet(tmp_path, logger=True)).loggers) == ["CSVLogger"]


def test_the_default_logger_takes_the_number_of_a_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    logger = Trainer(**quiet(tmp_path, logger=True)).logger
    monkeypatch.setattr("fulmen.utilities.lazy.is_installed", lambda name: False)
    without_tensorboard = Trainer(**quiet(tmp_path, logger=True)).logger

    assert logger is not None
    assert without_tensorboard is not None
    assert logger.version == without_tensorboard.version == "123"


def test_the_root_folder_is_expanded_and_urls_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    home = os.path.expanduser("~")

    assert Trainer(**quiet(tmp_path, default_root_dir="~/a/../b")).default_root_dir == os.path.join(home, "b")
    assert Trainer(**quiet(tmp_path, default_root_dir="s3://x/../y")).default_root_dir == "s3://x/../y"
    assert Trainer(**quiet(tmp_path, default_root_dir=None)).default_root_dir == str(tmp_path)


# ---- shorter runs
def test_fast_dev_run_changes_the_limits(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, fast_dev_run=3, max_epochs=9, val_check_interval=2, logger=CSVLogger(tmp_path)))

    assert (trainer.fast_dev_run, trainer.max_steps, trainer.max_epochs, trainer.num_sanity_val_steps) == (3, 3, 1, 0)
    assert [getattr(trainer, f"limit_{stage}_batches") for stage in ("train", "val", "test", "predict")] == [3] * 4
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (1.0, 1)
    assert [type(logger) for logger in trainer.loggers] == [DummyLogger]


@pytest.mark.parametrize(("value", "read"), [(True, True), (1, True), (False, False), (0, False), (2, 2)])
def test_fast_dev_run_reads_true_for_one_batch(tmp_path: Path, value: Any, read: Any) -> None:
    assert Trainer(**quiet(tmp_path, fast_dev_run=value)).fast_dev_run is read


def test_fast_dev_run_runs_a_batch_of_each_stage_and_leaves_nothing(tmp_path: Path) -> None:
    model = Model()
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, fast_dev_run=True, enable_progress_bar=False)
    trainer.fit(model, data(), data())
    trainer.validate(model, data(), verbose=False)
    trainer.test(model, data(), verbose=False)
    trainer.predict(model, data())

    assert model.seen == ["t0", "v0", "v0", "e0", "p0"]
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_keeps_the_limits_of_overfit_batches(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, fast_dev_run=3, overfit_batches=2))

    assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches) == (2, 2, 3)


@pytest.mark.parametrize(("value", "batches"), [(2, 2), (0.5, 2), (1.0, 4)])
def test_overfit_batches_trains_on_the_same_batches_in_order(tmp_path: Path, value: Any, batches: int) -> None:
    model = Model()
    trainer = Trainer(**quiet(tmp_path, overfit_batches=value, max_epochs=2, num_sanity_val_steps=0))
    with pytest.warns(UserWarning, match="turning off the (train|val) dataloader shuffling"):
        trainer.fit(model, data(shuffle=True), data(shuffle=True))

    epoch = [f"t{i}" for i in range(batches)] + [f"v{i}" for i in range(batches)]
    assert model.seen == epoch * 2
    assert trainer.limit_train_batches == trainer.limit_val_batches == value


@pytest.mark.parametrize(
    ("limit", "counts"), [(2, [2, 2]), (0.5, [2, 1]), (1.0, [4, 2]), (1, [1, 1]), (3.0, [3, 2]), (0, []), (0.0, [])]
)
def test_limits_count_per_loader(tmp_path: Path, limit: Any, counts: list[int]) -> None:
    model = Model()
    limits = {f"limit_{stage}_batches": limit for stage in ("train", "val", "test", "predict")}
    trainer = Trainer(**quiet(tmp_path, num_sanity_val_steps=0, **limits))
    loaders = [data(4), data(2)]
    trainer.fit(model, data(4), loaders)
    validated = trainer.num_val_batches
    trainer.test(model, loaders, verbose=False)
    trainer.predict(model, loaders)

    assert (validated, trainer.num_test_batches, trainer.num_predict_batches) == (counts, counts, counts)
    assert [sum(see[0] == letter for see in model.seen) for letter in "tvep"] == [sum(counts[:1]), *[sum(counts)] * 3]


@pytest.mark.parametrize(
    ("value", "checked"),
    [(-1, ["s0", "s1", "s2", "s0'"]), (0, []), (2, ["s0", "s1", "s0'"]), (None, ["s0", "s1", "s0'"])],
)
def test_the_sanity_check_runs_so_many_batches_of_each_loader(tmp_path: Path, value: Any, checked: list[str]) -> None:
    model = Model()
    Trainer(**quiet(tmp_path, num_sanity_val_steps=value)).fit(model, data(), [data(3), data(1)])

    assert [see for see in model.seen if see[0] == "s"] == checked


def test_the_sanity_check_leaves_random_numbers_and_metrics_alone(tmp_path: Path) -> None:
    class Random(Model):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("drawn", torch.rand(1))

        def on_train_start(self) -> None:
            assert self.trainer.callback_metrics == {}
            self.drawn = torch.rand(1).item()

    drawn = []
    for number in (0, 2):
        torch.manual_seed(3)
        model = Random()
        Trainer(**quiet(tmp_path, num_sanity_val_steps=number)).fit(model, data(), data())
        drawn.append(model.drawn)

    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("value", ["00:00:00:00", timedelta(0), {"seconds": 0}])
def test_max_time_stops_within_the_epoch(tmp_path: Path, value: Any) -> None:
    trainer = Trainer(**quiet(tmp_path, max_time=value, max_epochs=-1))
    trainer.fit(Model(), data())

    assert trainer.global_step <= 1
    assert names(trainer.callbacks) == ["Timer"]


# ---- when loaders are asked for
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"max_epochs": 3}, "V0 T0"),
        ({"max_epochs": 3, "num_sanity_val_steps": 0}, "T0 V0"),
        ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, "V0 T0 T1 V1 T2 V2"),
        ({"max_epochs": 5, "reload_dataloaders_every_n_epochs": 2}, "V0 T0 T2 V2 T4 V4"),
        ({"max_epochs": 5, "reload_dataloaders_every_n_epochs": 2, "num_sanity_val_steps": 0}, "T0 V0 T2 V2 T4 V4"),
        (
            {"max_epochs": 8, "reload_dataloaders_every_n_epochs": 3, "check_val_every_n_epoch": 2},
            "V0 T0 V1 T3 V5 T6",  # the check does not count where epoch 0 does not validate
        ),
        (
            {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1, "val_check_interval": 2},
            "V0 T0 T1 V1",
        ),
        ({"max_epochs": 3, "limit_val_batches": 0}, "T0"),
    ],
)
def test_loaders_are_asked_for_again_when_they_are_due(tmp_path: Path, arguments: dict[str, Any], asked: str) -> None:
    class Loading(Model):
        def train_dataloader(self) -> Any:
            asks.append(f"T{self.current_epoch}")
            return data()

        def val_dataloader(self) -> Any:
            asks.append(f"V{self.current_epoch}")
            return data(1)

    asks: list[str] = []
    Trainer(**quiet(tmp_path, **arguments)).fit(Loading())

    assert " ".join(asks) == asked


# ---- modes of torch
@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_for_everything_outside_fit(tmp_path: Path, inference_mode: bool) -> None:
    class Looking(Model):
        def _see(self, letter: str, batch: Any, dataloader_idx: int = 0) -> None:
            output = self.layer(batch[0])
            self.seen.append(f"{letter} {output.is_inference()} {output.requires_grad}")

    model, trainer = Looking(), Trainer(**quiet(tmp_path, inference_mode=inference_mode, num_sanity_val_steps=0))
    trainer.fit(model, data(1), data(1))
    trainer.validate(model, data(1), verbose=False)
    trainer.test(model, data(1), verbose=False)
    trainer.predict(model, data(1))

    outside = f"{inference_mode} False"
    assert model.seen == ["t False True", "v False False", f"v {outside}", f"e {outside}", f"p {outside}"]


def test_anomaly_detection_is_on_while_fitting(tmp_path: Path) -> None:
    class Looking(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.found = torch.is_anomaly_enabled()
            return super().training_step(batch, batch_idx)

    for detect in (True, False):
        model = Looking()
        Trainer(**quiet(tmp_path, detect_anomaly=detect)).fit(model, data(1))
        assert model.found is detect
    assert not torch.is_anomaly_enabled()


@pytest.fixture
def torch_flags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what `deterministic` and `benchmark` change."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    algorithms, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(algorithms, warn_only=warn)
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize(
    ("arguments", "algorithms", "warns", "benchmark", "workspace"),
    [
        ({"deterministic": True}, True, False, False, ":4096:8"),
        ({"deterministic": "warn"}, True, True, False, ":4096:8"),
        ({"deterministic": False}, False, False, True, None),
        ({"benchmark": False}, False, False, False, None),
        ({}, False, False, True, None),
    ],
)
def test_flags_of_torch_are_set(
    tmp_path: Path, arguments: dict[str, Any], algorithms: bool, warns: bool, benchmark: bool, workspace: str | None
) -> None:
    torch.backends.cudnn.benchmark = True
    Trainer(**quiet(tmp_path, **arguments))

    assert torch.are_deterministic_algorithms_enabled() is algorithms
    assert torch.is_deterministic_algorithms_warn_only_enabled() is warns
    assert torch.backends.cudnn.benchmark is benchmark
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace


def test_barebones_switches_everything_off(tmp_path: Path) -> None:
    class Silent(Model):
        def log(self, *args: Any, **kwargs: Any) -> None:
            pass  # that it would warn, once in a process, is tested where metrics are

    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, barebones=True, max_epochs=1)
    trainer.fit(Silent(), data(), data())

    assert (trainer.callbacks, trainer.loggers) == ([], [])
    assert (trainer.log_every_n_steps, trainer.num_sanity_val_steps) == (0, 0)
    assert list(tmp_path.iterdir()) == []


# ---- parts by name
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, PassThroughProfiler),
        ("simple", SimpleProfiler),
        ("Advanced", AdvancedProfiler),
        ("PYTORCH", PyTorchProfiler),
    ],
)
def test_profilers_by_name(tmp_path: Path, name: Any, kind: type) -> None:
    assert type(Trainer(**quiet(tmp_path, profiler=name)).profiler) is kind


@pytest.mark.parametrize(
    ("asked", "precision"),
    [
        (None, "32-true"),
        (32, "32-true"),
        ("64", "64-true"),
        ("bf16-mixed", "bf16-mixed"),
        ("16-true", "16-true"),
        ("bf16-true", "bf16-true"),
    ],
)
def test_precision_by_name(tmp_path: Path, asked: Any, precision: str) -> None:
    assert Trainer(**quiet(tmp_path, precision=asked)).precision == precision


def test_plugins_take_the_place_of_arguments(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, plugins=[DoublePrecision()]))

    assert trainer.precision == "64-true"
    with pytest.raises(ValueError, match="precision"):
        Trainer(**quiet(tmp_path, plugins=DoublePrecision(), precision="64-true"))


def test_sync_batchnorm_on_one_device_changes_nothing(tmp_path: Path) -> None:
    model = Model()
    model.norm = nn.BatchNorm1d(1)
    trainer = Trainer(**quiet(tmp_path, sync_batchnorm=True))
    trainer.fit(model, data())

    assert type(model.norm) is nn.BatchNorm1d


def test_sync_batchnorm_excludes_another_way_to_do_it(tmp_path: Path) -> None:
    class Other(LayerSync):
        def apply(self, model: nn.Module) -> nn.Module:
            return model

        revert = apply

    assert Trainer(**quiet(tmp_path, plugins=Other())).strategy is not None
    with pytest.raises(MisconfigurationException, match="sync_batchnorm"):
        Trainer(**quiet(tmp_path, sync_batchnorm=True, plugins=Other()))


def test_the_model_registry_is_kept_without_its_version(tmp_path: Path) -> None:
    assert Trainer(**quiet(tmp_path, model_registry="org/name:v2")).model_registry == "org/name"
    assert Trainer(**quiet(tmp_path)).model_registry is None


def test_loggers_get_the_hyperparameters_unless_told_otherwise(tmp_path: Path) -> None:
    class Recording(DummyLogger):
        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            told.append(dict(args[0]))

    class Sized(Model):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    told: list[dict[str, Any]] = []
    for enabled in (True, False):
        trainer = Trainer(**quiet(tmp_path, logger=Recording(), enable_autolog_hparams=enabled, log_every_n_steps=1))
        trainer.fit(Sized(), data())

    assert told == [{"width": 3}]


@pytest.mark.parametrize(
    ("arguments", "interval", "every"),
    [
        ({}, 1.0, 1),
        ({"val_check_interval": 2.0}, 2, 1),
        ({"val_check_interval": 0.5}, 0.5, 1),
        ({"check_val_every_n_epoch": None}, 1.0, None),
        ({"check_val_every_n_epoch": 3}, 1.0, 3),
    ],
)
def test_the_interval_of_validation_reads_back(
    tmp_path: Path, arguments: dict[str, Any], interval: Any, every: Any
) -> None:
    trainer = Trainer(**quiet(tmp_path, **arguments))

    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (interval, every)


def test_the_trainer_is_exported_at_the_top() -> None:
    assert fulmen.Trainer is Trainer
