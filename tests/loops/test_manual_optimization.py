"""Manual optimization: the user steps, the Trainer counts, scales and calls the hooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from fulmen import LightningModule
from fulmen.utilities.exceptions import MisconfigurationException
from tests.loops.models import Automatic, data, fit, plain, scaled


class Manual(LightningModule):
    """Trains `count` linear layers, each with an optimizer of its own."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(1)
        self.layers: Any = nn.ModuleList(nn.Linear(1, 1) for _ in range(count))
        self.seen: list[Any] = []

    def all_optimizers(self) -> list[Any]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        for layer, optimizer in zip(self.layers, self.all_optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [SGD(layer.parameters(), lr=0.01, momentum=0.9) for layer in self.layers]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_by_hand_every_step_of_every_optimizer_counts(count: int, tmp_path: Path) -> None:
    model = Manual(count)
    trainer = fit(model, tmp_path, batches=4)

    assert trainer.global_step == 4 * count
    reference = Manual(count)
    for layer in reference.layers:
        optimizer = SGD(layer.parameters(), lr=0.01, momentum=0.9)
        for batch in data(4):
            optimizer.zero_grad()
            layer(batch).square().mean().backward()
            optimizer.step()
    for name, weight in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_max_steps_counts_the_steps_of_all_optimizers(tmp_path: Path) -> None:
    assert fit(Manual(2), tmp_path, max_steps=4, max_epochs=-1).global_step == 4


class Gan(LightningModule):
    """A generator and a discriminator on the line; the generator fools with toggled gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(1)
        self.generator, self.discriminator = nn.Linear(1, 1), nn.Linear(1, 1)

    def losses(self, real: Tensor) -> Iterator[Tensor]:
        judge = nn.functional.binary_cross_entropy_with_logits
        noise = torch.randn_like(real)
        yield judge(self.discriminator(self.generator(noise)), torch.ones_like(real))
        fake = self.discriminator(self.generator(noise).detach())
        yield (judge(self.discriminator(real), torch.ones_like(real)) + judge(fake, torch.zeros_like(real))) / 2

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        losses = self.losses(batch)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(next(losses))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01),
        ]


def test_a_gan_trains_as_without_a_trainer(tmp_path: Path) -> None:
    reference, model = Gan(), Gan()
    optimizers = reference.configure_optimizers()
    torch.manual_seed(3)
    batches = iter(data(5))
    for batch in batches:
        losses = reference.losses(batch)
        for optimizer in optimizers:
            reference.zero_grad()
            next(losses).backward()
            optimizer.step()
    torch.manual_seed(3)
    trainer = fit(model, tmp_path, batches=5)

    assert trainer.global_step == 10
    for name, weight in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_by_hand_the_hooks_around_backward_and_step_are_called(tmp_path: Path) -> None:
    class Noting(Manual):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.seen.append("zero_grad")

        def on_before_backward(self, loss: Tensor) -> None:
            self.seen.append("before backward")

        def on_after_backward(self) -> None:
            self.seen.append("after backward")

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(type(optimizer).__name__)

        def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
            self.seen.append("clipping")

    model = Noting()
    fit(model, tmp_path, batches=1)

    assert model.seen == ["before backward", "after backward", "SGD"]


def test_by_hand_an_optimizer_can_step_in_other_hooks(tmp_path: Path) -> None:
    class PerEpoch(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.manual_backward(self.layers[0](batch).mean())

        def on_train_start(self) -> None:
            self.all_optimizers()[0].step()

        def on_train_epoch_end(self) -> None:
            self.all_optimizers()[0].step()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(self.layers[0].bias.grad)

    model = PerEpoch()
    trainer = fit(model, tmp_path, batches=3)

    assert model.seen == [None, torch.tensor([3.0])]
    assert trainer.global_step == 2


def test_by_hand_schedulers_are_left_to_the_user(tmp_path: Path) -> None:
    class Scheduled(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            _, second = self.lr_schedulers()  # type: ignore[misc]
            if batch_idx == 1:
                second.step()
            self.seen.append([optimizer.param_groups[0]["lr"] for optimizer in self.all_optimizers()])

        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            return optimizers, [StepLR(optimizer, 1, gamma=0.5) for optimizer in optimizers]

    model = Scheduled(2)
    trainer = fit(model, tmp_path, batches=3, max_epochs=2)

    assert model.seen[2] == [0.01, 0.005]
    assert model.seen[5] == [0.01, 0.0025]
    assert [config.scheduler for config in trainer.lr_scheduler_configs] == model.lr_schedulers()


def test_by_hand_gradients_are_clipped_by_clip_gradients(tmp_path: Path) -> None:
    class Clipping(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizer = self.all_optimizers()[0]
            self.manual_backward(100 * self.layers[0](batch).mean())
            if batch_idx == 0:
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            else:
                self.clip_gradients(optimizer, gradient_clip_val=0.25, gradient_clip_algorithm="value")
            self.seen.append(torch.cat([p.grad.flatten() for p in self.parameters()]))  # type: ignore[union-attr]

    model = Clipping()
    fit(model, tmp_path, batches=2)

    assert model.seen[0].norm().item() == pytest.approx(0.5)
    assert model.seen[1].tolist() == [0.25, 0.25]


def test_by_hand_gradients_are_accumulated(tmp_path: Path) -> None:
    class Accumulating(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.manual_backward(self.layers[0](batch).mean() / 2)
            if batch_idx % 2 == 1:
                optimizer = self.all_optimizers()[0]
                self.seen.append(self.layers[0].weight.grad.item())
                optimizer.step()
                optimizer.zero_grad()

    model = Accumulating()
    trainer = fit(model, tmp_path, batches=4)

    assert model.seen == [1.5, 3.5]
    assert trainer.global_step == 2


def test_arguments_of_manual_backward_reach_backward(tmp_path: Path) -> None:
    class Twice(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            output = self.layers[0](batch)
            self.manual_backward(output.mean(), retain_graph=True)
            self.manual_backward(output, torch.ones_like(output))
            self.seen.append(self.layers[0].bias.grad.item())

    model = Twice()
    fit(model, tmp_path, batches=1)

    assert model.seen == [3.0]


def test_manual_backward_is_refused_in_automatic_mode(tmp_path: Path) -> None:
    class Wrong(Automatic):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.manual_backward(self.weight.sum())

    with pytest.raises(MisconfigurationException, match="only with manual optimization"):
        fit(Wrong(), tmp_path)


def test_by_hand_a_closure_is_evaluated_by_the_optimizer(tmp_path: Path) -> None:
    class Closing(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizer = self.all_optimizers()[0]

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss: Tensor = (self.layers[0](batch) - batch).square().mean()
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1)

    model = Closing()
    trainer = fit(model, tmp_path, batches=2, max_epochs=20)

    assert trainer.global_step == 40
    assert model.layers[0].weight.item() == pytest.approx(1.0, abs=0.01)


def test_by_hand_bfloat16_is_used_in_the_step(tmp_path: Path) -> None:
    class Half(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.seen.append(self.layers[0](batch).dtype)
            super().training_step(batch, batch_idx)
            self.seen.append(self.layers[0].weight.grad.dtype)

    model = Half()
    trainer = fit(model, tmp_path, batches=1, precision="bf16-mixed")

    assert model.seen == [torch.bfloat16, torch.float32]
    assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (lambda loss: loss, {"loss": (2.0, False)}),
        (lambda loss: None, {}),
        (lambda loss: {"loss": loss, "extra": 3}, {"loss": (2.0, False), "extra": 3}),
        (lambda loss: {"extra": 3}, {"extra": 3}),
        (lambda loss: {"loss": None, "extra": 3}, {"loss": None, "extra": 3}),
        (lambda loss: {"loss": 2.5}, {"loss": 2.5}),
    ],
)
def test_by_hand_outputs_are_what_the_step_returned(returned: Any, expected: Any, tmp_path: Path) -> None:
    class Returning(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return returned(self.layers[0].weight.sum() * 0 + 2)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append({key: plain(value) for key, value in outputs.items()})

    model = Returning()
    fit(model, tmp_path, batches=1)

    assert model.seen == [expected]


def test_by_hand_any_other_output_is_refused(tmp_path: Path) -> None:
    class Wrong(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return 1.0

    with pytest.raises(MisconfigurationException, match="returned a float"):
        fit(Wrong(), tmp_path)


def test_by_hand_gradients_are_scaled_and_unscaled(tmp_path: Path) -> None:
    class Scaled(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            first, second = self.all_optimizers()
            for layer, optimizer in zip(self.layers, (first, second), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch).float().mean())
                self.seen.append(layer.bias.grad.item())
                optimizer.step()
                self.seen.append(layer.bias.grad.item())

    model = Scaled(2)
    trainer = fit(model, tmp_path, batches=1, plugins=scaled())

    assert model.seen == [1024.0, 1.0] * 2
    assert trainer.global_step == 2
