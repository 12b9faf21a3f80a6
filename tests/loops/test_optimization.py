"""Automatic optimization: windows, overridden methods, closures, scaled gradients, and who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim import optimizer as torch_optimizer

from fulmen import LightningModule
from fulmen.utilities.exceptions import MisconfigurationException
from tests.loops.models import BOTH_PATHS, Automatic, ThroughClosure, fit, plain, scaled


# ---- outputs
@BOTH_PATHS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_outputs_hold_the_detached_divided_loss_and_the_extras(kind: Any, accumulate: int, tmp_path: Path) -> None:
    class Returning(kind):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return {"loss": super().training_step(batch, batch_idx), "index": batch_idx}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append({key: plain(value) for key, value in outputs.items()})

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.0)

    model = Returning()
    fit(model, tmp_path, batches=2, accumulate_grad_batches=accumulate)

    assert model.seen == [
        {"loss": (1.0 / accumulate, False), "index": 0},
        {"loss": (2.0 / accumulate, False), "index": 1},
    ]


@BOTH_PATHS
@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_outputs_of_a_skipped_batch_are_empty(kind: Any, tmp_path: Path) -> None:
    class Noting(kind):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(outputs)

    model = Noting(none_on=(0,))
    fit(model, tmp_path, batches=1)

    assert model.seen == [{}]


# ---- batches without a loss
@BOTH_PATHS
@pytest.mark.filterwarnings("ignore:`training_step` returned None")
@pytest.mark.parametrize("none_on", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2), (3,), (3, 4), (2, 3)])
def test_a_window_is_the_mean_of_the_losses_it_has(kind: Any, none_on: tuple[int, ...], tmp_path: Path) -> None:
    class Noting(kind):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(self.gradient)

    model = Noting(none_on)
    trainer = fit(model, tmp_path, batches=5, accumulate_grad_batches=3)

    windows = [[i + 1 for i in window if i not in none_on] for window in ((0, 1, 2), (3, 4))]
    expected = [sum(window) / len(window) for window in windows if window]
    assert model.seen == pytest.approx(expected)
    assert trainer.global_step == len(expected)
    assert model.weight.item() == pytest.approx(1 - 0.1 * sum(expected))


@BOTH_PATHS
@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_gradients_are_cleared_once_in_a_window(kind: Any, tmp_path: Path) -> None:
    class Noting(kind):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.seen.append("clear")

    model = Noting(none_on=(0, 3))
    fit(model, tmp_path, batches=4, accumulate_grad_batches=2)

    assert model.seen == [0, "clear", 1, 2, "clear", 3]


def test_a_skipped_batch_is_told_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="returned None on batch 1") as caught:
        fit(Automatic(none_on=(1, 2)), tmp_path)

    assert len(caught) == 1


# ---- overridden methods
def test_an_overridden_backward_computes_the_gradients(tmp_path: Path) -> None:
    class Doubling(Automatic):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            (2 * loss).backward()

    model = Doubling()
    fit(model, tmp_path, batches=1)

    assert model.gradient == 2.0


def test_an_overridden_backward_gets_the_loss_as_it_is(tmp_path: Path) -> None:
    class Vector(Automatic):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return self.weight * batch

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward(torch.full_like(loss, 3.0))

    model = Vector()
    fit(model, tmp_path, batches=1)

    assert model.gradient == 6.0


@BOTH_PATHS
def test_a_loss_must_be_one_number(kind: Any, tmp_path: Path) -> None:
    class Vector(kind):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return self.weight * batch

    with pytest.raises(MisconfigurationException, match=r"shape \(2, 1\)"):
        fit(Vector(), tmp_path)


def test_an_overridden_zero_grad_is_called_instead(tmp_path: Path) -> None:
    class Keeping(Automatic):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            self.seen.append((epoch, batch_idx, type(optimizer)))

    model = Keeping()
    fit(model, tmp_path, batches=2)

    assert model.seen == [(0, 0, SGD), (0, 1, SGD)]
    assert model.gradient == 3.0


def test_a_zero_grad_of_the_optimizers_own_is_called(tmp_path: Path) -> None:
    calls: list[str] = []

    class Own(SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append("own")
            super().zero_grad(set_to_none)

    class Model(Automatic):
        def configure_optimizers(self) -> Any:
            return Own(self.parameters(), lr=0.1)

    fit(Model(), tmp_path, batches=2)

    assert calls == ["own", "own"]


def test_overridden_clipping_gets_the_settings_of_the_trainer(tmp_path: Path) -> None:
    class Clipping(Automatic):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            self.seen.append((gradient_clip_val, gradient_clip_algorithm, self.gradient))
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            self.seen.append(self.gradient)

    model = Clipping()
    fit(model, tmp_path, batches=2, gradient_clip_val=1.5, gradient_clip_algorithm="value")

    assert model.seen == [(1.5, "value", 1.0), 1.0, (1.5, "value", 2.0), 1.5]


def test_overridden_clipping_is_called_without_settings_too(tmp_path: Path) -> None:
    class Clipping(Automatic):
        def configure_gradient_clipping(self, optimizer: Any, *values: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    model = Clipping()
    fit(model, tmp_path, batches=1)

    assert model.gradient == pytest.approx(0.5)


def test_clipping_that_contradicts_the_trainer_is_refused(tmp_path: Path) -> None:
    class Clipping(Automatic):
        def configure_gradient_clipping(self, optimizer: Any, *values: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.5)

    with pytest.raises(MisconfigurationException, match=r"0\.5.*differs from"):
        fit(Clipping(), tmp_path, gradient_clip_val=0.25)


class StepOrder(Automatic):
    """Notes the order of things around an overridden `optimizer_step`."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.seen.append("step")
        return super().training_step(batch, batch_idx)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.seen.append("clear")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append("before")

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        self.seen.append("clip")


def _only_closure(optimizer: Any, closure: Any) -> None:
    closure()


def _closure_then_step(optimizer: Any, closure: Any) -> None:
    loss = closure()
    assert not loss.requires_grad
    optimizer.step()


def _two_steps(optimizer: Any, closure: Any) -> None:
    optimizer.step(closure=closure)
    optimizer.step()


def _two_closures(optimizer: Any, closure: Any) -> None:
    optimizer.step(closure=closure)
    optimizer.step(closure=closure)


def _past_the_wrapper(optimizer: Any, closure: Any) -> None:
    closure()
    optimizer.optimizer.step()


@pytest.mark.parametrize(
    ("stepping", "order", "weight"),
    [
        (_only_closure, ["step", "clear"], 1.0),
        (_closure_then_step, ["step", "clear", "before", "clip"], 0.9),
        (_two_steps, ["step", "clear", "before", "clip", "before", "clip"], 0.8),
        (_two_closures, ["step", "clear", "before", "clip"] * 2, 0.8),
        (_past_the_wrapper, ["step", "clear"], 0.9),
    ],
)
def test_an_overridden_optimizer_step_decides_what_happens(
    stepping: Any, order: list[str], weight: float, tmp_path: Path
) -> None:
    class Model(StepOrder):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            stepping(optimizer, optimizer_closure)

    model = Model()
    trainer = fit(model, tmp_path, batches=1)

    assert model.seen == order
    assert model.weight.item() == pytest.approx(weight)
    assert trainer.global_step == 1


def test_an_optimizer_step_without_the_closure_is_an_error(tmp_path: Path) -> None:
    class Model(Automatic):
        def optimizer_step(self, *_: Any, **__: Any) -> None:
            pass

    with pytest.raises(MisconfigurationException, match="did not call the closure"):
        fit(Model(), tmp_path)


def test_learning_rate_can_warm_up_in_optimizer_step(tmp_path: Path) -> None:
    class Warm(Automatic):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (batch_idx + 1)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    model = Warm()
    fit(model, tmp_path, batches=3)

    assert model.weight.item() == pytest.approx(1 - 0.01 * (1 + 4 + 9))


def test_several_evaluations_and_accumulation_exclude_each_other(tmp_path: Path) -> None:
    class Model(Automatic):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=3)

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return (self.weight - 3).square().sum()

    with pytest.raises(MisconfigurationException, match="evaluates the closure several times"):
        fit(Model(), tmp_path, accumulate_grad_batches=2)


class Layers(LightningModule):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
        self.make = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return (self.net(batch) - batch).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class LayersThroughClosure(Layers):
    optimizer_step = ThroughClosure.optimizer_step


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
)
def test_the_closure_path_equals_the_direct_path_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    def optimizer(parameters: Any) -> Any:
        return SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)

    direct, closure = Layers(optimizer), LayersThroughClosure(optimizer)
    for model in (direct, closure):
        fit(model, tmp_path, batches=5, max_epochs=2, **settings)

    for name, weight in direct.state_dict().items():
        assert torch.equal(closure.state_dict()[name], weight), name


# ---- who else listens to an optimizer
@contextmanager
def removed_after(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@BOTH_PATHS
def test_step_hooks_of_users_see_every_step(kind: Any, tmp_path: Path) -> None:
    class Hooked(kind):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            optimizer.register_step_pre_hook(lambda *_: self.seen.append("pre"))
            return optimizer

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:  # while training runs
                self.trainer.optimizers[0].register_step_post_hook(lambda *_: self.seen.append("post"))

    model = Hooked()
    fit(model, tmp_path, batches=2)

    assert model.seen == ["pre", "pre", "post"]


@BOTH_PATHS
def test_global_step_hooks_see_every_step(kind: Any, tmp_path: Path) -> None:
    calls: list[str] = []
    with removed_after(torch_optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("pre"))):
        fit(kind(), tmp_path, batches=2)

    assert calls == ["pre", "pre"]


@BOTH_PATHS
def test_a_torch_profiler_sees_steps_and_clearing(kind: Any, tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        fit(kind(), tmp_path, batches=2)
    counts = {event.key: event.count for event in profiler.key_averages()}

    assert counts["Optimizer.step#SGD.step"] == 2
    assert counts["Optimizer.zero_grad#SGD.zero_grad"] == 2


@BOTH_PATHS
def test_a_step_that_is_an_attribute_of_the_object_is_called(kind: Any, tmp_path: Path) -> None:
    class Replaced(kind):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            original = optimizer.step

            def step(*args: Any, **kwargs: Any) -> Any:
                self.seen.append("own")
                return original(*args, **kwargs)

            optimizer.step = step
            return optimizer

    model = Replaced()
    fit(model, tmp_path, batches=2)

    assert model.seen == ["own", "own"]
    assert model.weight.item() == pytest.approx(1 - 0.1 * (1 + 2))


@BOTH_PATHS
def test_parameters_that_are_added_while_training_are_trained(kind: Any, tmp_path: Path) -> None:
    class Unfreezing(kind):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Parameter(torch.ones(1), requires_grad=False)

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.late.sum()

        def configure_optimizers(self) -> Any:
            return SGD([self.weight], lr=0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.late.requires_grad = True
                self.optimizers().add_param_group({"params": [self.late], "lr": 0.01})

    model = Unfreezing()
    fit(model, tmp_path, batches=2, max_epochs=2)

    assert model.late.item() == pytest.approx(0.98)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 2 * (1 + 2))


# ---- scaled gradients
@BOTH_PATHS
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.5}])
def test_scaled_gradients_train_as_unscaled_ones(kind: Any, settings: Any, tmp_path: Path) -> None:
    class Noting(kind):
        def __init__(self) -> None:
            super().__init__()
            self.gradients: list[float] = []

        def on_before_backward(self, loss: Tensor) -> None:
            self.seen.append(loss.item())

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.gradients.append(self.gradient)

    model, unscaled = Noting(), Noting()
    trainer = fit(model, tmp_path, batches=3, plugins=scaled(), **settings)
    fit(unscaled, tmp_path, batches=3, **settings)

    assert model.seen[0] == 1024 * unscaled.seen[0]
    assert model.gradients == pytest.approx(unscaled.gradients, rel=1e-3)
    assert model.weight.item() == pytest.approx(unscaled.weight.item(), rel=1e-3)
    assert trainer.global_step == (2 if "accumulate_grad_batches" in settings else 3)


@BOTH_PATHS
def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_lowered(kind: Any, tmp_path: Path) -> None:
    class Exploding(kind):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()
            if self.trainer.fit_loop.batch_idx == 1:
                self.weight.grad.fill_(float("inf"))

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append((round(self.weight.item(), 4), self.trainer.scaler.get_scale()))

    model = Exploding()
    trainer = fit(model, tmp_path, batches=3, plugins=scaled())

    assert model.seen == [(0.9, 1024.0), (0.9, 512.0), (0.6, 512.0)]
    assert trainer.global_step == 3


def test_with_scaled_gradients_a_closure_may_be_called_without_a_step(tmp_path: Path) -> None:
    class EverySecond(Automatic):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2 == 1:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    model = EverySecond()
    fit(model, tmp_path, batches=4, plugins=scaled())

    assert model.weight.item() == pytest.approx(1 - 0.1 * (2 + 4), rel=1e-3)


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_with_scaled_gradients_a_batch_may_be_skipped(tmp_path: Path) -> None:
    model = Automatic(none_on=(1, 2))
    trainer = fit(model, tmp_path, batches=4, plugins=scaled())

    assert model.weight.item() == pytest.approx(1 - 0.1 * (1 + 4), rel=1e-3)
    assert trainer.global_step == 2


@BOTH_PATHS
def test_without_an_optimizer_the_loop_runs_and_counts(kind: Any, tmp_path: Path) -> None:
    class Without(kind):
        def configure_optimizers(self) -> Any:
            return None

    model = Without()
    with pytest.warns(UserWarning, match="no weight is changed"):
        trainer = fit(model, tmp_path, batches=3)

    assert trainer.global_step == 3
    assert model.weight.item() == 1.0
