"""What can be read off a Trainer before, in and after its runs, and what carries over from one run to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from fulmen.data.combined_loader import CombinedLoader
from fulmen.loggers import CSVLogger, TensorBoardLogger
from fulmen.trainer.states import RunningStage, TrainerFn, TrainerStatus
from tests.loops.cadence_model import Batches
from tests.support import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),  # the advice depends on the machine
    pytest.mark.filterwarnings("ignore:.*but there is no validation dataloader"),  # on purpose
]


class Model(LightningModule):
    """Works on batches of any structure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(shape(batch))
        return self.layer.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches.append((batch_idx, dataloader_idx, shape(batch)))
        self.log("score", float(batch_idx), batch_size=1)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_score", 2.0, batch_size=1)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return (batch_idx, dataloader_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "x"}}


def shape(batch: Any) -> Any:
    """The structure of a batch, with `x` for each tensor."""
    if isinstance(batch, dict):
        return {key: shape(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(shape(value) for value in batch)
    return None if batch is None else "x"


def data(number: int = 4) -> DataLoader[Any]:
    return DataLoader(torch.ones(number, 1))  # type: ignore[arg-type]  # a tensor has a length and items


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return data(2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


# ---- before, in and after a run
def test_a_new_trainer_knows_of_no_run(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path))

    assert trainer.num_training_batches == float("inf")
    for name in ("num_val_batches", "num_sanity_val_batches", "num_test_batches", "num_predict_batches", "optimizers"):
        assert getattr(trainer, name) == []
    for name in ("train", "val", "test", "predict"):
        assert getattr(trainer, f"{name}_dataloader{'' if name == 'train' else 's'}") is None
    for name in ("model", "lightning_module", "datamodule", "val_check_batch", "ckpt_path", "scaler", "logger"):
        assert getattr(trainer, name) is None
    assert (trainer.state.fn, trainer.state.stage, trainer.state.status) == (None, None, TrainerStatus.INITIALIZING)
    assert (trainer.global_step, trainer.current_epoch, trainer.lr_scheduler_configs) == (0, 0, [])
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (1, 0, 0, 0)
    assert (trainer.num_devices, trainer.device_ids, trainer.num_nodes, trainer.is_global_zero) == (1, [0], 1, True)
    for name in ("interrupted", "received_sigterm", "is_last_batch", "enable_validation", "should_stop", "training"):
        assert getattr(trainer, name) is False


class Looking(Model):
    """Writes down what the Trainer says in its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.saw: dict[str, tuple[Any, ...]] = {}

    def _look(self, hook: str) -> None:
        t = self.trainer
        stage = None if t.state.stage is None else t.state.stage.value
        flags = [name for name in FLAGS if getattr(t, name)]
        self.saw[hook] = (stage, flags, t.num_training_batches, t.num_val_batches, t.val_check_batch, t.is_last_batch)

    def setup(self, stage: str) -> None:
        self._look("setup")

    def on_train_start(self) -> None:
        self._look("on_train_start")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._look(f"training_step {batch_idx}")
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._look("sanity" if self.trainer.sanity_checking else "validation")

    def on_fit_end(self) -> None:
        self._look("on_fit_end")


FLAGS = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")


def test_what_is_read_in_the_hooks_of_a_fit(tmp_path: Path) -> None:
    model, trainer = Looking(), Trainer(**quiet(tmp_path, num_sanity_val_steps=1, val_check_interval=0.5))
    trainer.fit(model, data(2), [data(3)])
    infinite = float("inf")

    assert model.saw == {
        "setup": ("train", ["training"], infinite, [], None, False),
        "sanity": ("sanity_check", ["sanity_checking", "evaluating"], infinite, [3], None, False),
        "on_train_start": ("train", ["training"], 2, [3], 1, False),
        "training_step 0": ("train", ["training"], 2, [3], 1, False),
        "training_step 1": ("train", ["training"], 2, [3], 1, True),
        "validation": ("validate", ["validating", "evaluating"], 2, [3], 1, True),
        "on_fit_end": ("train", ["training"], 2, [3], 1, True),
    }
    assert trainer.num_sanity_val_batches == [1]
    assert (trainer.state.fn, trainer.state.stage) == (TrainerFn.FITTING, None)
    assert trainer.state.status == TrainerStatus.FINISHED


def test_booleans_of_the_stage_can_be_set(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path))
    stages = {"training": "train", "validating": "validate", "testing": "test", "predicting": "predict"}
    for name, stage in {**stages, "sanity_checking": "sanity_check"}.items():
        setattr(trainer, name, True)
        assert (trainer.state.stage, getattr(trainer, name)) == (stage, True)
        setattr(trainer, name, False)
        assert trainer.state.stage is None
    trainer.training = True
    trainer.validating = False

    assert trainer.state.stage == RunningStage.TRAINING


def test_optimizers_and_schedulers_of_the_run(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(Model(), data())

    assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.SGD]
    assert [(c.name, c.interval, c.frequency) for c in trainer.lr_scheduler_configs] == [("x", "step", 1)]


def test_interrupted_tells_how_the_last_run_ended(tmp_path: Path) -> None:
    class Failing(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise OSError

    trainer = Trainer(**quiet(tmp_path))
    with pytest.raises(OSError):  # noqa: PT011 - its own
        trainer.fit(Failing(), data())
    assert (trainer.interrupted, trainer.state.stage) == (True, None)
    trainer.fit(Model(), data())
    assert not trainer.interrupted


def test_callbacks_are_found_by_their_kind(tmp_path: Path) -> None:
    stops = [EarlyStopping("a"), EarlyStopping("b")]
    saves = [ModelCheckpoint(), ModelCheckpoint(monitor="a")]
    bar = TQDMProgressBar()
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[*saves, *stops, bar], logger=False)

    assert (trainer.early_stopping_callbacks, trainer.early_stopping_callback) == (stops, stops[0])
    assert (trainer.checkpoint_callbacks, trainer.checkpoint_callback) == (saves, saves[0])
    assert trainer.progress_bar_callback is bar
    none = Trainer(**quiet(tmp_path))
    assert (none.early_stopping_callback, none.checkpoint_callback, none.progress_bar_callback) == (None, None, None)


def test_the_log_dir_is_that_of_the_first_logger(tmp_path: Path) -> None:
    csv, board = CSVLogger(tmp_path / "a", version=1), TensorBoardLogger(tmp_path / "b", version=2)

    assert Trainer(**quiet(tmp_path)).log_dir == str(tmp_path)
    for loggers in ([csv, board], [board, csv]):
        assert Trainer(**quiet(tmp_path, logger=loggers)).log_dir == loggers[0].log_dir


def test_loggers_can_be_set(tmp_path: Path) -> None:
    trainer, logger = Trainer(**quiet(tmp_path)), CSVLogger(tmp_path)
    trainer.logger = logger
    assert trainer.loggers == [logger]
    trainer.logger = None
    assert trainer.loggers == []


# ---- loaders
STRUCTURES: list[tuple[Any, int, Any]] = [
    (lambda: data(2), 2, "x"),
    (lambda: [data(2), data(1)], 2, ["x", "x"]),
    (lambda: (data(1), data(3)), 3, ("x", "x")),
    (lambda: {"a": data(2), "b": [data(1), data(3)]}, 3, {"a": "x", "b": ["x", "x"]}),
    (lambda: CombinedLoader([data(1), data(3)], "min_size"), 1, ["x", "x"]),
    (lambda: CombinedLoader({"a": data(1), "b": data(3)}, "max_size_cycle"), 3, {"a": "x", "b": "x"}),
]


@pytest.mark.parametrize(("make", "number", "structure"), STRUCTURES)
def test_a_batch_has_the_structure_of_the_loaders(tmp_path: Path, make: Any, number: int, structure: Any) -> None:
    loaders, model, trainer = make(), Model(), Trainer(**quiet(tmp_path))
    trainer.fit(model, loaders)

    assert model.batches == [structure] * number
    assert trainer.num_training_batches == number
    assert trainer.train_dataloader == (loaders.iterables if isinstance(loaders, CombinedLoader) else loaders)


def test_max_size_gives_none_for_loaders_that_are_exhausted(tmp_path: Path) -> None:
    model = Model()
    Trainer(**quiet(tmp_path)).fit(model, CombinedLoader([data(1), data(2)], "max_size"))

    assert model.batches == [["x", "x"], [None, "x"]]


@pytest.mark.parametrize(
    ("mode", "batches"),
    [
        ("sequential", [(0, 0, "x"), (0, 1, "x"), (1, 1, "x")]),
        ("min_size", [(0, 0, ["x", "x"])]),
        ("max_size", [(0, 0, ["x", "x"]), (1, 0, [None, "x"])]),
        ("max_size_cycle", [(0, 0, ["x", "x"]), (1, 0, ["x", "x"])]),
    ],
)
def test_validation_takes_loaders_combined_in_any_mode(tmp_path: Path, mode: Any, batches: Any) -> None:
    model = Model()
    Trainer(**quiet(tmp_path)).validate(model, CombinedLoader([data(1), data(2)], mode), verbose=False)

    assert model.batches == batches


def test_training_refuses_sequential_loaders_and_prediction_all_others(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path))
    with pytest.raises(ValueError, match="sequential"):
        trainer.fit(Model(), CombinedLoader([data()], "sequential"))
    with pytest.raises(ValueError, match="min_size"):
        trainer.predict(Model(), CombinedLoader([data()], "min_size"))


def test_predictions_are_a_list_per_loader_where_there_are_several(tmp_path: Path) -> None:
    trainer, model = Trainer(**quiet(tmp_path)), Model()

    assert trainer.predict(model, data(2)) == [(0, 0), (1, 0)]
    assert trainer.predict(model, [data(2)]) == [(0, 0), (1, 0)]
    assert trainer.predict(model, [data(2), data(1)]) == [[(0, 0), (1, 0)], [(0, 1)]]
    assert trainer.num_predict_batches == [2, 1]
    assert trainer.predict(model, data(2), return_predictions=False) is None


def test_loaders_without_length_are_used_up(tmp_path: Path) -> None:
    trainer, model = Trainer(**quiet(tmp_path)), Model()
    trainer.fit(model, Batches(3), Batches(2))

    assert (trainer.global_step, trainer.num_training_batches) == (3, float("inf"))
    assert trainer.num_val_batches == [float("inf")]
    assert trainer.predict(model, Batches(2)) == [(0, 0), (1, 0)]


def test_batches_of_none_reach_the_steps_of_evaluation(tmp_path: Path) -> None:
    class WithNone(Batches):
        def __iter__(self) -> Any:
            return iter([torch.ones(1), None])

    model = Model()
    Trainer(**quiet(tmp_path)).validate(model, WithNone(2), verbose=False)

    assert [batch for *_, batch in model.batches] == ["x", None]


def test_val_dataloaders_are_those_of_the_last_call(tmp_path: Path) -> None:
    trainer, model, first, second = Trainer(**quiet(tmp_path)), Model(), data(1), [data(2), data(3)]
    trainer.fit(model, data(), first)
    assert (trainer.val_dataloaders, trainer.num_val_batches) == (first, [1])
    trainer.validate(model, second, verbose=False)
    assert (trainer.val_dataloaders, trainer.num_val_batches) == (second, [2, 3])


def test_samplers_are_told_the_epoch(tmp_path: Path) -> None:
    class Sampler(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    epochs: list[int] = []
    dataset = TensorDataset(torch.ones(2, 1))
    trainer = Trainer(**quiet(tmp_path, max_epochs=3))
    trainer.fit(Model(), DataLoader(dataset, sampler=Sampler(dataset)))

    assert sorted(set(epochs)) == [0, 1, 2]


# ---- how many steps it will be
@pytest.mark.parametrize(
    ("arguments", "sized", "steps"),
    [
        ({"max_epochs": 3}, True, 12),
        ({"max_epochs": 3, "limit_train_batches": 3, "accumulate_grad_batches": 2}, True, 6),
        ({"max_epochs": 3, "max_steps": 5}, True, 5),
        ({"max_epochs": None, "max_steps": 9}, True, 9),
        ({"max_epochs": -1, "max_steps": 2}, True, 2),
        ({"max_epochs": None, "max_time": "00:00:00:00"}, True, float("inf")),
        ({"max_epochs": 1}, False, float("inf")),
        ({"max_epochs": 1, "max_steps": 2}, False, 2),
        ({"max_epochs": 2, "limit_train_batches": 3}, False, 6),
    ],
)
def test_the_estimate_of_steps(tmp_path: Path, arguments: dict[str, Any], sized: bool, steps: float) -> None:
    class Estimating(Model):
        def configure_optimizers(self) -> Any:
            self.estimate = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model, trainer = Estimating(), Trainer(**quiet(tmp_path, **arguments))
    trainer.fit(model, data(4) if sized else Batches(4))

    assert model.estimate == steps


def test_the_estimate_of_steps_without_data_is_the_bound(tmp_path: Path) -> None:
    assert Trainer(**quiet(tmp_path)).estimated_stepping_batches == float("inf")
    assert Trainer(**quiet(tmp_path, max_steps=7)).estimated_stepping_batches == 7


# ---- from run to run
def test_a_second_fit_goes_on_when_the_bound_is_raised(tmp_path: Path) -> None:
    trainer, model = Trainer(**quiet(tmp_path, num_sanity_val_steps=0)), Model()
    trainer.fit(model, data(2))
    trainer.fit(model, data(2))
    assert (trainer.global_step, trainer.current_epoch) == (2, 1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, data(2))
    assert (trainer.global_step, trainer.current_epoch, trainer.max_epochs) == (6, 3, 3)


def test_fit_test_and_predict_one_after_the_other(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, enable_checkpointing=True))
    trainer.fit(Model(), data(2), data(2))
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert trainer.ckpt_path is None
    with pytest.warns(UserWarning, match="called without a model"):
        scores = trainer.validate(dataloaders=data(2), verbose=False)
    assert scores == [{"score": 0.5}]
    assert trainer.ckpt_path == best
    assert trainer.test(dataloaders=data(2), ckpt_path="best", verbose=False) == [{"test_score": 2.0}]
    assert trainer.predict(dataloaders=data(1), ckpt_path="best") == [(0, 0)]


def test_validate_without_a_model_loads_the_best_weights(tmp_path: Path) -> None:
    class Reading(Model):
        def on_validation_start(self) -> None:
            self.weight = self.layer.weight.item()

    model, trainer = Reading(), Trainer(**quiet(tmp_path, enable_checkpointing=True))
    trainer.fit(model, data(2), data(2))
    best = model.layer.weight.item()
    model.layer.weight.data.fill_(9)
    trainer.validate(model, data(1), verbose=False)
    assert model.weight == 9
    with pytest.warns(UserWarning, match="called without a model"):
        trainer.validate(dataloaders=data(1), verbose=False)
    assert model.weight == pytest.approx(best)


def test_a_path_set_by_the_user_is_used_by_later_calls(tmp_path: Path) -> None:
    trainer, model = Trainer(**quiet(tmp_path)), Model()
    trainer.fit(model, data(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.ckpt_path = str(tmp_path / "a.ckpt")
    model.layer.weight.data.fill_(9)
    trainer.test(model, data(1), verbose=False)

    assert model.layer.weight.item() != 9
    assert trainer.ckpt_path == str(tmp_path / "a.ckpt")
    trainer.ckpt_path = None
    model.layer.weight.data.fill_(9)
    trainer.test(model, data(1), verbose=False)
    assert (model.layer.weight.item(), trainer.ckpt_path) == (9, None)


def test_a_datamodule_may_stand_in_place_of_the_loaders(tmp_path: Path) -> None:
    trainer, model, datamodule = Trainer(**quiet(tmp_path)), Model(), Data()
    trainer.fit(model, datamodule)
    assert (trainer.global_step, trainer.datamodule) == (2, datamodule)
    assert trainer.validate(model, Data(), verbose=False) == [{"score": 0.5}]
    assert trainer.test(model, Data(), verbose=False) == [{"test_score": 2.0}]
    assert trainer.predict(model, Data()) == [(0, 0), (1, 0)]


def test_modes_of_submodules_are_kept(tmp_path: Path) -> None:
    class Frozen(Model):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Dropout()
            self.frozen.eval()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.modes = (self.training, self.layer.training, self.frozen.training)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            assert not any(module.training for module in self.modules())

    model, trainer = Frozen(), Trainer(**quiet(tmp_path, max_epochs=2))
    with pytest.warns(UserWarning, match="1 submodules are in evaluation mode"):
        trainer.fit(model, data(1), data(1))
    trainer.predict(model, data(1))

    assert model.modes == (True, True, False)
    assert (model.training, model.layer.training, model.frozen.training) == (True, True, False)


# ---- methods
def test_save_checkpoint_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="no model is attached"):
        Trainer(**quiet(tmp_path)).save_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
    ],
)
def test_modules_are_made_in_the_precision_of_the_trainer(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    trainer = Trainer(**quiet(tmp_path, precision=precision))
    with trainer.init_module():
        layer = nn.Linear(1, 1)
    with trainer.init_module(empty_init=True):
        empty = nn.Linear(2, 2)

    assert (layer.weight.dtype, empty.weight.shape) == (dtype, (2, 2))
    assert torch.get_default_dtype() == torch.float32


def test_print_passes_everything_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(**quiet(tmp_path)).print("a", "b", sep="-", end="!")

    assert capsys.readouterr().out == "a-b!"


def test_print_events_shows_who_acts_at_each_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Acting(Model):
        def on_train_start(self) -> None:
            pass

    trainer = Trainer(**quiet(tmp_path, callbacks=EarlyStopping("score")))
    trainer.fit(Acting(), data(1), data(1))
    trainer.print_events()
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())

    assert "Acting" in lines["on_train_start"]
    assert "EarlyStopping" in lines["on_validation_end"]
    assert lines["on_train_batch_end"] == "-"
