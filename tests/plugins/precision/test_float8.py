"""Linear layers in float8, emulated where there is no GPU that has it."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.core.module import LightningModule
from fulmen.plugins.precision import Float8Precision, MixedPrecision, Precision
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.exceptions import MisconfigurationException

needs_float8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with float8"
)
needs_torchao = pytest.mark.filterwarnings(
    "ignore:.*get_autocast_gpu_dtype:DeprecationWarning"  # torchao asks for it by its old name
)


@pytest.fixture(autouse=True)
def _torchao():
    pytest.importorskip("torchao")


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, 3))


def train(precision, model, *, device="cpu", steps=12, batch=10):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = precision.convert_module(model).to(device)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(batch, 32, generator=generator).to(device), torch.randn(batch, 3, generator=generator).to(device)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with precision.train_step_context():
            loss = nn.functional.mse_loss(model(x).float(), y)
        precision.backward(precision.pre_backward(loss, model), model, optimizer)
        precision.optimizer_step(optimizer, model)
        losses.append(loss.item())
    return model, losses


def kinds(module):
    return [type(layer).__name__ for layer in module]


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_training_keeps_close_to_32_bit_and_trains_the_parameters_of_the_optimizer(recipe):
    _, expected = train(Precision(), small_model())

    model, losses = train(Float8Precision(recipe, emulate=True), small_model())

    assert kinds(model) == ["Float8Linear", "LayerNorm", "GELU", "Float8Linear", "Linear"]
    assert losses[-1] < 0.8 * losses[0]
    assert losses == pytest.approx(expected, rel=0.1)
    assert losses != expected


def test_weights_and_gradients_keep_their_type_and_activations_are_bfloat16():
    precision = Float8Precision(emulate=True)
    model: Any = precision.convert_module(small_model())
    seen: list[Any] = []
    model[3].register_forward_hook(lambda layer, args, output: seen.extend([args[0].dtype, output.dtype]))

    with precision.train_step_context():
        output = model(torch.ones(2, 32))
    output.float().sum().backward()

    assert seen == [torch.bfloat16, torch.bfloat16]
    assert output.dtype == torch.bfloat16
    assert precision.convert_output(output).dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_values_are_rounded_to_8_bit():
    precision = Float8Precision(emulate=True)
    reference = MixedPrecision("bf16-mixed", "cpu")
    x = torch.randn(16, 32)
    linear = nn.Linear(32, 64)
    with reference.forward_context():
        expected = linear(x).float()

    model = precision.convert_module(linear)
    with precision.forward_context():
        error = ((model(x).float() - expected).norm() / expected.norm()).item()

    assert 0.005 < error < 0.08


def test_a_checkpoint_is_that_of_a_run_in_32_bit():
    plain = small_model()
    model = Float8Precision(emulate=True).convert_module(small_model())

    state = model.state_dict()

    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        name: (value.dtype, value.shape) for name, value in plain.state_dict().items()
    }
    plain.load_state_dict(state)


def test_layers_named_and_of_odd_shape_stay():
    model = nn.ModuleDict({"body": small_model(), "head": nn.Sequential(nn.Linear(32, 32)), "odd": nn.Linear(32, 17)})

    converted: Any = Float8Precision(ignore_modules={"head", "body.3"}, emulate=True).convert_module(model)

    assert kinds(converted["body"]) == ["Float8Linear", "LayerNorm", "GELU", "Linear", "Linear"]
    assert kinds(converted["head"]) == ["Linear"]
    assert type(converted["odd"]) is nn.Linear


def test_subclasses_of_linear_stay():
    model: Any = Float8Precision(emulate=True).convert_module(nn.TransformerEncoderLayer(32, 2, 64))

    assert type(model.linear1).__name__ == "Float8Linear"
    assert type(model.self_attn.out_proj).__name__ == "NonDynamicallyQuantizableLinear"


def test_hooks_and_shared_weights_stay():
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 64, bias=False))
    model[1].weight = model[0].weight
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    precision = Float8Precision(emulate=True)

    converted: Any = precision.convert_module(model)
    converted(torch.arange(4))

    assert kinds(converted) == ["Embedding", "Float8Linear"]
    assert converted[1].weight is converted[0].weight
    assert calls == [1]


def test_converting_twice_changes_nothing_more():
    precision = Float8Precision(emulate=True)
    model: Any = precision.convert_module(small_model())
    layer = model[0]

    precision.convert_module(model)

    assert model[0] is layer
    assert len(layer._forward_pre_hooks) == 1


def test_a_model_without_suited_layers_gets_a_warning():
    with pytest.warns(UserWarning, match="no layer to compute in float8 in `Linear`"):
        Float8Precision(emulate=True).convert_module(nn.Linear(3, 3))


def test_a_name_that_does_not_exist_gets_a_warning():
    with pytest.warns(UserWarning, match="names 'lm_haed', but `Sequential` has no such submodule"):
        Float8Precision(ignore_modules="lm_haed", emulate=True).convert_module(small_model())


def test_a_configuration_of_the_package_is_taken_as_it_is():
    config = pytest.importorskip("torchao.float8").Float8LinearConfig.from_recipe_name("rowwise")

    assert Float8Precision(config).config is config
    assert Float8Precision(config, emulate=True).config.emulate


def test_it_can_be_sent_to_other_processes():
    sent = pickle.loads(pickle.dumps(Float8Precision("rowwise", ignore_modules="0", emulate=True)))

    assert kinds(sent.convert_module(small_model()))[::3] == ["Linear", "Float8Linear"]


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"recipe='blockwise'.*'tensorwise', 'rowwise'"):
        Float8Precision("blockwise")


def test_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(MisconfigurationException, match=r"no GPU.*bf16-mixed.*emulate=True"):
        Float8Precision().convert_module(small_model())


def test_a_module_on_a_device_without_float8_is_refused_at_the_first_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    precision = Float8Precision()
    precision.convert_module(small_model())

    with pytest.raises(MisconfigurationException, match="the module is on 'cpu'"):
        precision.train_step_context()


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)

    with pytest.raises(ModuleNotFoundError, match=r"precision='fp8-mixed'.*pip install 'fulmen\[float8\]'"):
        Float8Precision()


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = small_model()
        self.losses: list[float] = []

    def training_step(self, batch):
        loss = self.layers(batch).float().square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_the_trainer_goes_on_in_32_bit_from_a_checkpoint_in_float8(tmp_path):
    data: Any = torch.randn(16, 32)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    first = Regression()
    trainer = Trainer(max_epochs=2, plugins=Float8Precision(emulate=True), **settings)
    trainer.fit(first, DataLoader(data, batch_size=8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    second = Regression()
    Trainer(max_epochs=4, **settings).fit(second, DataLoader(data, batch_size=8), ckpt_path=tmp_path / "a.ckpt")

    assert trainer.precision == "fp8-mixed"
    assert type(first.layers[0]).__name__ == "Float8Linear"
    assert len(second.losses) == 4
    assert max(second.losses) < min(first.losses)


@pytest.mark.gpu
@needs_float8
@needs_torchao
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("batch", [32, 10], ids=["aligned", "odd"])
def test_float8_on_a_gpu_keeps_close_to_32_bit(recipe, batch):
    _, expected = train(Precision(), small_model(), device="cuda", batch=batch)

    model, losses = train(Float8Precision(recipe), small_model(), device="cuda", batch=batch)

    assert kinds(model)[0] == "Float8Linear"
    assert losses == pytest.approx(expected, rel=0.05)


@pytest.mark.gpu
@needs_float8
@needs_torchao
def test_a_compiled_transformer_block_learns_in_float8():
    torch.manual_seed(0)
    precision = Float8Precision()
    block: Any = precision.convert_module(nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)).cuda()
    compiled = torch.compile(block)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3)
    x = torch.randn(4, 32, 128, device="cuda")
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with precision.train_step_context():
            loss = (compiled(x).float() - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]
