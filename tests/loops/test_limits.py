"""When training ends, for any mixture of bounds; `cadence_model` says what is right."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen import LightningModule, Trainer
from fulmen.loops.limits import Limits
from fulmen.loops.progress import FitProgress
from tests.loops.cadence_model import Recorder, Settings, SizedBatches, expected, observed
from tests.support import quiet

# nothing is written to the folder of the test, so all examples can share it
relaxed = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*so the minimum has no effect"),
    # torch, where the very first epoch is skipped whole: its scheduler steps, its optimizer has not
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

places = st.none() | st.tuples(st.integers(0, 2), st.integers(0, 4))


@relaxed
@given(
    num_batches=st.integers(1, 5),
    sized=st.booleans(),
    limit=st.sampled_from([1.0, 0, 1, 3, 9]),
    max_epochs=st.integers(0, 4),
    max_steps=st.integers(-1, 9),
    min_epochs=st.none() | st.integers(0, 4),
    min_steps=st.none() | st.integers(0, 9),
    accumulate=st.integers(1, 6),
    stop_at=places,
    skip_at=places,
)
def test_training_ends_where_the_bounds_say(tmp_path: Path, limit: Any, accumulate: int, **chosen: Any) -> None:
    case = Settings(limit_train_batches=limit, accumulate_grad_batches=accumulate, **chosen)

    assert observed(case, quiet(tmp_path)) == expected(case)


@relaxed
@given(num_batches=st.integers(4, 9), fraction=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75, 0.99, 1.0]))
def test_a_fraction_of_the_batches_is_rounded_down(tmp_path: Path, num_batches: int, fraction: float) -> None:
    case = Settings(num_batches=num_batches, limit_train_batches=fraction)

    assert observed(case, quiet(tmp_path)) == expected(case)


@pytest.mark.parametrize(
    ("arguments", "bound"),
    [
        ({"max_epochs": None, "max_steps": 3}, -1),
        ({"max_epochs": None, "max_time": "00:01:00:00"}, -1),
        ({"max_epochs": -1}, -1),
        ({"max_epochs": 2}, 2),
    ],
)
def test_the_bound_on_epochs_is_settled_before_the_setup_hooks(
    tmp_path: Path, arguments: dict[str, Any], bound: int
) -> None:
    seen: list[int | None] = []

    class Model(Recorder):
        def setup(self, stage: str) -> None:
            seen.append(self.trainer.max_epochs)

    trainer = Trainer(**quiet(tmp_path, **arguments))
    trainer.fit(Model(Settings(stop_at=(0, 1))), SizedBatches(4), SizedBatches(1))

    assert [*seen, trainer.max_epochs] == [bound, bound]
    assert trainer.global_step == 2


def test_without_any_bound_training_ends_after_a_thousand_epochs(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, max_epochs=None))
    assert trainer.fit_loop.max_epochs is None
    with pytest.warns(UserWarning, match="1000 epochs"):
        trainer.fit(Recorder(Settings(stop_at=(0, 0))), SizedBatches(2), SizedBatches(1))

    assert [trainer.max_epochs, trainer.global_step] == [1000, 1]


def test_a_stop_inside_an_accumulation_window_waits_for_its_end(tmp_path: Path) -> None:
    result = observed(Settings(num_batches=8, accumulate_grad_batches=4, stop_at=(0, 1)), quiet(tmp_path))

    assert result.events == ["t0.0", "t0.1", "t0.2", "t0.3", "o", "V", "E"]


def test_a_stop_asked_for_as_an_epoch_begins_trains_no_batch_of_it(tmp_path: Path) -> None:
    class Model(Recorder):
        def on_train_epoch_start(self) -> None:
            self.trainer.should_stop = self.current_epoch == 1

    model, trainer = Model(Settings(num_batches=2)), Trainer(**quiet(tmp_path, max_epochs=5))
    trainer.fit(model, SizedBatches(2), SizedBatches(1))

    assert (model.events[-2:], trainer.current_epoch, trainer.global_step) == (["E", "E"], 2, 2)


def test_no_training_batches_means_that_the_training_loader_is_not_asked_for(tmp_path: Path) -> None:
    class Model(Recorder):
        def train_dataloader(self) -> Any:
            raise AssertionError("asked for")

    trainer = Trainer(**quiet(tmp_path, limit_train_batches=0))
    trainer.fit(Model(Settings()), val_dataloaders=SizedBatches(1))

    assert (trainer.global_step, trainer.current_epoch) == (0, 0)


def test_the_reason_for_the_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    observed(Settings(max_steps=1), quiet(tmp_path))
    observed(Settings(max_epochs=1), quiet(tmp_path))
    observed(Settings(stop_at=(0, 0), max_epochs=2), quiet(tmp_path))

    stops = [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()]
    assert [text.split(": ", 1)[1] for text in stops] == [
        "`max_steps=1` reached.",
        "`max_epochs=1` reached.",
        "`trainer.should_stop` was set.",
    ]


def test_unmet_minima_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    observed(Settings(stop_at=(0, 0), min_epochs=2, max_epochs=3), quiet(tmp_path))

    assert sum("training goes on" in record.getMessage() for record in caplog.records) == 1


def test_limits_say_which_bound_is_reached() -> None:
    done = FitProgress()
    assert Limits(max_epochs=1, max_steps=2).reached(done) is None
    done.epochs.current.completed = 1
    assert Limits(max_epochs=1, max_steps=2).reached(done) == "`max_epochs=1` reached"
    done.optimizer_steps.total.completed = 2
    assert Limits(max_epochs=1, max_steps=2).reached(done) == "`max_steps=2` reached"
    assert Limits(endless=True).reached(done) is None


def test_fit_clears_the_request_to_stop_of_an_earlier_fit(tmp_path: Path) -> None:
    model: LightningModule = Recorder(Settings(stop_at=(0, 0)))
    trainer = Trainer(**quiet(tmp_path, max_epochs=2))
    trainer.fit(model, SizedBatches(2), SizedBatches(1))
    trainer.fit(model, SizedBatches(2), SizedBatches(1))

    assert (trainer.current_epoch, trainer.global_step) == (2, 3)


def test_a_fit_that_is_over_before_it_begins_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Settings(max_epochs=0)
    with caplog.at_level(logging.INFO, logger="fulmen"):
        observed(case, quiet(tmp_path))

    assert caplog.text.count("`Trainer.fit` stopped: `max_epochs=0` reached.") == 1
