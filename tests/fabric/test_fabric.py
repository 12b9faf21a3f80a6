from __future__ import annotations

import os
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from torch import nn

import fulmen.fabric.callbacks
from fulmen import Fabric
from fulmen.demos import BoringModel
from fulmen.loggers import CSVLogger
from fulmen.plugins import MixedPrecision
from fulmen.strategies import SingleDeviceStrategy
from fulmen.utilities.rank_zero import LightningDeprecationWarning

DataLoader: Any = torch.utils.data.DataLoader


def made(**changes: Any) -> Fabric:
    return Fabric(**{"accelerator": "cpu", "devices": 1, **changes})


# ---- settings
def test_environment_variables_replace_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_PRECISION", "bf16-true")
    monkeypatch.setenv("LT_DEVICES", "1")
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    monkeypatch.setenv("LT_NUM_NODES", "1")

    assert Fabric(precision="64-true", devices=7).strategy.precision_plugin.precision == "bf16-true"


def test_a_number_of_machines_that_is_none_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_NUM_NODES", "two")

    with pytest.raises(ValueError, match=r"`LT_NUM_NODES=two`.*Set an int"):
        made()


def test_a_value_that_contradicts_the_command_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv("LT_PRECISION", "bf16-true")
    monkeypatch.setenv("LT_DEVICES", "1")
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")

    with pytest.raises(ValueError, match=r"Your code has `Fabric\(precision='64-true', ...\)`.*--precision=bf16-true"):
        Fabric(precision="64-true")
    assert Fabric(precision="bf16-true").world_size == 1


def test_a_script_of_the_command_is_launched_already(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Fabric):
        def run(self) -> None:
            pass

    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv("LT_DEVICES", "1")
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")

    with pytest.raises(RuntimeError, match="processes already"):
        Fabric().launch()
    with pytest.raises(TypeError, match=r"`Mine\.run` is overridden"):
        Mine()


def test_a_strategy_and_plugins_may_be_objects() -> None:
    strategy = SingleDeviceStrategy("cpu")
    fabric = Fabric(strategy=strategy, plugins=MixedPrecision("bf16-mixed", "cpu"))

    assert fabric.strategy is strategy
    assert fabric.strategy.precision_plugin.precision == "bf16-mixed"
    assert fabric.accelerator is strategy.accelerator


def test_settings_that_exclude_each_other_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="two of the kind `Precision`"):
        made(plugins=[MixedPrecision("bf16-mixed", "cpu"), MixedPrecision("bf16-mixed", "cpu")])


def test_the_callers_list_of_callbacks_stays_as_it_is() -> None:
    class Module(nn.Linear):
        fabric = property(lambda self: None, lambda self, fabric: None)

    callbacks: list[Any] = []
    made(callbacks=callbacks).setup(Module(1, 1))

    assert callbacks == []


def test_installed_packages_add_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints(
        [
            EntryPoint("one", "builtins:object", "fulmen.fabric.callbacks_factory"),
            EntryPoint("two", "builtins:list", "lightning.fabric.callbacks_factory"),
        ]
    )
    monkeypatch.setattr(fulmen.fabric.callbacks, "entry_points", lambda: installed)

    assert [type(callback) for callback in fulmen.fabric.callbacks.all_callbacks([3])] == [int, object]


# ---- launch
def test_run_of_a_subclass_of_a_subclass_launches_once() -> None:
    class Mine(Fabric):
        def run(self, a: int) -> list[int]:
            return [a]

    class More(Mine):
        def run(self, a: int) -> list[int]:
            return [*super().run(a), a + 1]

    fabric = More(accelerator="cpu", devices=1)

    assert fabric.run(1) == [1, 2]
    assert fabric.run(2) == [2, 3]


def test_an_error_in_the_function_is_raised_as_it_is() -> None:
    def fails(fabric: Fabric) -> None:
        raise ArithmeticError("here")

    with pytest.raises(ArithmeticError, match="here"):
        made().launch(fails)


# ---- setup
def test_parameters_on_several_devices_warn() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))

    with pytest.warns(UserWarning, match=r"several devices: \['cpu', 'meta'\]"), pytest.raises(NotImplementedError):
        made().setup(model)


def test_a_module_may_be_left_where_it_is() -> None:
    model = made().setup(nn.Linear(1, 1, device="meta"), move_to_device=False)

    assert model.device.type == "meta"


def test_optimizers_of_a_module_can_be_asked_for() -> None:
    fabric = made()
    module = nn.Linear(1, 1)
    wrapped, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=1.0))

    assert fabric.optimizers_of(module) == fabric.optimizers_of(wrapped) == [optimizer]
    assert fabric.optimizers_of(nn.Linear(1, 1)) == []


def test_sharded_model_is_deprecated() -> None:
    with pytest.warns(LightningDeprecationWarning, match="init_module"), made().sharded_model():
        pass


def test_workers_of_loaders_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PL_SEED_WORKERS", "1")
    dataloader = DataLoader([1])
    made().setup_dataloaders(dataloader)

    assert dataloader.worker_init_fn is not None


# ---- step
def test_mixed_precision_steps_go_through_the_scaler() -> None:
    from torch.amp import GradScaler

    scaler = GradScaler("cpu", init_scale=8.0)
    fabric = made(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    model: Any = nn.Linear(2, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    before = model.weight.clone()
    fabric.backward(model(torch.ones(1, 2)).sum())
    scaled = model.weight.grad.clone()
    norm = fabric.clip_gradients(model, optimizer, max_norm=100.0)
    optimizer.step()

    assert scaled.tolist() == [[8.0, 8.0]]
    assert norm == pytest.approx(3**0.5)
    assert (before - model.weight).tolist() == [[1.0, 1.0]]


def test_backward_past_a_scaler_is_refused_each_time() -> None:
    fabric = made(precision="bf16-mixed")
    model: Any = fabric.setup(nn.Linear(2, 1))

    with pytest.raises(RuntimeError, match=r"fabric\.backward\(loss\)"):
        model(torch.ones(1, 2)).sum().backward()
    fabric.backward(model(torch.ones(1, 2)).sum())
    with pytest.raises(RuntimeError, match=r"fabric\.backward\(loss\)"):
        model(torch.ones(1, 2)).sum().backward()


class NotesModule(SingleDeviceStrategy):
    """Runs the backward pass itself, and notes what it is told about it."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.modules: list[Any] = []

    def run_backward(self, tensor: torch.Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.modules.append(module)
        super().run_backward(tensor, module, *args, optimizer=optimizer, **kwargs)


@pytest.mark.parametrize("kind", [nn.Linear, BoringModel])
def test_a_strategy_that_runs_the_backward_pass_gets_the_module(kind: Any) -> None:
    strategy = NotesModule()
    fabric = Fabric(strategy=strategy)
    module = nn.Linear(32, 2) if kind is nn.Linear else kind()
    model: Any = fabric.setup(module)
    fabric.backward(model(torch.ones(1, 32)).sum(), model=model)
    gradients = [parameter.grad for parameter in module.parameters()]
    fabric.backward(model(torch.ones(1, 32)).sum())

    assert strategy.modules == [module, None]
    assert all(gradient is not None for gradient in gradients)


def test_a_method_of_the_module_that_is_called_backward_is_not_the_backward_pass() -> None:
    class Reversible(nn.Linear):
        def backward(self) -> None:
            raise AssertionError

    fabric = made(precision="bf16-mixed")
    model: Any = fabric.setup(Reversible(2, 1))
    fabric.backward(model(torch.ones(1, 2)).sum(), model=model)

    assert model.weight.grad is not None


# ---- callbacks, loggers
def test_a_callback_attribute_that_cannot_be_called_warns() -> None:
    class Callback:
        hook = 3

    with pytest.warns(UserWarning, match=r"Skipping the callback `Callback\.hook`"):
        made(callbacks=Callback()).call("hook")


def test_logged_values_reach_a_file(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path, name="", version="v")
    fabric = made(loggers=logger)
    fabric.log("loss", torch.tensor(0.5), step=3)
    logger.save()

    assert (tmp_path / "v" / "metrics.csv").read_text().split() == ["loss,step", "0.5,3"]
