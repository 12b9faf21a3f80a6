"""Mixed precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from fulmen.core.module import LightningModule
from fulmen.plugins.precision import MixedPrecision, Precision
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.exceptions import MisconfigurationException

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def scaled_setup(device="cpu", **scaler_settings):
    torch.manual_seed(0)
    scaler = GradScaler(device, **{"init_scale": 1024.0, **scaler_settings})
    model = nn.Linear(2, 1, device=device)
    return MixedPrecision("16-mixed", device, scaler), model, torch.optim.SGD(model.parameters(), lr=0.1)


def backward(precision, model, optimizer, factor=1.0):
    x = torch.ones(4, 2, device=model.weight.device)
    loss = model(x).square().mean() * factor
    precision.backward(precision.pre_backward(loss, model), model, optimizer)
    return loss


def true_gradient(model, factor=1.0):
    x = torch.ones(4, 2, device=model.weight.device)
    return torch.autograd.grad(model(x).square().mean() * factor, model.weight)[0]


def test_bf16_has_no_scaler_and_autocasts():
    precision = MixedPrecision("bf16-mixed", "cpu")

    with precision.forward_context():
        output = nn.Linear(2, 2)(torch.ones(1, 2))

    assert precision.scaler is None
    assert output.dtype == torch.bfloat16
    assert precision.convert_output(output).dtype == torch.float32
    assert precision.state_dict() == {}


def test_autocast_context_manager_has_the_same_settings():
    with MixedPrecision("bf16-mixed", "cpu").autocast_context_manager():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert not torch.is_autocast_cache_enabled()


def test_unscaled_gradients_are_the_true_ones():
    precision, model, optimizer = scaled_setup()
    expected = true_gradient(model)

    backward(precision, model, optimizer)
    scaled = model.weight.grad.clone()
    precision.unscale_gradients(optimizer)

    assert torch.equal(scaled, expected * 1024)
    assert torch.allclose(model.weight.grad, expected)


def test_unscaling_twice_before_the_next_backward_divides_once():
    precision, model, optimizer = scaled_setup()
    expected = true_gradient(model)
    backward(precision, model, optimizer)

    precision.unscale_gradients(optimizer)
    precision.unscale_gradients(optimizer)

    assert torch.allclose(model.weight.grad, expected)


def test_a_mixture_of_scaled_and_unscaled_gradients_raises():
    precision, model, optimizer = scaled_setup()
    backward(precision, model, optimizer)
    precision.unscale_gradients(optimizer)
    backward(precision, model, optimizer)

    with pytest.raises(RuntimeError, match="unscale_"):
        precision.unscale_gradients(optimizer)


@pytest.mark.parametrize("unscale_first", [True, False])
def test_step_uses_the_true_gradients(unscale_first):
    precision, model, optimizer = scaled_setup()
    expected = model.weight.detach() - 0.1 * true_gradient(model)
    backward(precision, model, optimizer)

    if unscale_first:
        precision.unscale_gradients(optimizer)
    precision.optimizer_step(optimizer, model)

    assert torch.allclose(model.weight, expected)


def test_closure_runs_before_the_step_and_its_result_is_returned():
    precision, model, optimizer = scaled_setup()
    expected = model.weight.detach() - 0.1 * true_gradient(model)
    calls = []

    def closure():
        calls.append(model.weight.detach().clone())
        backward(precision, model, optimizer)
        precision.unscale_gradients(optimizer)
        return 5

    result = precision.optimizer_step(optimizer, model, closure)

    assert (result, len(calls)) == (5, 1)
    assert torch.allclose(model.weight, expected)


def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_lowered():
    precision, model, optimizer = scaled_setup()
    before = model.weight.detach().clone()

    backward(precision, model, optimizer, factor=float("inf"))
    precision.unscale_gradients(optimizer)
    precision.optimizer_step(optimizer, model)

    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == 512.0


def test_the_scale_grows_after_good_steps():
    precision, model, optimizer = scaled_setup(growth_interval=2)

    for _ in range(2):
        optimizer.zero_grad()
        backward(precision, model, optimizer)
        precision.optimizer_step(optimizer, model)

    assert precision.scaler.get_scale() == 2048.0


def test_a_step_without_gradients_does_nothing():
    precision, model, optimizer = scaled_setup()

    precision.unscale_gradients(optimizer)
    result = precision.optimizer_step(optimizer, model, lambda: None)

    assert result is None
    assert precision.scaler.get_scale() == 1024.0


def test_two_optimizers_may_be_unscaled_before_either_steps():
    precision, first, first_optimizer = scaled_setup()
    second: Any = nn.Linear(2, 1)
    second_optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    pairs = [(first, first_optimizer), (second, second_optimizer)]

    for _ in range(2):
        expected = [model.weight.detach() - 0.1 * true_gradient(model) for model, _ in pairs]
        for model, optimizer in pairs:
            optimizer.zero_grad()
            backward(precision, model, optimizer)
        for _, optimizer in pairs:
            precision.unscale_gradients(optimizer)
        for model, optimizer in pairs:
            precision.optimizer_step(optimizer, model)

        assert torch.allclose(first.weight, expected[0])
        assert torch.allclose(second.weight, expected[1])


def test_an_optimizer_steps_again_while_another_waits():
    precision, first, first_optimizer = scaled_setup()
    second: Any = nn.Linear(2, 1)
    second_optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    backward(precision, second, second_optimizer)
    precision.unscale_gradients(second_optimizer)

    for _ in range(2):
        expected = first.weight.detach() - 0.1 * true_gradient(first)
        first_optimizer.zero_grad()
        backward(precision, first, first_optimizer)
        precision.unscale_gradients(first_optimizer)
        precision.optimizer_step(first_optimizer, first)

        assert torch.allclose(first.weight, expected)


def test_clipping_sees_the_true_gradients():
    precision, model, optimizer = scaled_setup()
    backward(precision, model, optimizer)
    precision.unscale_gradients(optimizer)

    precision.clip_gradients(optimizer, 0.01)

    total = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert total.item() == pytest.approx(0.01, rel=1e-3)


class SelfScaling(torch.optim.SGD):
    """An optimizer that takes the scaler as an argument."""

    _step_supports_amp_scaling = True

    def step(self, closure=None, *, grad_scaler=None):
        return super().step(closure)


def test_optimizer_that_unscales_itself_cannot_be_clipped():
    precision, model, _ = scaled_setup()
    optimizer = SelfScaling(model.parameters(), lr=0.1)
    backward(precision, model, optimizer)
    scaled = model.weight.grad.clone()

    precision.unscale_gradients(optimizer)

    assert torch.equal(model.weight.grad, scaled)
    with pytest.raises(RuntimeError, match="SelfScaling"):
        precision.clip_gradients(optimizer, 1.0)
    precision.clip_gradients(optimizer, 0.0)


def test_lbfgs_cannot_be_scaled():
    precision, model, _ = scaled_setup()
    optimizer = torch.optim.LBFGS(model.parameters())

    with pytest.raises(MisconfigurationException, match="LBFGS"):
        precision.optimizer_step(optimizer, model, lambda: None)


def test_scaler_state_goes_through_a_checkpoint():
    precision, _, _ = scaled_setup()
    other, _, _ = scaled_setup(init_scale=8.0)

    other.load_state_dict(precision.state_dict())

    assert other.scaler.get_scale() == 1024.0


def test_a_scaler_without_state_in_the_checkpoint_keeps_its_own():
    precision, _, _ = scaled_setup()

    precision.load_state_dict({})

    assert precision.scaler.get_scale() == 1024.0


def test_the_state_of_a_scaler_is_left_out_where_none_is_used(caplog):
    precision, _, _ = scaled_setup()

    with caplog.at_level("INFO"):
        MixedPrecision("bf16-mixed", "cpu").load_state_dict(precision.state_dict())

    assert "precision='bf16-mixed'` does not need: it is left out" in caplog.text


def test_a_state_that_is_not_of_a_scaler_is_refused():
    precision, _, _ = scaled_setup()

    with pytest.raises(ValueError, match=r"lacks '_growth_tracker', .*it has \['loss_scale'\].*start with a new scale"):
        precision.load_state_dict({"loss_scale": 4.0})


def test_resumed_scaling_goes_on_as_without_a_break():
    def steps(precision, model, optimizer, factors):
        for factor in factors:
            optimizer.zero_grad()
            backward(precision, model, optimizer, factor)
            precision.unscale_gradients(optimizer)
            precision.optimizer_step(optimizer, model)

    whole, whole_model, whole_optimizer = scaled_setup(growth_interval=3)
    first, model, optimizer = scaled_setup(growth_interval=3)
    second, _, _ = scaled_setup(growth_interval=7, init_scale=2.0)
    factors = [1.0, float("inf"), 1.0, 1.0, 1.0]

    steps(whole, whole_model, whole_optimizer, factors)
    steps(first, model, optimizer, factors[:3])
    second.load_state_dict(first.state_dict())
    steps(second, model, optimizer, factors[3:])

    assert second.state_dict() == whole.state_dict()
    assert second.scaler.get_scale() == 1024.0
    assert torch.equal(model.weight, whole_model.weight)


class Linear(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.losses: list[float] = []

    def training_step(self, batch):
        loss = self.layer(batch).float().square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_trainer_keeps_the_scale_over_a_checkpoint(tmp_path):
    data: Any = torch.randn(8, 4)

    def fit(epochs, ckpt_path=None):
        precision = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=64.0, growth_interval=3))
        model = Linear()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            plugins=precision,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
        return trainer, model, precision

    _, whole, whole_precision = fit(4)
    trainer, _, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["MixedPrecision"]
    _, rest, precision = fit(4, tmp_path / "a.ckpt")

    assert (saved["scale"], saved["_growth_tracker"]) == (128.0, 1)
    assert precision.state_dict() == whole_precision.state_dict()
    assert rest.losses == whole.losses[4:]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="'16-mixed', 'bf16-mixed'"):
        MixedPrecision("16-true", "cpu")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(MisconfigurationException, match="Remove the scaler"):
        MixedPrecision("bf16-mixed", "cpu", GradScaler("cpu"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("fused", [False, True])
def test_scaled_training_on_a_gpu_follows_32_bit(fused):
    precision, model, _ = scaled_setup("cuda")
    reference = nn.Linear(2, 1, device="cuda")
    reference.load_state_dict(model.state_dict())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01, fused=fused) for m in (model, reference)]
    x = torch.randn(16, 2, device="cuda")
    for _ in range(20):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with precision.train_step_context():
            loss = model(x).float().square().mean()
        precision.backward(precision.pre_backward(loss, model), model, optimizers[0])
        precision.unscale_gradients(optimizers[0])
        precision.clip_gradients(optimizers[0], 0.5)
        precision.optimizer_step(optimizers[0], model)
        reference(x).square().mean().backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizers[1].step()

    assert torch.allclose(model.weight, reference.weight, atol=2e-3)
    assert precision.scaler.get_scale() == 1024.0


@pytest.mark.gpu
@needs_gpu
def test_infinite_gradients_on_a_gpu_leave_a_fused_step_out():
    precision, model, _ = scaled_setup("cuda")
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    before = model.weight.detach().clone()

    backward(precision, model, optimizer, factor=float("inf"))
    precision.unscale_gradients(optimizer)
    precision.optimizer_step(optimizer, model)

    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == 512.0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["bf16-mixed", "16-mixed"])
def test_a_transformer_block_on_a_gpu_follows_32_bit(name):
    def train(precision):
        torch.manual_seed(0)
        block: Any = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True).cuda()
        optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3)
        x = torch.randn(8, 16, 64, device="cuda")
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            with precision.train_step_context():
                loss = (block(x).float() - x.roll(1, 1)).square().mean()
            precision.backward(precision.pre_backward(loss, block), block, optimizer)
            precision.unscale_gradients(optimizer)
            precision.clip_gradients(optimizer, 1.0)
            precision.optimizer_step(optimizer, block)
            losses.append(loss.item())
        return losses

    losses = train(MixedPrecision(name, "cuda"))

    # with float16 the first steps may be left out, until the scale is low enough
    assert losses[-1] == pytest.approx(train(Precision())[-1], rel=0.02 if name == "bf16-mixed" else 0.1)
