"""Which functions each action spent its time in, by Python's own profiler."""

from __future__ import annotations

import cProfile
import io
import os
import pstats

from fulmen.profilers.profiler import Profiler
from fulmen.utilities.options import check_number

__all__ = ["AdvancedProfiler"]


class AdvancedProfiler(Profiler):
    """Report the functions called in each action, with counts and times. Slows Python code down severalfold.

    Python runs one profiler at a time, so an inner action interrupts the recording of those around it and its functions
    are added to theirs afterwards. Only for a function that is itself interrupted, the cumulative time leaves out what
    runs after the interruption.

    Args:
        dirpath: Folder of the report; default the log folder of the run.
        filename: Name of the report's file, without extension; `None` prints the report to the log.
        line_count_restriction: How much of each table is shown: a number of lines, or a fraction of them.
        dump_stats: Also write `<stage>-<filename>-<action>.prof` for each action, to be opened by `pstats` or viewers.

    Example::

        trainer = Trainer(profiler=AdvancedProfiler(filename="functions", line_count_restriction=30))
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        why = "a number of lines (an int), or a fraction of them (a float)."
        check_number("AdvancedProfiler", "line_count_restriction", line_count_restriction, why, above=0)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self._active: list[str] = []
        self._recording: cProfile.Profile | None = None
        self._recordings: dict[frozenset[str], cProfile.Profile] = {}  # by the set of actions that were active

    @property
    def profiled_actions(self) -> dict[str, pstats.Stats]:
        """Action to the statistics of what ran in it, in the order of first starts."""
        self._switch_off()
        actions = dict.fromkeys(name for names in self._recordings for name in sorted(names))
        stats = {
            action: pstats.Stats(*(one for names, one in self._recordings.items() if action in names))
            for action in actions
        }
        self._switch_on()
        return stats

    def start(self, action_name: str) -> None:
        """Begin to record an action.

        Args:
            action_name: Name of the action.

        Raises:
            ValueError: It runs already.
        """
        if action_name in self._active:
            raise ValueError(
                f"The action {action_name!r} has already started. Stop it first, or give the inner action another name."
            )
        self._switch_off()
        self._active.append(action_name)
        self._switch_on()

    def stop(self, action_name: str) -> None:
        """End the recording of an action.

        Args:
            action_name: Name it was started with.

        Raises:
            ValueError: It does not run.
        """
        if action_name not in self._active:
            raise ValueError(
                f"The action {action_name!r} cannot be stopped because it was never started."
                f" Call `start({action_name!r})` first, or use `with profiler.profile({action_name!r})`."
            )
        self._switch_off()
        self._active.remove(action_name)
        self._switch_on()

    def summary(self) -> str:
        """Return one table for each action, sorted by cumulative time; write the `.prof` files if asked for."""
        sections = [self._title()]
        for action_name, stats in self.profiled_actions.items():
            if self.dump_stats:
                stats.dump_stats(os.path.join(self._folder(), self._file_name(action_name, ".prof")))
            text = io.StringIO()
            stats.stream = text  # type: ignore[attr-defined]  # pstats offers it only at construction, from one profile
            stats.strip_dirs().sort_stats("cumulative").print_stats(self.line_count_restriction)
            sections.append(f"Profile stats for: {action_name}\n{text.getvalue().strip()}\n")
        return "\n".join(sections)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a run, and forget the one before.

        Args:
            stage: What runs.
            local_rank: Put into file names; `None` when there is only one process.
            log_dir: Folder of the report if no `dirpath` was given.
        """
        super().setup(stage, local_rank, log_dir)
        self._recordings.clear()

    def teardown(self, stage: str | None) -> None:
        """Stop recording; the report stays until the next `setup`.

        Args:
            stage: As in `setup`.
        """
        self._switch_off()
        self._active.clear()

    def _switch_off(self) -> None:
        if self._recording is not None:
            self._recording.disable()
            self._recording = None

    def _switch_on(self) -> None:
        if self._active:
            self._recording = self._recordings.setdefault(frozenset(self._active), cProfile.Profile())
            self._recording.enable()
