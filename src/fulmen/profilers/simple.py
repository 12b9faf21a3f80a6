"""How long each action took, by the clock."""

from __future__ import annotations

import os
import time
from collections import defaultdict

from fulmen.profilers.profiler import Profiler

__all__ = ["SimpleProfiler"]


class SimpleProfiler(Profiler):
    """Report the duration of each action: mean, and with `extended` also number of calls, total and share.

    Actions that run inside others count in both, so shares can add up to more than 100 %. Work on a GPU is counted
    where the program waits for it, not where it is asked for.

    Args:
        dirpath: Folder of the report; default the log folder of the run.
        filename: Name of the report's file, without extension; `None` prints the report to the log.
        extended: Add the columns for number of calls and share of the time since the first set-up.

    Example::

        trainer = Trainer(profiler=SimpleProfiler(filename="times"))
    """

    def __init__(
        self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None, extended: bool = True
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}
        self.recorded_durations: defaultdict[str, list[float]] = defaultdict(list)
        self.start_time = time.monotonic()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a run; the first one starts the clock that shares are taken of.

        Args:
            stage: What runs.
            local_rank: Put into the file's name; `None` when there is only one process.
            log_dir: Folder of the report if no `dirpath` was given.
        """
        super().setup(stage, local_rank, log_dir)
        if not self.current_actions and not self.recorded_durations:
            self.start_time = time.monotonic()

    def start(self, action_name: str) -> None:
        """Begin to time an action.

        Args:
            action_name: Name of the action.

        Raises:
            ValueError: It runs already.
        """
        if action_name in self.current_actions:
            raise ValueError(
                f"The action {action_name!r} has already started, and one name has one clock."
                " Stop it first, or give the inner action another name."
            )
        self.current_actions[action_name] = time.monotonic()

    def stop(self, action_name: str) -> None:
        """Add the time since `start` to the action's durations.

        Args:
            action_name: Name it was started with.

        Raises:
            ValueError: It does not run.
        """
        end_s = time.monotonic()
        start_s = self.current_actions.pop(action_name, None)
        if start_s is None:
            raise ValueError(
                f"The action {action_name!r} cannot be stopped because it was never started."
                f" Call `start({action_name!r})` first, or use `with profiler.profile({action_name!r})`."
            )
        self.recorded_durations[action_name].append(end_s - start_s)

    def summary(self) -> str:
        """Return the table of all actions, the longest in total first."""
        total_s = max(time.monotonic() - self.start_time, 1e-9)
        rows = [
            (name, len(durations), sum(durations)) for name, durations in self.recorded_durations.items() if durations
        ]
        rows.sort(key=lambda row: row[2], reverse=True)
        if self.extended:
            calls = sum(row[1] for row in rows)
            header = ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
            table = [["Total", "-", str(calls), f"{total_s:.5g}", "100 %"]]
            table += [
                [name, f"{time_s / count:.5g}", str(count), f"{time_s:.5g}", f"{100 * time_s / total_s:.5g}"]
                for name, count, time_s in rows
            ]
        else:
            header = ["Action", "Mean duration (s)", "Total time (s)"]
            table = [[name, f"{time_s / count:.5g}", f"{time_s:.5g}"] for name, count, time_s in rows]
        return f"{self._title()}\n{_ruled(header, table)}\n"


def _ruled(header: list[str], table: list[list[str]]) -> str:
    """Rows as lines of aligned columns between rules."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *table]
    ]
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
