"""`max_time` ends training where it can go on to the bit, also inside a validation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import Trainer
from fulmen.callbacks import ModelCheckpoint, Timer
from fulmen.callbacks import timer as timer_module
from fulmen.trainer.states import TrainerStatus
from tests.support import quiet
from tests.trainer.test_signals import BATCHES, Model, fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Your `.*_dataloader`'s sampler has shuffling")


class Clock:
    """Stands in for the module `time`: a second passes in each step of the model."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timer_module, "time", clock)
    return clock


class Ticking(Model):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 1.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.clock.now += 1.0
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Training may end before a validation has."""


@pytest.mark.parametrize(
    ("seconds", "steps", "num_seen", "settings"),
    [
        (2, 2, 2, {}),
        (4, 4, 5, {}),  # in the first of three validation batches
        (6, 4, 6, {}),
        (BATCHES + 6, BATCHES, BATCHES + 6, {}),  # in the last batch of an epoch's last validation
        (BATCHES + 7, BATCHES + 1, BATCHES + 7, {}),
        (2, 1, 3, {"accumulate_grad_batches": 3, "val_check_interval": 1.0}),
    ],
)
def test_training_ends_when_its_time_is_up_and_goes_on_to_the_bit(
    seconds: int, steps: int, num_seen: int, settings: dict[str, Any], clock: Clock, tmp_path: Path
) -> None:
    first = Ticking(clock)
    run = trainer(tmp_path, max_time={"seconds": seconds}, **settings)
    fit(first, run)
    rest, whole = Ticking(clock), Ticking(clock)
    path = tmp_path / "saved" / "interrupted.ckpt"
    fit(rest, trainer(tmp_path, max_time={"seconds": 1000}, **settings), ckpt_path=path)
    fit(whole, trainer(tmp_path / "whole", **settings))

    assert run.state.status == TrainerStatus.FINISHED
    assert (run.global_step, len(first.seen)) == (steps, num_seen)
    done = len(whole.seen) - len(rest.seen)
    assert whole.seen[done:] == rest.seen
    assert first.seen[:done] == whole.seen[:done]
    assert all(entry[1] == "val" for entry in first.seen[done:])
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))
    timers = [each for each in rest.trainer.callbacks if isinstance(each, Timer)]
    assert timers[0].time_elapsed("train") == first_elapsed(path) + len(rest.seen)


def first_elapsed(path: Path) -> float:
    """Seconds of training that a checkpoint remembers."""
    states = torch.load(path, weights_only=True)["callbacks"]
    return float(next(state for key, state in states.items() if key.startswith("Timer"))["time_elapsed"]["train"])


def test_what_the_end_of_training_saves_is_older_than_the_exact_checkpoint(clock: Clock, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    run = Trainer(**quiet(tmp_path, max_time={"seconds": 2}, callbacks=saver, enable_checkpointing=True))
    fit(Ticking(clock), run)

    files = sorted((tmp_path / "saved").iterdir(), key=lambda file: os.stat(file).st_mtime)
    assert files[-1].name == "interrupted.ckpt"
    assert {"interrupted.ckpt", "last.ckpt"} <= {file.name for file in files}


def test_at_the_end_of_an_epoch_the_next_one_goes_on(clock: Clock, tmp_path: Path) -> None:
    first, rest, whole = Ticking(clock), Ticking(clock), Ticking(clock)
    fit(first, trainer(tmp_path, Timer({"seconds": 2}, interval="epoch")))
    fit(rest, trainer(tmp_path, Timer()), ckpt_path=tmp_path / "saved" / "interrupted.ckpt")
    fit(whole, trainer(tmp_path / "whole"))

    assert first.trainer.current_epoch == 1
    assert first.seen + rest.seen == whole.seen


def test_min_steps_come_before_max_time(clock: Clock, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_time={"seconds": 2}, min_steps=BATCHES + 3)
    fit(Ticking(clock), run)

    assert run.global_step == BATCHES + 3


def test_nothing_is_saved_where_no_checkpoints_are(clock: Clock, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_time={"seconds": 2}, fast_dev_run=5)
    fit(Ticking(clock), run)

    assert run.global_step == 2
    assert list(tmp_path.rglob("*.ckpt")) == []
