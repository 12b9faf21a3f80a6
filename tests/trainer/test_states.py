from __future__ import annotations

import pytest

import fulmen.core.states
from fulmen.trainer import states
from fulmen.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus


@pytest.mark.parametrize("name", states.__all__)
def test_callbacks_and_programs_see_the_same_states(name: str) -> None:
    assert getattr(states, name) is getattr(fulmen.core.states, name)


def test_a_state_begins_with_nothing_running() -> None:
    state = TrainerState()

    assert (state.status, state.fn, state.stage) == (TrainerStatus.INITIALIZING, None, None)
    assert not state.stopped
    assert not state.finished


@pytest.mark.parametrize(
    ("status", "stopped", "finished"),
    [
        (TrainerStatus.RUNNING, False, False),
        (TrainerStatus.INTERRUPTED, True, False),
        (TrainerStatus.FINISHED, True, True),
    ],
)
def test_a_run_that_ended_is_stopped(status: TrainerStatus, stopped: bool, finished: bool) -> None:
    state = TrainerState(status)

    assert (state.stopped, state.finished) == (stopped, finished)


def test_states_equal_their_text() -> None:
    assert TrainerFn.FITTING == "fit"
    assert RunningStage.SANITY_CHECKING == "sanity_check"
    assert {stage.value: stage.evaluating for stage in RunningStage} == {
        "train": False,
        "sanity_check": True,
        "validate": True,
        "test": True,
        "predict": False,
    }
    assert [stage.dataloader_prefix for stage in RunningStage] == ["train", "val", "val", "test", "predict"]
