from __future__ import annotations

from datetime import timedelta

import pytest

from fulmen.callbacks import timer as timer_module
from fulmen.callbacks.timer import Timer
from fulmen.trainer.states import RunningStage
from fulmen.utilities.exceptions import MisconfigurationException


class Clock:
    """Stands in for the module `time`: one second passes at each look."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer_module, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("01:02:03:04", 93784.0),
        ("001:24:61:61", 176521.0),
        (timedelta(minutes=2), 120.0),
        ({"hours": 1}, 3600.0),
        (None, None),
    ],
)
def test_durations(duration, seconds):
    assert Timer(duration).time_remaining() == seconds


def test_malformed_duration_is_refused():
    with pytest.raises(MisconfigurationException, match="DD:HH:MM:SS"):
        Timer("1:2")
    with pytest.raises(MisconfigurationException, match="timedelta"):
        Timer(5)  # type: ignore[arg-type]  # the mistake


def test_unknown_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="each 'step' or each 'epoch'"):
        Timer(interval="batch")


def test_nothing_is_measured_before_training():
    timer = Timer()

    assert timer.time_elapsed() == 0
    assert timer.start_time() is None
    assert timer.end_time("validate") is None


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_no_time_trains_nothing(quiet_trainer, model_class, interval):
    trainer = quiet_trainer(Timer(timedelta(0), interval=interval), enable_checkpointing=False)
    trainer.fit(model_class())

    assert trainer.global_step == 0


def test_training_stops_when_time_is_up(quiet_trainer, model_class, clock):
    timer = Timer(timedelta(seconds=3))
    trainer = quiet_trainer(timer, enable_checkpointing=False, max_epochs=100, limit_val_batches=0)
    trainer.fit(model_class())

    assert 0 < trainer.global_step < 5
    left_s = timer.time_remaining()
    assert left_s is not None
    assert left_s <= 0


def test_epoch_interval_ends_with_an_epoch(quiet_trainer, model_class, clock):
    timer = Timer(timedelta(seconds=4), interval="epoch")
    trainer = quiet_trainer(timer, enable_checkpointing=False, max_epochs=100, limit_val_batches=0)
    trainer.fit(model_class())

    assert trainer.global_step % 4 == 0
    assert 0 < trainer.current_epoch < 100


def test_stages_are_measured_apart(quiet_trainer, model_class, clock):
    timer = Timer()
    trainer = quiet_trainer(timer, enable_checkpointing=False, max_epochs=1)
    trainer.fit(model_class())

    assert timer.time_elapsed("train") > timer.time_elapsed("validate") > 0
    assert timer.time_elapsed("test") == 0
    start, end = timer.start_time(), timer.end_time()
    assert start is not None
    assert end is not None
    assert end - start == timer.time_elapsed()


def test_a_stage_is_named_by_text_or_by_the_state_of_the_trainer(quiet_trainer, model_class, clock):
    timer = Timer()
    quiet_trainer(timer, enable_checkpointing=False, max_epochs=1).fit(model_class())

    assert timer.start_time() == timer.start_time("train") == timer.start_time(RunningStage.TRAINING)
    assert timer.end_time(RunningStage.VALIDATING) == timer.end_time("validate")
    assert {type(stage) for stage in timer.state_dict()["time_elapsed"]} == {str}


def test_time_before_a_resume_counts(quiet_trainer, model_class):
    timer = Timer(timedelta(seconds=10))
    timer.load_state_dict({"time_elapsed": {"train": 8.0}})

    assert timer.time_remaining() == 2.0
    assert timer.state_dict()["time_elapsed"] == {
        "train": 8.0,
        "sanity_check": 0,
        "validate": 0,
        "test": 0,
        "predict": 0,
    }


def test_resumed_run_without_time_left_does_not_train(quiet_trainer, model_class):
    timer = Timer(timedelta(seconds=1))
    timer.load_state_dict({"time_elapsed": {"train": 5.0}})
    trainer = quiet_trainer(timer, enable_checkpointing=False)
    trainer.fit(model_class())

    assert trainer.global_step == 0


def test_max_time_of_the_trainer(quiet_trainer, model_class):
    trainer = quiet_trainer(max_time={"seconds": 0}, enable_checkpointing=False)
    trainer.fit(model_class())

    assert trainer.global_step == 0
