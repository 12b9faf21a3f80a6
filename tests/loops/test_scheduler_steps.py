"""When learning-rate schedulers are stepped, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from fulmen import Callback, LightningModule, Trainer
from fulmen.utilities.exceptions import MisconfigurationException
from tests.loops.models import Automatic, fit


class Scheduled(Automatic):
    """Has a scheduler, and logs `metric`; notes the learning rate that each batch was trained with."""

    def __init__(self, scheduler: Callable[[Any], Any], metric: float | None = 1.0) -> None:
        super().__init__()
        self.scheduler, self.metric = scheduler, metric

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if self.metric is not None:
            self.log("metric", self.metric)
        self.seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}


def halving(optimizer: Any) -> ExponentialLR:
    return ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize(
    ("interval", "frequency", "accumulate", "rates"),
    [
        ("epoch", 1, 1, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ("epoch", 2, 1, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", 1, 1, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]),
        ("step", 3, 1, [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ("step", 1, 2, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
        ("step", 2, 2, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_schedulers_step_at_their_interval_and_frequency(
    interval: str, frequency: int, accumulate: int, rates: list[float], tmp_path: Path
) -> None:
    model = Scheduled(lambda o: {"scheduler": halving(o), "interval": interval, "frequency": frequency})
    fit(model, tmp_path, batches=4, max_epochs=2, accumulate_grad_batches=accumulate)

    assert model.seen == rates


@pytest.mark.parametrize(
    ("interval", "rates"), [("epoch", [1, 1, 1, 1, 0.5, 0.5]), ("step", [1, 1, 0.5, 0.25, 0.125, 0.0625])]
)
def test_plateau_follows_a_metric(interval: str, rates: list[float], tmp_path: Path) -> None:
    model = Scheduled(
        lambda o: {
            "scheduler": ReduceLROnPlateau(o, factor=0.5, patience=0), "monitor": "metric", "interval": interval
        }
    )  # fmt: skip
    fit(model, tmp_path, batches=2, max_epochs=3)

    assert model.seen == rates


def plateau(optimizer: Any, **settings: Any) -> dict[str, Any]:
    return {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "absent", **settings}


def test_plateau_needs_its_metric(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"'absent', which was not logged. Logged so far: \['metric'\]"):
        fit(Scheduled(plateau), tmp_path)


def test_plateau_that_is_not_strict_only_warns(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="'absent'.*was not stepped"):
        trainer = fit(Scheduled(lambda o: plateau(o, strict=False)), tmp_path)

    assert trainer.current_epoch == 1


def test_lr_scheduler_step_can_be_overridden(tmp_path: Path) -> None:
    class Own(Scheduled):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.seen.append((type(scheduler).__name__, metric))
            scheduler.step()

    model = Own(halving)
    fit(model, tmp_path, batches=1, max_epochs=2)

    assert model.seen == [1.0, ("ExponentialLR", None), 0.5, ("ExponentialLR", None)]


def test_a_scheduler_that_is_not_torchs_is_stepped_by_lr_scheduler_step(tmp_path: Path) -> None:
    class ByEpoch:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def step(self, epoch: int) -> None:
            self.optimizer.param_groups[0]["lr"] = 10.0 * (epoch + 1)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    class Own(Scheduled):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step(epoch=self.current_epoch)

    model = Own(ByEpoch)
    fit(model, tmp_path, batches=1, max_epochs=3)

    assert model.seen == [1.0, 10.0, 20.0]


def test_a_scheduler_made_while_training_can_be_stepped_by_a_callback(tmp_path: Path) -> None:
    class Scheduling(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.scheduler = halving(trainer.optimizers[0])

        def on_train_batch_end(self, *_: Any) -> None:
            self.scheduler.step()

    model = Scheduled(lambda o: None)
    fit(model, tmp_path, batches=3, callbacks=Scheduling())

    assert model.seen == [1, 0.5, 0.25]
