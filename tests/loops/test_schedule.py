"""What is due when: validations and schedulers' steps, by `cadence_model` and as recorded with `lightning`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen import Trainer
from fulmen.callbacks import EarlyStopping
from fulmen.loops.schedule import ValidationPlan, validation_interval
from fulmen.utilities.exceptions import MisconfigurationException
from tests.loops.cadence_model import Batches, Recorder, Settings, SizedBatches, expected, observed
from tests.support import quiet

PROGRAM = Path(__file__).parents[1] / "reference" / "cadence.py"
RECORDED: dict[str, str] = json.loads(PROGRAM.with_suffix(".json").read_text())

# nothing is written to the folder of the test, so all examples can share it
relaxed = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # where the first epoch is skipped whole
    pytest.mark.filterwarnings("ignore:The training dataloader yielded None"),
]


# ---- as recorded
def recorded_by(python: str, package: str) -> dict[str, str]:
    output = subprocess.run([python, str(PROGRAM), package], capture_output=True, text=True, check=True, timeout=110)
    result: dict[str, str] = json.loads(output.stdout)
    return result


@pytest.fixture(scope="module")
def ours() -> dict[str, str]:
    return recorded_by(sys.executable, "fulmen")


@pytest.mark.parametrize("case", sorted(RECORDED))
def test_a_fit_does_what_lightning_does_in_the_same_order(case: str, ours: dict[str, str]) -> None:
    assert ours[case] == RECORDED[case]


@pytest.mark.skipif("FULMEN_REFERENCE_PYTHON" not in os.environ, reason="needs FULMEN_REFERENCE_PYTHON with lightning")
def test_the_recorded_cadence_is_that_of_lightning() -> None:
    assert recorded_by(os.environ["FULMEN_REFERENCE_PYTHON"], "lightning.pytorch") == RECORDED


# ---- as the contract says
@relaxed
@given(
    num_batches=st.integers(1, 6),
    interval=st.none() | st.integers(1, 12) | st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.99, 1.0]),
    every=st.none() | st.integers(1, 3),
    max_epochs=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    limit=st.sampled_from([1.0, 3]),
    stop_at=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 5)),
    skip_at=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 5)),
)
def test_validation_runs_where_the_interval_says(
    tmp_path: Path, num_batches: int, interval: Any, every: int | None, accumulate: int, limit: Any, **chosen: Any
) -> None:
    is_count = isinstance(interval, int)
    assume(not (is_count and every is not None and interval > min(num_batches, 3 if limit == 3 else num_batches)))
    assume(not (isinstance(interval, float) and every is None))
    case = Settings(
        num_batches=num_batches,
        val_check_interval=interval,
        check_val_every_n_epoch=every,
        accumulate_grad_batches=accumulate,
        limit_train_batches=limit,
        **chosen,
    )

    assert observed(case, quiet(tmp_path)) == expected(case)


@relaxed
@given(
    num_batches=st.integers(1, 6),
    sized=st.booleans(),
    max_epochs=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    interval=st.sampled_from(["epoch", "step"]),
    frequency=st.integers(1, 5),
    max_steps=st.integers(-1, 8),
    skip_at=st.none() | st.tuples(st.integers(0, 2), st.integers(0, 5)),
)
def test_schedulers_step_at_their_interval_and_frequency(
    tmp_path: Path, interval: str, frequency: int, accumulate: int, **chosen: Any
) -> None:
    case = Settings(
        scheduler_interval=interval, scheduler_frequency=frequency, accumulate_grad_batches=accumulate, **chosen
    )

    assert observed(case, quiet(tmp_path)) == expected(case)


def test_a_loader_shorter_than_its_limit_is_validated_at_its_end(tmp_path: Path) -> None:
    case = Settings(num_batches=3, sized=False, limit_train_batches=100, max_epochs=2)

    assert observed(case, quiet(tmp_path)) == expected(replace(case, limit_train_batches=1.0))


# ---- batches of None
class WithNone(Batches):
    """Gives None at one place."""

    def __init__(self, number: int, none_at: int) -> None:
        super().__init__(number)
        self.none_at = none_at

    def __iter__(self) -> Any:
        return iter([None if i == self.none_at else torch.ones(1) for i in range(self.number)])


@pytest.mark.parametrize(
    ("none_at", "arguments", "events"),
    [
        (1, {}, "t0.0 o t0.2 o s V E"),
        (2, {}, "t0.0 o t0.1 o s V E"),
        (2, {"accumulate_grad_batches": 3}, "t0.0 t0.1 o s V E"),
        (0, {"val_check_interval": 1}, "V t0.1 o V t0.2 o s V E"),
    ],
)
def test_after_a_batch_of_none_everything_else_is_done_that_is_due(
    tmp_path: Path, none_at: int, arguments: dict[str, Any], events: str
) -> None:
    model, trainer = Recorder(Settings()), Trainer(**quiet(tmp_path, num_sanity_val_steps=0, **arguments))
    trainer.fit(model, WithNone(3, none_at), SizedBatches(1))

    assert " ".join(model.events) == events
    assert trainer.fit_loop.batch_progress.total.completed == 3


def test_a_batch_of_none_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="yielded None"):
        Trainer(**quiet(tmp_path)).fit(Recorder(Settings()), WithNone(2, 0), SizedBatches(1))


# ---- by time
class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


class TenSecondsABatch(Recorder):
    clock: Clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 10
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.clock.now += 5
        self.log("loss", 1.0)


@pytest.mark.parametrize("interval", ["00:00:00:30", {"seconds": 30}])
@pytest.mark.parametrize("reload", [0, 1])
def test_validation_by_time_counts_from_the_end_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: Any, reload: int
) -> None:
    model, clock = TenSecondsABatch(Settings()), Clock(monkeypatch)
    model.clock = clock
    trainer = Trainer(
        **quiet(tmp_path, max_epochs=4, num_sanity_val_steps=0, val_check_interval=interval),
        reload_dataloaders_every_n_epochs=reload,
        callbacks=EarlyStopping("loss", patience=9),
    )
    trainer.fit(model, SizedBatches(2), SizedBatches(1))

    events = [event for event in model.events if event[0] in "tV"]
    assert events == ["t0.0", "t0.1", "t1.0", "V", "t1.1", "t2.0", "t2.1", "V", "t3.0", "t3.1"]


# ---- the pieces
@pytest.mark.parametrize(
    ("interval", "num_batches", "every", "has_validation", "result"),
    [
        (None, 10, 1, True, 10),
        (1.0, 10, 1, True, 10),
        (1, 10, 1, True, 1),
        (3, 10, 1, True, 3),
        (0.3, 10, 1, True, 3),
        (0.01, 10, 1, True, 1),
        (11, 10, None, True, 11),
        (11, 10, 1, False, 11),
        (None, math.inf, 1, True, math.inf),
        (7, math.inf, 1, True, 7),
    ],
)
def test_the_interval_in_batches(
    interval: Any, num_batches: float, every: int | None, has_validation: bool, result: float
) -> None:
    assert validation_interval(interval, num_batches, every_n_epochs=every, has_validation=has_validation) == result


def test_an_interval_that_never_comes_is_refused() -> None:
    with pytest.raises(ValueError, match="val_check_interval=11"):
        validation_interval(11, 10, every_n_epochs=1, has_validation=True)
    with pytest.raises(MisconfigurationException, match=r"val_check_interval=0\.5"):
        validation_interval(0.5, math.inf, every_n_epochs=1, has_validation=True)


def test_a_plan_over_epochs_counts_all_batches() -> None:
    plan = ValidationPlan(7, every_n_epochs=None)

    assert [total for total in range(1, 30) if plan.due(0, total, is_last=False)] == [7, 14, 21, 28]
    assert all(plan.epoch_is_due(epoch) for epoch in range(4))


def test_a_plan_for_some_epochs_is_due_in_the_last_of_each_group() -> None:
    plan = ValidationPlan(5, every_n_epochs=3)

    assert [epoch for epoch in range(9) if plan.epoch_is_due(epoch)] == [2, 5, 8]
