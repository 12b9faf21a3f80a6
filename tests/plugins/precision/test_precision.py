"""32-bit precision, and what all formats have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.core.hooks import CheckpointHooks
from fulmen.core.module import LightningModule
from fulmen.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.enums import GradClipAlgorithmType


def all_precisions():
    return [
        Precision(),
        DoublePrecision(),
        HalfPrecision("16-true"),
        HalfPrecision("bf16-true"),
        MixedPrecision("bf16-mixed", "cpu"),
        MixedPrecision("16-mixed", "cpu"),
    ]


def train(precision, steps=5):
    """The order of a training step, on a small regression."""
    torch.manual_seed(1)
    model = precision.convert_module(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, [optimizer], _ = precision.connect(model, [optimizer], [])
    batch = precision.convert_input((torch.randn(16, 4), torch.randn(16, 1)))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with precision.train_step_context():
            loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        scaled = precision.pre_backward(loss, model)
        precision.backward(scaled, model, optimizer)
        precision.post_backward(scaled, model)
        precision.unscale_gradients(optimizer)
        precision.clip_gradients(optimizer, 1.0, GradClipAlgorithmType.NORM)
        precision.optimizer_step(optimizer, model)
        losses.append(loss.item())
    return model, losses


class Watched(nn.Module):
    """A module with a `backward` of its own, as the user's module has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.calls: list[dict[str, Any]] = []

    def backward(self, loss, **kwargs):
        self.calls.append(kwargs)
        loss.backward(**kwargs)


def with_gradients():
    model = Watched()
    model.weight.grad = torch.tensor([3.0, -4.0])
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize("precision", all_precisions(), ids=lambda precision: precision.precision)
def test_every_precision_learns(precision):
    _, losses = train(precision)

    assert losses[-1] < losses[0]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", all_precisions(), ids=lambda precision: precision.precision)
def test_every_precision_keeps_close_to_32_bit(precision):
    _, expected = train(Precision())

    _, losses = train(precision)

    assert losses == pytest.approx(expected, rel=0.05)


def test_plain_precision_is_bit_equal_to_a_plain_loop():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    trained, _ = train(Precision())

    for parameter, expected in zip(trained.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_only_the_plain_precision_is_plain():
    assert [type(precision) for precision in all_precisions() if precision.is_plain] == [Precision]


def test_a_subclass_that_overrides_a_step_method_is_not_plain():
    class OwnContext(Precision):
        def val_step_context(self):
            return super().val_step_context()

    class OwnOutput(Precision):
        def convert_output(self, data):
            return data

    class OwnCheckpoint(Precision):
        def state_dict(self):
            return {"a": 1}

    replaced: Any = Precision()
    replaced.optimizer_step = lambda *args, **kwargs: None

    assert not OwnContext().is_plain
    assert not OwnOutput().is_plain
    assert not replaced.is_plain
    assert OwnCheckpoint().is_plain


@pytest.mark.parametrize("precision", all_precisions(), ids=lambda precision: precision.precision)
def test_contexts_are_one_object(precision):
    assert precision.train_step_context() is precision.predict_step_context()


def test_backward_goes_through_the_module_if_it_has_one():
    model: Any = Watched()

    Precision().backward(model.weight.sum(), model, None, retain_graph=True)

    assert model.calls == [{"retain_graph": True}]
    assert model.weight.grad.tolist() == [1.0, 1.0]


def test_backward_without_a_module_method_is_that_of_the_tensor():
    layer: Any = nn.Linear(2, 1)

    Precision().backward(layer(torch.ones(1, 2)).sum(), layer, None)

    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_clipping_by_norm_bounds_the_total_norm():
    model, optimizer = with_gradients()

    Precision().clip_gradients(optimizer, 1.0)

    assert model.weight.grad.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("algorithm", ["value", "VALUE", GradClipAlgorithmType.VALUE])
def test_clipping_by_value_clamps_each_entry(algorithm):
    model, optimizer = with_gradients()

    Precision().clip_gradients(optimizer, 3.5, algorithm)

    assert model.weight.grad.tolist() == [3.0, -3.5]


@pytest.mark.parametrize("clip_val", [0, 0.0, -1.0])
def test_a_bound_of_zero_or_less_does_not_clip(clip_val):
    model, optimizer = with_gradients()

    Precision().clip_gradients(optimizer, clip_val)

    assert model.weight.grad.tolist() == [3.0, -4.0]


def test_a_step_and_a_backward_need_no_more_than_what_fabric_passes():
    model, optimizer = with_gradients()

    for precision in all_precisions():
        optimizer.zero_grad()
        precision.backward(precision.pre_backward(model.weight.sum(), model), model)
        precision.optimizer_step(optimizer)

    assert model.weight.tolist() == [3.0 - len(all_precisions()), 4.0 - len(all_precisions())]


def test_optimizer_step_hands_the_closure_over():
    model, optimizer = with_gradients()

    result = Precision().optimizer_step(optimizer, model, lambda: 7)

    assert result == 7
    assert model.weight.tolist() == [0.0, 8.0]


def test_optimizer_without_closure_argument_can_step():
    class Bare:
        stepped = 0

        def step(self):
            self.stepped += 1

    optimizer = Bare()

    Precision().optimizer_step(optimizer, None)

    assert optimizer.stepped == 1


def test_a_precision_takes_part_in_checkpoints_as_modules_do():
    checkpoint = {"a": 1}
    for precision in all_precisions():
        precision.on_save_checkpoint(checkpoint)
        precision.on_load_checkpoint(checkpoint)

    assert all(isinstance(precision, CheckpointHooks) for precision in all_precisions())
    assert issubclass(LightningModule, CheckpointHooks)
    assert checkpoint == {"a": 1}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("16-true", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
    ],
)
def test_trainer_runs_steps_in_the_precision(tmp_path, name, dtype):
    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.seen: list[tuple[Any, ...]] = []

        def training_step(self, batch):
            self.seen.append((batch.dtype, torch.get_default_dtype(), torch.is_autocast_enabled("cpu")))
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = Model()
    trainer = Trainer(
        accelerator="cpu",
        precision=name,
        max_steps=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data: Any = torch.ones(8, 4)
    trainer.fit(model, DataLoader(data, batch_size=4))

    assert model.seen == [(dtype, dtype, name.endswith("mixed"))] * 2
    assert model.layer.weight.dtype == dtype
    assert trainer.precision == name
    assert torch.get_default_dtype() == torch.float32
