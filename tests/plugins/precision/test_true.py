"""64 and 16 bit throughout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen.plugins.precision import DoublePrecision, HalfPrecision

CASES = [
    (DoublePrecision(), torch.float64),
    (HalfPrecision(), torch.float16),
    (HalfPrecision("bf16-true"), torch.bfloat16),
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Spectrum(nn.Module):
    """Parameters and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.phase = nn.Parameter(torch.full((2,), 1 + 2j))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(3))


@pytest.mark.parametrize(("precision", "dtype"), CASES, ids=["64", "16", "bf16"])
def test_parameters_and_buffers_are_converted(precision, dtype):
    module = precision.convert_module(Spectrum())

    assert module.weight.dtype == module.mean.dtype == dtype
    assert module.count.dtype == torch.int64
    assert module.phase.is_complex()
    assert module.phase[0] == 1 + 2j


@pytest.mark.parametrize(("precision", "dtype"), CASES, ids=["64", "16", "bf16"])
def test_inputs_are_converted_and_outputs_come_back(precision, dtype):
    batch = precision.convert_input({"x": torch.ones(2), "y": torch.ones(2, dtype=torch.int64)})

    assert (batch["x"].dtype, batch["y"].dtype) == (dtype, torch.int64)
    assert precision.convert_output(batch)["x"].dtype == torch.float32


@pytest.mark.parametrize(("precision", "dtype"), CASES, ids=["64", "16", "bf16"])
def test_new_tensors_and_modules_have_the_type(precision, dtype):
    with precision.train_step_context():
        assert torch.zeros(1).dtype == dtype
    with precision.module_init_context():
        assert nn.Linear(1, 1).weight.dtype == dtype
    with precision.tensor_init_context():
        assert torch.ones(1).dtype == dtype

    assert torch.get_default_dtype() == torch.float32


def test_64_bit_computes_what_a_64_bit_loop_computes():
    precision = DoublePrecision()
    torch.manual_seed(0)
    model = precision.convert_module(nn.Linear(3, 1))
    torch.manual_seed(0)
    expected = nn.Linear(3, 1).double()
    x = torch.randn(5, 3)

    with precision.train_step_context():
        output = model(precision.convert_input(x))

    assert torch.equal(output, expected(x.double()))


@pytest.mark.parametrize("name", ["16-mixed", "16", 16, None])
def test_half_precision_refuses_other_names(name):
    with pytest.raises(ValueError, match="Choose one of '16-true', 'bf16-true'"):
        HalfPrecision(name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "dtype"), CASES, ids=["64", "16", "bf16"])
def test_training_on_a_gpu_stays_in_the_type(precision, dtype):
    torch.manual_seed(0)
    model = precision.convert_module(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-4)
    x = precision.convert_input(torch.randn(8, 4, device="cuda"))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with precision.train_step_context():
            loss = model(x).square().mean()
        precision.backward(loss, model, optimizer)
        precision.optimizer_step(optimizer, model)
        losses.append(loss.item())

    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert loss.dtype == dtype
    assert losses[-1] < losses[0]
