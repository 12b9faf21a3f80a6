"""When a fit trains, steps, schedules and validates: once as the contract says it, once as it happens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from fulmen import LightningModule, Trainer

Place = tuple[int, int]  # an epoch, and a batch in it


class Batches:
    """A loader without length; it makes its batches while it is iterated."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(self.number, 1))


class SizedBatches(Batches):
    def __len__(self) -> int:
        return self.number


@dataclass(frozen=True)
class Settings:
    num_batches: int = 4
    sized: bool = True
    max_epochs: int = 1
    max_steps: int = -1
    min_epochs: int | None = None
    min_steps: int | None = None
    limit_train_batches: int | float = 1.0
    accumulate_grad_batches: int = 1
    val_check_interval: int | float | None = None
    check_val_every_n_epoch: int | None = 1
    scheduler_interval: str = "epoch"
    scheduler_frequency: int = 1
    stop_at: Place | None = None
    skip_at: Place | None = None

    def of_trainer(self) -> dict[str, Any]:
        own = {"num_batches", "sized", "scheduler_interval", "scheduler_frequency", "stop_at", "skip_at"}
        return {name: value for name, value in asdict(self).items() if name not in own}


@dataclass
class Cadence:
    """What a fit did, in order, and its counters at the end."""

    events: list[str]
    global_step: int = 0
    current_epoch: int = 0


def expected(settings: Settings) -> Cadence:  # noqa: C901 - the contract on one page
    """The contract in a few lines: two loops and what is due in them."""
    s, result = settings, Cadence([])
    at_end = s.val_check_interval in (None, 1.0) and not isinstance(s.val_check_interval, int)
    limit = s.limit_train_batches
    batches = min(s.num_batches, limit) if isinstance(limit, int) else int(s.num_batches * limit)
    interval = s.val_check_interval if isinstance(s.val_check_interval, int) else _part(batches, s.val_check_interval)
    min_epochs = s.min_epochs if s.min_epochs is not None else int(bool(s.min_steps))
    stop_asked, total = False, 0

    def steps_done() -> bool:
        return 0 <= s.max_steps <= result.global_step

    def stops() -> bool:
        return stop_asked and result.current_epoch >= min_epochs and result.global_step >= (s.min_steps or 0)

    def step() -> None:
        result.events.append("o")
        result.global_step += 1
        if s.scheduler_interval == "step" and result.global_step % s.scheduler_frequency == 0:
            result.events.append("s")

    def end_of_epoch_for_scheduler() -> None:
        if s.scheduler_interval == "epoch" and (result.current_epoch + 1) % s.scheduler_frequency == 0:
            result.events.append("s")

    while not (batches == 0 or steps_done() or result.current_epoch >= s.max_epochs or stops()):
        epoch = result.current_epoch
        validates = s.check_val_every_n_epoch is None or (epoch + 1) % s.check_val_every_n_epoch == 0
        for batch in range(batches):
            total += 1
            is_last = batch + 1 == batches
            if (epoch, batch) == s.skip_at:
                if batch % s.accumulate_grad_batches:
                    step()  # on what the window holds
                end_of_epoch_for_scheduler()
                break
            result.events.append(f"t{epoch}.{batch}")
            stop_asked = stop_asked or (epoch, batch) == s.stop_at
            due = is_last or (batch + 1) % s.accumulate_grad_batches == 0
            if due:
                step()
            if is_last:
                end_of_epoch_for_scheduler()
            counted = total if s.check_val_every_n_epoch is None else batch + 1
            is_val_due = is_last if at_end else counted % interval == 0
            if validates and (is_val_due or (due and stops())):
                result.events.append("V")
            if due and (steps_done() or stops()):
                break
        result.events.append("E")
        result.current_epoch += 1
    return result


def _part(batches: int, fraction: float | None) -> int:
    return batches if fraction is None else max(1, math.floor(batches * fraction))


class Recorder(LightningModule):
    """Writes down what is done, and stops or skips where it is told to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.settings = settings
        self.events: list[str] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if (self.current_epoch, batch_idx) == self.settings.skip_at else None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.events.append(f"t{self.current_epoch}.{batch_idx}")
        if (self.current_epoch, batch_idx) == self.settings.stop_at:
            self.trainer.should_stop = True
        return (self.weight * batch).sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("o")

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.events.append("s")
        super().lr_scheduler_step(scheduler, metric)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("V")

    def on_train_epoch_end(self) -> None:
        self.events.append("E")

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        scheduler = {
            "scheduler": LambdaLR(optimizer, lambda _: 1.0),
            "interval": self.settings.scheduler_interval,
            "frequency": self.settings.scheduler_frequency,
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def observed(settings: Settings, arguments: dict[str, Any]) -> Cadence:
    """Fit with these settings; `arguments` are those of a quiet Trainer."""
    model = Recorder(settings)
    trainer = Trainer(**{**arguments, **settings.of_trainer(), "num_sanity_val_steps": 0})
    loader = SizedBatches if settings.sized else Batches
    trainer.fit(model, loader(settings.num_batches), SizedBatches(1))
    return Cadence(model.events, trainer.global_step, trainer.current_epoch)
