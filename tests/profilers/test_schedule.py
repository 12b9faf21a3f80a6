from __future__ import annotations

from torch.profiler import ProfilerAction, schedule

from fulmen.profilers.schedule import ScheduleWrapper

TRAIN, VAL = "[Strategy]SingleDeviceStrategy.training_step", "[Strategy]SingleDeviceStrategy.validation_step"
NONE, WARMUP, RECORD, SAVE = (
    ProfilerAction.NONE,
    ProfilerAction.WARMUP,
    ProfilerAction.RECORD,
    ProfilerAction.RECORD_AND_SAVE,
)


def steps(wrapper: ScheduleWrapper, action: str, number: int) -> list[ProfilerAction]:
    actions = []
    for step in range(number):
        actions.append(wrapper(step))
        wrapper.pre_step(action)
    return actions


def test_each_kind_of_step_has_its_own_count():
    wrapper = ScheduleWrapper(schedule(wait=1, warmup=1, active=2, repeat=1))

    wrapper.setup(TRAIN)
    first = steps(wrapper, TRAIN, 2)
    wrapper.setup(VAL)
    validation = steps(wrapper, VAL, 1)
    wrapper.setup(TRAIN)
    rest = steps(wrapper, TRAIN, 3)

    assert (first, validation, rest) == ([NONE, WARMUP], [NONE], [RECORD, SAVE, NONE])
    assert wrapper.num_steps == {"training_step": 5, "validation_step": 1}
    assert wrapper.num_step == 5


def test_finished_means_that_a_recording_came_to_its_end():
    wrapper = ScheduleWrapper(schedule(wait=0, warmup=1, active=1))
    wrapper.setup(TRAIN)
    steps(wrapper, TRAIN, 2)
    finished_in_training = wrapper.has_finished
    wrapper.setup(VAL)

    assert (finished_in_training, wrapper.has_finished) == (True, False)
    assert (wrapper.is_training, wrapper.is_validating, wrapper.is_testing, wrapper.is_predicting) == (
        False,
        True,
        False,
        False,
    )


def test_reset_begins_anew():
    wrapper = ScheduleWrapper(schedule(wait=1, warmup=1, active=1))
    wrapper.setup("run_training_batch")
    steps(wrapper, TRAIN, 3)
    wrapper.reset()

    assert (wrapper.num_step, wrapper.has_finished, wrapper.is_training) == (0, False, False)
    assert wrapper(7) == NONE
