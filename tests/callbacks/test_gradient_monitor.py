from __future__ import annotations

from typing import Any

import pytest
import torch

from fulmen.callbacks import GradientMonitor, LambdaCallback
from fulmen.loggers import CSVLogger
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.grads import grad_norm
from tests.callbacks.digits_reader import Reader, loader, rows_of, train


def test_norms_and_updates_are_those_of_the_step(tmp_path):
    """With plain SGD the weights change by the learning rate times the gradient."""
    expected: list[tuple[float, float]] = []

    def look(trainer: Any, module: Any, optimizer: Any) -> None:
        weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        norm = float(grad_norm(module, 2)["grad_2.0_norm_total"])
        expected.append((norm, 0.05 * norm / weights.norm().item()))

    class Plain(Reader):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    trainer = train(
        tmp_path, GradientMonitor(1), LambdaCallback(on_before_optimizer_step=look), model=Plain(), max_steps=6
    )

    norms = [value for _, value in rows_of(trainer, "grad_norm_total")]
    ratios = [value for _, value in rows_of(trainer, "update_ratio_total")]
    assert norms == pytest.approx([norm for norm, _ in expected])
    assert ratios == pytest.approx([ratio for _, ratio in expected], rel=1e-4)


def test_each_layer_is_named_and_together_they_are_the_total(tmp_path):
    callback = GradientMonitor(5)
    trainer = train(tmp_path, callback, max_steps=10)

    assert list(callback.last) == [
        "grad_norm/net.0", "grad_norm/net.2", "grad_norm_total",
        "update_ratio/net.0", "update_ratio/net.2", "update_ratio_total",
    ]  # fmt: skip
    squares = sum(callback.last[f"grad_norm/net.{idx}"] ** 2 for idx in (0, 2))
    assert callback.last["grad_norm_total"] ** 2 == pytest.approx(squares)
    assert [step for step, _ in rows_of(trainer, "grad_norm_total")] == [4, 9]
    assert trainer.callback_metrics["grad_norm_total"].item() == pytest.approx(callback.last["grad_norm_total"])


@pytest.mark.parametrize(
    ("by", "names"), [("parameter", ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]), ("total", [])]
)
def test_names_follow_what_is_asked_for(tmp_path, by, names):
    callback = GradientMonitor(by=by, update_ratio=False)
    train(tmp_path, callback, max_steps=5)

    assert list(callback.last) == [*(f"grad_norm/{name}" for name in names), "grad_norm_total"]


def test_a_dead_layer_is_seen(tmp_path):
    """What the monitor is for: a layer whose inputs are all off learns nothing."""

    class Dead(Reader):
        def __init__(self) -> None:
            super().__init__()
            torch.nn.init.constant_(self.net[0].bias, -100.0)  # type: ignore[arg-type]  # a Linear's

    callback = GradientMonitor(1)
    train(tmp_path, callback, model=Dead(), max_steps=2)

    assert callback.last["grad_norm/net.0"] == 0
    assert callback.last["update_ratio/net.0"] == 0
    assert callback.last["grad_norm/net.2"] > 0


def test_steps_that_are_not_due_compute_nothing(tmp_path, monkeypatch):
    callback = GradientMonitor(7)
    calls: list[int] = []
    norm = torch.nn.utils.get_total_norm

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return norm(*args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted)
    train(tmp_path, callback, max_steps=20)

    assert len(calls) == 2 * 2 * 3  # two steps, two layers: gradients, updates, weights


def test_the_whole_window_counts_and_training_does_not_change(tmp_path):
    plain = train(tmp_path, accumulate_grad_batches=4)
    watched = train(tmp_path, GradientMonitor(1), accumulate_grad_batches=4, logger=CSVLogger(tmp_path))

    assert [step for step, _ in rows_of(watched, "grad_norm_total")] == [0, 1, 2, 3, 4]
    for mine, theirs in zip(plain.lightning_module.parameters(), watched.lightning_module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_optimizers_of_a_module_that_steps_by_hand_are_measured(tmp_path):
    class Manual(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():  # type: ignore[union-attr]  # two
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():  # type: ignore[union-attr]  # two
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[idx].parameters(), 0.1) for idx in (0, 2)]

    callback = GradientMonitor(2)
    train(tmp_path, callback, model=Manual(), limit_train_batches=4)

    assert callback.last["grad_norm/net.0"] > 0
    assert callback.last["grad_norm/net.2"] > 0


@pytest.mark.parametrize(
    "arguments", [{"every_n_steps": 0}, {"every_n_steps": True}, {"every_n_steps": 1.5}, {"by": "row"}]
)
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(MisconfigurationException, match="GradientMonitor"):
        GradientMonitor(**arguments)


def test_the_reader_learns_with_updates_of_a_healthy_size(tmp_path):
    callback = GradientMonitor()
    trainer = train(tmp_path, callback, val=loader(640, 960, shuffle=False), max_epochs=4)

    assert trainer.callback_metrics["val_acc"] > 0.85
    assert all(1e-4 < value < 0.3 for _, value in rows_of(trainer, "update_ratio_total"))
