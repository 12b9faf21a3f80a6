"""One schedule for several kinds of step, each of which goes through it at its own pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch.profiler import ProfilerAction

__all__ = ["ScheduleWrapper", "kind_of"]

_WHOLE_BATCH = "run_training_batch"  # a training step's recording begins with the whole batch


class ScheduleWrapper:
    """A schedule for `torch.profiler.profile` that counts training, validation, test and predict steps apart.

    Args:
        schedule: From the number of a step to what to do in it.

    Example::

        schedule = ScheduleWrapper(torch.profiler.schedule(wait=1, warmup=1, active=3))
        schedule.setup("training_step")
        with torch.profiler.profile(schedule=schedule) as profiler:
            for batch in batches:
                training_step(batch)
                schedule.pre_step("training_step")
                profiler.step()
    """

    def __init__(self, schedule: Callable[[int], ProfilerAction]) -> None:
        self._schedule = schedule
        self._kind: str | None = None
        self._done: Counter[str] = Counter()
        self._finished: set[str] = set()

    def reset(self) -> None:
        """Begin all kinds of step anew."""
        self._kind = None
        self._done.clear()
        self._finished.clear()

    def setup(self, start_action_name: str) -> None:
        """Go on with a kind of step where it stood.

        Args:
            start_action_name: Name of its action; what follows the last dot counts.
        """
        self._kind = kind_of(start_action_name)

    def pre_step(self, current_action: str) -> None:
        """Count a step, just before the profiler asks for the next one.

        Args:
            current_action: Name of its action.
        """
        self._kind = kind_of(current_action)
        self._done[self._kind] += 1

    def __call__(self, num_step: int) -> ProfilerAction:
        """Return what to do in the next step of this kind.

        Args:
            num_step: The profiler's own count, which a change of kind restarts; not used.
        """
        action = self._schedule(self.num_step)
        if action == ProfilerAction.RECORD_AND_SAVE and self._kind is not None:
            self._finished.add(self._kind)
        return action

    @property
    def num_step(self) -> int:
        """How many steps of the present kind are done."""
        return 0 if self._kind is None else self._done[self._kind]

    @property
    def num_steps(self) -> dict[str, int]:
        """How many steps are done, by kind."""
        return dict(self._done)

    @property
    def has_finished(self) -> bool:
        """Whether the present kind of step came to the end of a recording."""
        return self._kind in self._finished

    @property
    def is_training(self) -> bool:
        """Whether training steps are counted now."""
        return self._kind == "training_step"

    @property
    def is_validating(self) -> bool:
        """Whether validation steps are counted now."""
        return self._kind == "validation_step"

    @property
    def is_testing(self) -> bool:
        """Whether test steps are counted now."""
        return self._kind == "test_step"

    @property
    def is_predicting(self) -> bool:
        """Whether predict steps are counted now."""
        return self._kind == "predict_step"


def kind_of(action_name: str) -> str:
    """Return the kind of step that an action is, e.g. "training_step" for "[Strategy]MyStrategy.training_step".

    Args:
        action_name: Name of any action; one that is no step gives what follows its last dot.
    """
    function = action_name.rpartition(".")[2]
    return "training_step" if function == _WHOLE_BATCH else function
