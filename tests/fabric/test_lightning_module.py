"""A LightningModule in a loop of Fabric."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fulmen import Fabric, LightningModule


class Recorder:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((metrics, step))


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.ended: list[tuple[int, int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).sum()
        self.log("loss", 1.0, prog_bar=True)
        self.log_dict({"other": torch.tensor(2.0)})
        return loss

    def on_train_epoch_end(self) -> None:
        self.ended.append((self.current_epoch, self.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def parts(**changes: Any) -> tuple[Fabric, Module, Any, Any]:
    module = Module()
    fabric = Fabric(accelerator="cpu", devices=1, **changes)
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    return fabric, module, model, optimizer


def test_the_module_is_a_callback_and_knows_its_fabric() -> None:
    fabric, module, _, optimizer = parts()
    fabric.call("on_train_epoch_end")

    assert module.fabric is fabric
    assert module.ended == [(0, 0)]
    assert module.optimizers() is optimizer
    assert (module.global_rank, module.local_rank, module.loggers) == (0, 0, [])


def test_logged_values_go_to_the_loggers_of_fabric() -> None:
    recorder = Recorder()
    _, module, model, _ = parts(loggers=recorder)
    model.training_step(torch.ones(1, 2), 0)

    assert recorder.rows == [({"loss": 1.0}, None), ({"other": 2.0}, None)]
    assert module.logger is recorder  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("method", ["manual_backward", "backward"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_backward_goes_through_fabric(method: str, precision: str) -> None:
    _, module, model, _ = parts(precision=precision)
    getattr(module, method)(model.training_step(torch.ones(1, 2), 0))

    assert module.layer.weight.grad is not None


def test_backward_with_the_module_named_does_not_call_it_again() -> None:
    fabric, module, model, _ = parts(precision="bf16-mixed")
    fabric.backward(model.training_step(torch.ones(1, 2), 0), model=model)

    assert module.layer.weight.grad is not None


def test_gradients_are_clipped_by_fabric() -> None:
    fabric, module, model, optimizer = parts()
    fabric.backward(model.training_step(torch.ones(1, 2), 0))
    module.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")

    assert module.layer.weight.grad is not None
    assert module.layer.weight.grad.tolist() == [[0.5, 0.5]]
    module.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    assert module.layer.weight.grad.norm() < 0.1
    with pytest.raises(ValueError, match="exactly one"):
        module.clip_gradients(optimizer)


def test_what_only_a_trainer_has_is_refused() -> None:
    fabric, module, _, _ = parts()

    assert module.trainer.world_size == fabric.world_size
    with pytest.raises(AttributeError, match=r"`self\.trainer\.max_epochs`, but Fabric runs it"):
        _ = module.trainer.max_epochs


def test_gather_and_print_go_through_fabric(capsys: pytest.CaptureFixture[str]) -> None:
    _, module, _, _ = parts()
    module.print("here")

    assert module.all_gather(torch.ones(1)).tolist() == [1.0]
    assert capsys.readouterr().out == "here\n"
