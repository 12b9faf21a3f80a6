"""LightningModule by itself and in a run: properties, devices, copies, and what the Trainer asks of it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from tests.support import quiet


class Child(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Model(LightningModule):
    """Has a LightningModule inside, one directly and one within a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child()
        self.nested = nn.Sequential(nn.Linear(2, 2), Child())
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.child.layer(x)
        return out

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    @property
    def inner(self) -> Child:
        child = self.nested[1]
        assert isinstance(child, Child)
        return child


def data(batches: int = 2) -> DataLoader[Any]:
    return DataLoader(torch.ones(batches, 2))  # type: ignore[arg-type]  # a tensor is a dataset


# ---- properties
def test_without_a_trainer_the_properties_have_neutral_values() -> None:
    model = Model()

    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (0, 0, 0, 0)
    assert (model.logger, model.loggers, model.fabric, model.device_mesh) == (None, [], None, None)
    assert (model.device, model.dtype, model.on_gpu) == (torch.device("cpu"), torch.float32, False)
    assert (model.automatic_optimization, model.strict_loading, model.example_input_array) == (True, True, None)
    with pytest.raises(RuntimeError, match="`Model` is not attached to a `Trainer`"):
        _ = model.trainer


def test_in_a_run_the_properties_are_those_of_the_trainer(tmp_path: Path) -> None:
    class Looking(Model):
        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append((self.current_epoch, self.global_step, self.logger, self.loggers, self.trainer))

    logger, model = CSVLogger(tmp_path), Looking()
    trainer = Trainer(**quiet(tmp_path, logger=logger, max_epochs=2, log_every_n_steps=1))
    trainer.fit(model, data())

    assert [seen[:2] for seen in model.seen] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert all(seen[2:] == (logger, [logger], trainer) for seen in model.seen)
    assert (model.current_epoch, model.global_step) == (2, 4)


def test_trainer_and_fabric_are_set_on_modules_inside() -> None:
    model, trainer, fabric = Model(), Trainer(logger=False, enable_checkpointing=False), object()
    model.trainer = trainer
    assert model.child.trainer is model.inner.trainer is trainer
    model.fabric = fabric
    assert model.child.fabric is model.inner.fabric is fabric
    model.fabric = model.trainer = None
    with pytest.raises(RuntimeError, match="not attached"):
        _ = model.inner.trainer


def test_settings_can_be_changed() -> None:
    model = Model()
    model.automatic_optimization, model.strict_loading = False, False
    model.example_input_array = example = {"x": torch.ones(2)}

    assert (model.automatic_optimization, model.strict_loading) == (False, False)
    assert model.example_input_array is example


def test_properties_that_torchscript_must_skip_exist() -> None:
    names = LightningModule.__jit_unused_properties__
    properties = {name for kind in LightningModule.__mro__ for name, v in vars(kind).items() if isinstance(v, property)}

    assert set(names) <= properties
    assert properties - set(names) == set()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_attached_module_can_be_scripted(tmp_path: Path) -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    model = Plain()
    model.trainer = Trainer(**quiet(tmp_path))
    scripted = torch.jit.script(model)

    assert torch.equal(scripted(torch.ones(1, 2)), model(torch.ones(1, 2)))


# ---- device and type
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda m: m.double(), torch.float64),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.half().float(), torch.float32),
        (lambda m: m.to(torch.float64), torch.float64),
        (lambda m: m.to("cpu", torch.float64), torch.float64),
        (lambda m: m.to(dtype=torch.float16), torch.float16),
        (lambda m: m.to(torch.ones(1, dtype=torch.float64)), torch.float64),
        (lambda m: m.type(torch.float64), torch.float64),
        (lambda m: m.to("cpu").cpu(), torch.float32),
    ],
)
def test_dtype_follows_conversions_of_it_and_all_inside(convert: Any, dtype: torch.dtype) -> None:
    model = Model()
    converted = convert(model)

    assert converted is model
    assert [m.dtype for m in (model, model.child, model.inner)] == [dtype] * 3
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize("move", [lambda m: m.to("meta"), lambda m: m.to(device=torch.device("meta"))])
def test_device_follows_moves_of_it_and_all_inside(move: Any) -> None:
    model = Model()
    move(model)

    assert [m.device for m in (model, model.child, model.inner)] == [torch.device("meta")] * 3
    assert model.child.layer.weight.is_meta


def test_a_child_that_is_moved_alone_leaves_the_parent() -> None:
    model = Model()
    model.child.double()

    assert (model.child.dtype, model.dtype, model.inner.dtype) == (torch.float64, torch.float32, torch.float32)


def test_device_and_type_of_a_new_module_are_those_in_force() -> None:
    with torch.device("meta"):
        model = Model()

    assert model.device == torch.device("meta")


def test_dtype_cannot_be_set() -> None:
    with pytest.raises(RuntimeError, match="`dtype` cannot be set"):
        Model().dtype = torch.float64


@pytest.mark.gpu
def test_device_follows_cuda() -> None:
    model = Model().cuda()

    assert model.device == model.inner.device == torch.device("cuda", torch.cuda.current_device())
    assert model.on_gpu
    assert model.cpu().device == torch.device("cpu")


# ---- freezing
def test_freeze_and_unfreeze_all_parameters_and_modes() -> None:
    model = Model()

    assert model.freeze() is model
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    assert model.unfreeze() is model
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


# ---- print, gather
def test_print_goes_out_with_and_without_a_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model()
    model.print("one", 2, sep="-")
    model.trainer = Trainer(**quiet(tmp_path))
    model.print("three", end="!")

    assert capsys.readouterr().out == "one-2\nthree!"


def test_all_gather_on_one_device_keeps_the_structure(tmp_path: Path) -> None:
    model = Model()
    model.trainer = Trainer(**quiet(tmp_path))
    tensor = torch.ones(2)
    gathered = model.all_gather({"a": tensor, "b": [1, 2.5], "c": "text", "d": True})

    assert gathered["a"] is tensor
    assert [gathered["b"][0], gathered["b"][1], gathered["d"]] == [
        torch.tensor(1),
        torch.tensor(2.5),
        torch.tensor(True),
    ]
    assert gathered["c"] == "text"


# ---- copies
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_attached_module_is_not_attached(copied: Any, tmp_path: Path) -> None:
    model, trainer = Model(), Trainer(**quiet(tmp_path))
    trainer.fit(model, data())
    again = copied(model)

    assert model.trainer is trainer
    for module in (again, again.child, again.inner):
        with pytest.raises(RuntimeError, match="not attached"):
            _ = module.trainer
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    Trainer(**quiet(tmp_path)).fit(again, data())


def test_a_module_can_be_copied_inside_a_run(tmp_path: Path) -> None:
    class Copying(Model):
        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append(copy.deepcopy(self).global_step)

    model = Copying()
    Trainer(**quiet(tmp_path)).fit(model, data())

    assert model.seen == [0, 0]
    assert model.trainer.global_step == 2


def test_load_from_checkpoint_is_for_the_class(tmp_path: Path) -> None:
    model, trainer = Model(), Trainer(**quiet(tmp_path))
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "model.ckpt")

    with pytest.raises(TypeError, match="load_from_checkpoint"):
        model.load_from_checkpoint(tmp_path / "model.ckpt")
    loaded = Model.load_from_checkpoint(tmp_path / "model.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


# ---- what the Trainer asks
class Marked(Callback):
    def __init__(self, mark: str) -> None:
        self.mark = mark


class Special(Marked):
    pass


class OtherKind(Callback):
    pass


def test_callbacks_of_the_module_replace_those_of_their_kind(tmp_path: Path) -> None:
    class Bringing(Model):
        def configure_callbacks(self) -> Any:
            return [Special("module")]

    kept, saver = OtherKind(), ModelCheckpoint(tmp_path)
    given = [Special("same class"), saver, Marked("parent class"), kept]
    trainer = Trainer(**quiet(tmp_path, callbacks=given, enable_checkpointing=True))
    trainer.fit(Bringing(), data())

    assert [type(callback) for callback in trainer.callbacks] == [OtherKind, Special, ModelCheckpoint]
    assert [callback.mark for callback in trainer.callbacks if isinstance(callback, Marked)] == ["module"]
    assert len(given) == 4


def test_one_callback_need_not_be_in_a_list(tmp_path: Path) -> None:
    class Bringing(Model):
        def configure_callbacks(self) -> Any:
            return Marked("module")

    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(Bringing(), data())
    trainer.fit(Bringing(), data())

    assert [type(callback) for callback in trainer.callbacks] == [Marked]


def test_configure_model_is_called_for_every_run_of_the_same_module(tmp_path: Path) -> None:
    class Late(Model):
        def __init__(self) -> None:
            super().__init__()
            self.late: nn.Linear | None = None

        def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

        def configure_model(self) -> None:
            self.seen.append("called")
            if self.late is None:
                self.late = nn.Linear(2, 1)

    model, trainer = Late(), Trainer(**quiet(tmp_path))
    trainer.fit(model, data(), data())
    late = model.late
    trainer.validate(model, data(), verbose=False)
    trainer.predict(model, data())

    assert model.seen == ["called"] * 3
    assert model.late is late
    assert late is not None
    assert "late.weight" in model.state_dict()


def test_predict_step_calls_the_module_by_default(tmp_path: Path) -> None:
    model = Model()
    predictions = Trainer(**quiet(tmp_path)).predict(model, data())

    assert predictions is not None
    assert torch.equal(torch.stack(predictions), model(torch.ones(2, 1, 2)))  # type: ignore[arg-type]


def test_steps_that_are_missing_do_nothing_but_warn() -> None:
    model = LightningModule()
    with pytest.warns(UserWarning, match="`training_step` must be implemented"):
        model.training_step()
    with pytest.warns(UserWarning, match="`configure_optimizers` must be implemented"):
        model.configure_optimizers()

    assert (model.validation_step(), model.test_step(), model.configure_callbacks()) == (None, None, [])


# ---- batches on their way
class Moving(Model):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.seen.append("module before")
        return batch + 1

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.seen.append("module move")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.seen.append("module after")
        return batch * 10

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(batch[0, 0].item())
        return super().training_step(batch, batch_idx)


class Batches(LightningDataModule):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def train_dataloader(self) -> Any:
        return data(1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.seen.append("datamodule after")
        return batch * 100


def test_transfer_hooks_change_the_batch_in_order(tmp_path: Path) -> None:
    model = Moving()
    Trainer(**quiet(tmp_path)).fit(model, data(1))

    assert model.seen == ["module before", "module move", "module after", 20.0]


@pytest.mark.filterwarnings("ignore:`on_after_batch_transfer` is overridden in both")
def test_a_transfer_hook_of_the_datamodule_goes_before_the_modules(tmp_path: Path) -> None:
    model = Moving()
    Trainer(**quiet(tmp_path)).fit(model, datamodule=Batches(model.seen))

    assert model.seen == ["module before", "module move", "datamodule after", 200.0]


def test_two_owners_of_a_transfer_hook_warn(tmp_path: Path) -> None:
    model = Moving()
    with pytest.warns(UserWarning, match="overridden in both.*the datamodule's is used"):
        Trainer(**quiet(tmp_path)).fit(model, datamodule=Batches(model.seen))
