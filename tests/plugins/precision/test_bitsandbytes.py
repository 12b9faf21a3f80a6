"""Quantized weights, by the real package on the CPU."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.core.module import LightningModule
from fulmen.plugins.precision import BitsandbytesPrecision
from fulmen.trainer.trainer import Trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FOUR_BIT = ["nf4", "nf4-dq", "fp4", "fp4-dq"]
QUANTIZED = [*FOUR_BIT, "int8"]
MODES = [*QUANTIZED, "int8-training"]


@pytest.fixture(autouse=True)
def _bitsandbytes():
    pytest.importorskip("bitsandbytes")


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 64))


def converted(mode, seed=0, **settings):
    precision = BitsandbytesPrecision(mode, **settings)
    return precision, precision.convert_module(make(seed)).to("cpu")


def run(precision, model):
    torch.manual_seed(5)
    with precision.forward_context(), torch.no_grad():
        return model(precision.convert_input(torch.randn(4, 64, dtype=torch.float32)))


def num_bytes(layer):
    return sum(value.numel() * value.element_size() for value in layer.state_dict().values())


@pytest.mark.parametrize("mode", MODES)
def test_results_keep_close_to_32_bit(mode):
    precision, model = converted(mode)
    torch.manual_seed(5)
    expected = make()(torch.randn(4, 64, generator=torch.manual_seed(5)))

    output = run(precision, model)

    assert output.dtype == precision.dtype
    assert precision.convert_output(output).dtype == torch.float32
    assert (output.float() - expected).norm() / expected.norm() < (0.2 if mode in FOUR_BIT else 0.03)


@pytest.mark.parametrize(
    ("mode", "dtype", "stored", "bits"),
    [
        ("nf4", torch.bfloat16, torch.uint8, 4.6),
        ("nf4-dq", torch.bfloat16, torch.uint8, 4.2),
        ("fp4", torch.bfloat16, torch.uint8, 4.6),
        ("fp4-dq", torch.bfloat16, torch.uint8, 4.2),
        ("int8", torch.float16, torch.int8, 8.2),
        ("int8-training", torch.float16, torch.float16, 16.1),
    ],
)
def test_weights_take_the_memory_of_their_bits(mode, dtype, stored, bits):
    precision = BitsandbytesPrecision(mode)
    model: Any = precision.convert_module(nn.Sequential(nn.Linear(1024, 512, bias=False), nn.LayerNorm(512)))
    model.to("cpu")

    assert model[0].weight.dtype == stored
    assert 8 * num_bytes(model[0]) / (1024 * 512) < bits
    assert model[1].weight.dtype == precision.dtype == dtype


@pytest.mark.parametrize("mode", MODES)
def test_only_weights_that_are_not_quantized_are_trained(mode):
    _, model = converted(mode)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    frozen = set() if mode == "int8-training" else {"0.weight", "3.weight"}
    assert trained == {name for name, _ in make().named_parameters()} - frozen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arrives", ["quantized", "new", "meta"])
def test_a_state_dict_can_be_loaded_again(mode, arrives):
    precision, model = converted(mode)
    other: Any = precision.convert_module(make(1))
    if arrives == "quantized":
        other.to("cpu")
    if arrives == "meta":
        with torch.device("meta"), precision.module_init_context():
            other = make()

    other.load_state_dict(model.state_dict(), assign=arrives == "meta")

    assert torch.equal(run(precision, other), run(precision, model))
    assert other[0].weight.data_ptr() != model[0].weight.data_ptr() or mode == "int8-training"


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_are_not_quantized_are_quantized_while_they_load(mode):
    precision, expected = converted(mode)
    _, model = converted(mode, seed=1)

    model.load_state_dict(make().state_dict())

    assert model[0].weight.dtype == expected[0].weight.dtype
    assert torch.equal(run(precision, model), run(precision, expected))


def test_quantized_weights_of_another_kind_or_shape_are_refused():
    _, four = converted("nf4")
    _, eight = converted("int8")
    _, wide = (
        BitsandbytesPrecision("nf4"),
        BitsandbytesPrecision("nf4").convert_module(nn.Sequential(nn.Linear(64, 64))),
    )

    with pytest.raises(RuntimeError, match=r"cannot load '0.weight': it is quantized in another way"):
        four.load_state_dict(eight.state_dict())
    with pytest.raises(RuntimeError, match=r"cannot load '0.weight': it is quantized in another way"):
        eight.load_state_dict(four.state_dict())
    with pytest.raises(RuntimeError, match=r"shape \(128, 64\), the layer \(64, 64\)"):
        wide.load_state_dict({"0.weight": torch.ones(128, 64), "0.bias": torch.ones(64)})
    with pytest.raises(RuntimeError, match="Missing key"):
        wide.load_state_dict({"0.bias": torch.ones(64)})


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_and_a_pickled_model_compute_the_same(mode):
    precision, model = converted(mode)
    expected = run(precision, model)

    assert torch.equal(run(precision, copy.deepcopy(model)), expected)
    assert torch.equal(run(precision, pickle.loads(pickle.dumps(model))), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_is_never_moved_is_quantized_at_its_first_forward(mode):
    precision, expected = converted(mode)

    model: Any = precision.convert_module(make())

    assert torch.equal(run(precision, model), run(precision, expected))
    assert model[0].weight.dtype == expected[0].weight.dtype


@pytest.mark.parametrize("mode", QUANTIZED)
def test_types_converted_after_use_leave_the_quantized_weights(mode):
    precision, model = converted(mode, dtype=torch.float32)
    expected = run(precision, model)

    model.double().float()

    assert torch.allclose(run(precision, model), expected)


@pytest.mark.parametrize("mode", MODES)
def test_adapters_over_quantized_weights_learn(mode):
    precision = BitsandbytesPrecision(mode, dtype=torch.float32)
    model: Any = precision.convert_module(make())
    model.to("cpu")
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("0.weight")}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    x, y = torch.randn(16, 64), torch.randn(16, 64)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with precision.train_step_context():
            loss = nn.functional.mse_loss(model(x), y)
        precision.backward(loss, model)
        precision.optimizer_step(optimizer, model)
        losses.append(loss.item())

    assert losses[-1] < losses[0]
    unchanged = all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
    assert unchanged == (mode != "int8-training")


@pytest.mark.parametrize("mode", QUANTIZED)
def test_an_optimizer_that_has_quantized_weights_keeps_no_old_ones(mode):
    precision, model = converted(mode)
    weight = model[0].weight
    pointer = weight.data_ptr()

    run(precision, model)
    model.load_state_dict(converted(mode, seed=1)[1].state_dict())
    model.float()

    assert model[0].weight is weight
    assert weight.data_ptr() != pointer


def test_trained_weights_stay_the_objects_that_an_optimizer_has():
    model = make()
    parameters = list(model.parameters())

    BitsandbytesPrecision("int8-training").convert_module(model)

    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("mode", QUANTIZED)
def test_layers_are_quantized_as_soon_as_they_are_made(mode):
    precision = BitsandbytesPrecision(mode)
    from torch.nn import Linear as ImportedBefore

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.stored_after_first = self.first.weight.dtype
            self.second = ImportedBefore(64, 64)
            self.attention = nn.MultiheadAttention(64, 2)

    with precision.module_init_context():
        model = Model()
    plain = nn.Linear(2, 2)

    assert model.stored_after_first == model.second.weight.dtype != precision.dtype
    assert model.first.bias.dtype == model.attention.out_proj.weight.dtype == precision.dtype
    assert type(model.first).__module__ == "fulmen.plugins.precision.quantized"
    assert (type(plain), plain.weight.dtype) == (nn.Linear, torch.float32)
    assert precision.convert_module(model) is model


def test_making_layers_under_an_exception_puts_linear_back():
    original = nn.Linear.__init__

    with pytest.raises(RuntimeError, match="inside"), BitsandbytesPrecision("nf4").module_init_context():
        raise RuntimeError("inside")

    assert nn.Linear.__init__ is original
    assert torch.get_default_dtype() == torch.float32


def test_layers_made_on_the_meta_device_can_be_drawn_later():
    precision = BitsandbytesPrecision("nf4")
    with torch.device("meta"), precision.module_init_context():
        layer = nn.Linear(64, 64)

    layer.to_empty(device="cpu")
    layer.reset_parameters()
    precision.convert_module(layer)
    first = run(precision, layer)
    layer.reset_parameters()

    assert layer.weight.dtype == torch.uint8
    assert first.isfinite().all()
    assert not torch.equal(run(precision, layer), first)


def test_layers_named_shared_or_derived_stay():
    model: Any = nn.ModuleDict(
        {
            "body": make(),
            "head": nn.Linear(64, 10),
            "embedding": nn.Embedding(10, 64),
            "tied": nn.Linear(64, 10, bias=False),
            "attention": nn.MultiheadAttention(64, 2),
        }
    )
    model["tied"].weight = model["embedding"].weight

    BitsandbytesPrecision("nf4", ignore_modules={"head"}).convert_module(model)

    assert type(model["head"]) is type(model["tied"]) is nn.Linear
    assert model["tied"].weight is model["embedding"].weight
    assert model["attention"].out_proj.weight.dtype == torch.bfloat16
    assert type(model["body"][0]).__name__ == "Linear4bit"


def test_with_names_to_leave_out_the_whole_module_is_awaited():
    precision = BitsandbytesPrecision("nf4", ignore_modules="3")
    with precision.module_init_context():
        model: Any = make()

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    precision.convert_module(model).to("cpu")
    assert [model[0].weight.dtype, model[3].weight.dtype] == [torch.uint8, torch.bfloat16]


def test_a_transformer_layer_evaluates_as_it_trains():
    precision = BitsandbytesPrecision("nf4", dtype=torch.float32)
    layer = precision.convert_module(nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)).to("cpu")
    x = torch.randn(2, 3, 64)

    training = layer(x)
    with torch.no_grad():
        evaluating = layer.eval()(x)

    assert torch.allclose(training, evaluating, atol=1e-5)


def test_wrong_arguments_are_refused():
    wrong: Any = "nf8"
    with pytest.raises(ValueError, match=r"mode='nf8'.*'nf4', 'nf4-dq'"):
        BitsandbytesPrecision(wrong)
    with pytest.raises(ValueError, match=r"dtype=torch.float64.*torch.bfloat16"):
        BitsandbytesPrecision("nf4", dtype=torch.float64)
    with pytest.raises(TypeError, match="nothing to quantize in `LayerNorm`"):
        BitsandbytesPrecision("nf4").convert_module(nn.LayerNorm(2))


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(ModuleNotFoundError, match=r"BitsandbytesPrecision.*pip install 'fulmen\[bitsandbytes\]'"):
        BitsandbytesPrecision("nf4")


class WithAdapter(LightningModule):
    def __init__(self, made_in_hook):
        super().__init__()
        self.losses: list[float] = []
        self.made_in_hook = made_in_hook
        if not made_in_hook:
            self.make()

    def make(self):
        torch.manual_seed(0)
        self.base = nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.ones(64))

    def configure_model(self):
        if self.made_in_hook and not hasattr(self, "base"):
            self.make()

    def training_step(self, batch):
        loss = (self.base(batch) * self.scale).float().square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=2.0)


@pytest.mark.parametrize("made_in_hook", [False, True])
@pytest.mark.parametrize("mode", ["nf4-dq", "int8"])
def test_the_trainer_goes_on_from_a_checkpoint_with_quantized_weights(tmp_path, mode, made_in_hook):
    data: Any = torch.randn(8, 64)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }

    def fit(epochs, ckpt_path=None):
        model = WithAdapter(made_in_hook)
        trainer = Trainer(max_epochs=epochs, plugins=BitsandbytesPrecision(mode), **settings)
        trainer.fit(model, DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
        return trainer, model

    _, whole = fit(4)
    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, rest = fit(4, tmp_path / "a.ckpt")

    assert not rest.base.weight.is_floating_point()
    assert rest.losses == whole.losses[4:]
    assert sum(whole.losses[-2:]) < 0.9 * sum(whole.losses[:2])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_model_quantized_on_the_cpu_computes_the_same_on_a_gpu_and_back(mode):
    precision, model = converted(mode, dtype=torch.float16)
    expected = run(precision, model).float()
    model.cuda()
    torch.manual_seed(5)
    x = precision.convert_input(torch.randn(4, 64)).cuda()

    with torch.no_grad():
        there = model(x)
    back = run(precision, model.cpu())

    assert there.is_cuda
    assert torch.allclose(there.float().cpu(), expected, atol=0.05)
    assert torch.allclose(back.float(), expected, atol=0.05)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_quantized_on_its_way_to_a_gpu(mode):
    precision = BitsandbytesPrecision(mode)
    model: Any = precision.convert_module(make()).cuda()
    x = precision.convert_input(torch.randn(4, 64, device="cuda")).requires_grad_()

    with precision.train_step_context():
        model(x).float().sum().backward()

    assert model[0].weight.is_cuda
    assert x.grad is not None
    assert model[0].weight.is_floating_point() == (mode == "int8-training")
