"""What a Trainer calls on a strategy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fulmen.plugins import DoublePrecision, MixedPrecision, TorchCheckpointIO
from fulmen.strategies import SingleDeviceStrategy

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Model(nn.Module):
    """A module with the methods that a strategy calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch):
        return "validated", batch

    def test_step(self, batch):
        return "tested", batch

    def predict_step(self, batch):
        return "predicted", batch


class Run:
    """As much of a Trainer as a strategy sees."""

    local_rank = 0

    def __init__(self, model: Model, fn: str = "fit") -> None:
        self.state = SimpleNamespace(fn=fn)
        self.model = model

    def configured_optimizers(self):
        return [torch.optim.Adam(self.model.parameters(), lr=0.1)], []


def set_up(strategy, fn="fit"):
    torch.manual_seed(0)
    model = Model()
    strategy.connect(model)
    strategy.setup_environment()
    strategy.setup(Run(model, fn))
    return model


def step(strategy: SingleDeviceStrategy) -> None:
    batch = strategy.precision_plugin.convert_input(torch.ones(4, 2))
    batch = strategy.batch_to_device(batch)
    [optimizer] = strategy.optimizers
    optimizer.zero_grad()
    with strategy.precision_plugin.train_step_context():
        loss = strategy.training_step(batch, 0)
    strategy.backward(loss, optimizer)
    strategy.optimizer_step(optimizer)


@pytest.mark.parametrize(("fn", "count"), [("fit", 1), ("validate", 0), ("test", 0), ("predict", 0)])
def test_optimizers_are_made_in_fit_only(fn, count):
    strategy = SingleDeviceStrategy()

    set_up(strategy, fn)

    assert len(strategy.optimizers) == count
    assert strategy.lr_scheduler_configs == []


def test_setup_converts_the_module_before_the_optimizers_see_it():
    strategy = SingleDeviceStrategy(precision_plugin=DoublePrecision())

    model = set_up(strategy)
    step(strategy)

    [optimizer] = strategy.optimizers
    assert model.layer.weight.dtype == torch.float64
    assert optimizer.state[model.layer.weight]["exp_avg"].dtype == torch.float64
    assert strategy.model is strategy.lightning_module is model


@pytest.mark.parametrize("name", ["validation", "test", "predict"])
def test_steps_call_the_users_method(name):
    strategy = SingleDeviceStrategy()
    set_up(strategy, "validate")

    assert getattr(strategy, f"{name}_step")(3)[1] == 3


def test_step_is_bit_equal_to_a_plain_one():
    strategy = SingleDeviceStrategy()
    model = set_up(strategy)
    torch.manual_seed(0)
    expected = Model()
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.1)

    for _ in range(3):
        step(strategy)
        optimizer.zero_grad()
        expected.training_step(torch.ones(4, 2), 0).backward()
        optimizer.step()

    assert torch.equal(model.layer.weight, expected.layer.weight)


def test_backward_calls_the_strategys_hooks_around():
    calls = []

    class Watching(SingleDeviceStrategy):
        def pre_backward(self, closure_loss):
            calls.append(("pre", closure_loss.item()))

        def post_backward(self, closure_loss):
            calls.append(("post", closure_loss.item()))

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    strategy = Watching(precision_plugin=MixedPrecision("16-mixed", "cpu", scaler))
    model = set_up(strategy)

    strategy.backward(model.layer.bias.sum() * 0 + 1, strategy.optimizers[0])

    assert calls == [("pre", 1.0), ("post", 8.0)]


def test_batch_goes_through_the_modules_transfer_hooks():
    strategy = SingleDeviceStrategy()
    model = set_up(strategy)
    model._apply_batch_transfer_handler = lambda batch, device, dataloader_idx: (batch, device, dataloader_idx)

    assert strategy.batch_to_device(1, dataloader_idx=2) == (1, torch.device("cpu"), 2)


def test_checkpoint_goes_through_the_io(tmp_path):
    strategy = SingleDeviceStrategy()
    model = set_up(strategy)
    step(strategy)
    [optimizer] = strategy.optimizers
    path = tmp_path / "a.ckpt"
    strategy.save_checkpoint(
        {
            "state_dict": strategy.lightning_module_state_dict(),
            "optimizer_states": [strategy.optimizer_state(optimizer)],
        },
        path,
    )
    other = SingleDeviceStrategy()
    restored = set_up(other)

    checkpoint = other.load_checkpoint(path)
    other.load_model_state_dict(checkpoint)
    other.load_optimizer_state_dict(checkpoint)
    for each in (strategy, other):
        step(each)
    strategy.remove_checkpoint(path)

    assert torch.equal(restored.layer.weight, model.layer.weight)
    assert not path.exists()


def test_weights_only_reaches_the_io(tmp_path):
    strategy = SingleDeviceStrategy()
    strategy.save_checkpoint({"function": pytest.approx}, tmp_path / "a")

    assert strategy.load_checkpoint(tmp_path / "a", weights_only=False)["function"] is pytest.approx


def test_another_number_of_optimizers_than_saved_is_refused():
    strategy = SingleDeviceStrategy()
    set_up(strategy)

    with pytest.raises(ValueError, match="states of 2 optimizers"):
        strategy.load_optimizer_state_dict({"optimizer_states": [{}, {}]})


def test_teardown_ends_the_parts_even_if_one_fails():
    class Io(TorchCheckpointIO):
        ended = False

        def teardown(self):
            self.ended = True

    class Failing(DoublePrecision):
        def teardown(self):
            raise RuntimeError("precision")

    io = Io()
    strategy = SingleDeviceStrategy(checkpoint_io=io, precision_plugin=Failing())

    with pytest.raises(RuntimeError, match="precision"):
        strategy.teardown()

    assert io.ended


def test_facts_that_a_trainer_asks_for():
    strategy = SingleDeviceStrategy()

    assert not strategy.restore_checkpoint_after_setup
    assert strategy.lightning_restore_optimizer
    assert not strategy.handles_gradient_accumulation
    with strategy.block_backward_sync(), strategy.model_sharded_context():
        pass


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("settings", [{}, {"capturable": True}, {"fused": True}], ids=["plain", "capturable", "fused"])
def test_a_run_on_a_gpu_ends_in_host_memory_and_can_go_on(settings, tmp_path):
    class Configured(Run):
        def configured_optimizers(self):
            return [torch.optim.Adam(self.model.parameters(), lr=0.1, **settings)], []

    torch.manual_seed(0)
    model, strategy = Model(), SingleDeviceStrategy("cuda:0")
    strategy.connect(model)
    strategy.setup_environment()
    strategy.setup(Configured(model))
    step(strategy)
    [optimizer] = strategy.optimizers
    state = optimizer.state[model.layer.weight]
    on_device = (model.layer.weight.device.type, state["exp_avg"].device.type, state["step"].device.type)
    strategy.save_checkpoint({"optimizer_states": [optimizer.state_dict()]}, tmp_path / "a")
    strategy.load_optimizer_state_dict(strategy.load_checkpoint(tmp_path / "a"))
    step(strategy)
    strategy.teardown()

    assert on_device == ("cuda", "cuda", "cuda" if settings else "cpu")
    assert model.layer.weight.device.type == "cpu"
    assert {value.device.type for value in optimizer.state[model.layer.weight].values()} == {"cpu"}
