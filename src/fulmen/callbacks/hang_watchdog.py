"""HangWatchdog: says what each rank does when a run stands still, and ends it if wanted."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from fulmen.core.callback import Callback
from fulmen.core.whereabouts import whereabouts
from fulmen.strategies.fault_doctor import HangDoctor
from fulmen.utilities.duration import parse_duration
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["HangWatchdog", "WatchedLoop"]

_ACTIONS = ("report", "abort")


class HangWatchdog(Callback):
    """Say what each rank does when a run stands still for too long, and name the ranks that differ from the others.

    A thread compares the counters of the loops now and then; the loops do nothing for it. A run makes progress when a
    batch, a step, an epoch, a hook or a stage begins or ends. Choose a limit above whatever may take long: saving a
    checkpoint, a slow batch, a validation hook. With several processes every rank needs the callback; they talk through
    the store of the process group, never in collectives, so it does not matter which of them hangs. A rank whose native
    code holds the interpreter lock can't answer: it is reported so, and prints its own stack.

    Args:
        timeout: How long the run may stand still: seconds, "DD:HH:MM:SS", a timedelta, or its keyword arguments as a
            dict.
        action: "report" prints, again after twice that time and so on, and lets the run wait; "abort" prints and ends
            the processes of all ranks at once with exit code 1, without any clean-up.
        first_step_timeout: The limit until the first batch of a run is done, for compilation and filling caches;
            by default `timeout`. A shorter time than `timeout` has no effect.
        all_threads: Print the stacks of all threads of each rank as well.

    Raises:
        MisconfigurationException: A time can't be understood or is not above zero.
        ValueError: The action is unknown.

    Example::

        Trainer(callbacks=HangWatchdog(timeout="00:00:10:00", action="abort"), strategy="ddp", devices=8)

        with HangWatchdog(timeout=600).watch() as loop:  # without a Trainer, e.g. with Fabric, on every rank
            for batch_idx, batch in enumerate(loader):
                loop.progress(batch_idx=batch_idx)
                train(batch)
    """

    def __init__(
        self,
        timeout: float | str | timedelta | dict[str, int],
        action: Literal["report", "abort"] = "report",
        *,
        first_step_timeout: float | str | timedelta | dict[str, int] | None = None,
        all_threads: bool = False,
    ) -> None:
        if action not in _ACTIONS:
            raise ValueError(
                f"`HangWatchdog(action={action!r})` is not known: it is open what to do about a run that stands still."
                " Choose 'report' to only print what each rank does, or 'abort' to end all ranks as well."
            )
        self._timeout_s = _seconds(timeout, "timeout")
        self._first_s = self._timeout_s
        if first_step_timeout is not None:
            self._first_s = _seconds(first_step_timeout, "first_step_timeout")
        self._action = action
        self._all_threads = all_threads
        self._doctor: HangDoctor | None = None

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        self._stop()
        begin = whereabouts(trainer).num_done

        def read() -> tuple[Hashable, str]:
            place = whereabouts(trainer)
            return place, str(place)

        self._doctor = self._started(read, is_under_way=lambda: whereabouts(trainer).num_done != begin)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the watch."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the watch: what follows is clean-up."""
        self._stop()

    # ---- without a Trainer
    @contextmanager
    def watch(self) -> Iterator[WatchedLoop]:
        """Watch a loop of one's own, in the thread that calls this; with several ranks, on every one of them.

        Returns:
            A context manager; its value has a method `progress`, to be called once per step.
        """
        loop = WatchedLoop()
        doctor = self._started(loop.read, is_under_way=lambda: loop.num_steps > 1)
        try:
            yield loop
        finally:
            doctor.stop()

    def _started(self, read: Any, *, is_under_way: Any) -> HangDoctor:
        doctor = HangDoctor(
            read,
            limit_s=self._timeout_s,
            first_limit_s=self._first_s,
            is_under_way=is_under_way,
            action=self._action,
            all_threads=self._all_threads,
        )
        doctor.start()
        return doctor

    def _stop(self) -> None:
        doctor, self._doctor = self._doctor, None
        if doctor is not None:
            doctor.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_doctor": None}  # a thread stays in its process


class WatchedLoop:
    """A loop of one's own that says when it makes progress; made by `HangWatchdog.watch`.

    Attributes:
        num_steps: How often `progress` was called.
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self._epoch: int | None = None
        self._batch_idx: int | None = None

    def progress(self, *, epoch: int | None = None, batch_idx: int | None = None) -> None:
        """Say that the loop goes on; costs nothing but this call.

        Args:
            epoch: Number of the epoch, for the report.
            batch_idx: Index of the batch that begins, for the report.
        """
        self.num_steps += 1
        self._epoch, self._batch_idx = epoch, batch_idx

    def read(self) -> tuple[Hashable, str]:
        """Return what grows with progress, and where the loop is, in words."""
        known = {"epoch": self._epoch, "batch": self._batch_idx, "step": self.num_steps}
        return self.num_steps, ", ".join(f"{name} {number}" for name, number in known.items() if number is not None)


def _seconds(value: Any, name: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    seconds = float(value) if is_number else parse_duration(value, setting=f"HangWatchdog({name}=...)").total_seconds()
    if not 0 < seconds < float("inf"):
        raise MisconfigurationException(
            f"`HangWatchdog({name}={value!r})` is no time to wait: after it the run counts as hanging, so it has to be"
            " above zero and finite. Pass seconds, 'DD:HH:MM:SS' or a `datetime.timedelta`: more than the slowest step."
        )
    return seconds
