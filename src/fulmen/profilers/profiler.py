"""What every profiler offers: time named actions, then report.

profiler.setup(stage, log_dir=...)        before the run
  profiler.connect(module, num_steps=...)   once it is known what runs
    with profiler.profile("name"): ...        or start / stop, around each action
profiler.describe()                       the report: a file, or the log
profiler.teardown(stage)                  in any case, also after an error; before or after `describe`
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum

from torch import nn

from fulmen.utilities.files import get_filesystem, is_local, local_path
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = ["Profiler"]

_NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|\s]+')
_LONGEST_NAME = 180  # of the part made from an action; file systems allow 255 in all


class Profiler(ABC):
    """Base of all profilers. A new one must say what happens when an action starts and stops.

    Args:
        dirpath: Folder of the report; default the log folder of the run.
        filename: Name of the report's file, without extension; the stage is put in front. `None` prints the report to
            the log instead.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        for name, value in (("dirpath", dirpath), ("filename", filename)):
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise TypeError(
                    f"`{type(self).__name__}({name}={value!r})` must be a text: the report is written there. Leave it"
                    f" out for {'the log folder' if name == 'dirpath' else 'the log'}."
                )
        self.dirpath = dirpath
        self.filename = filename
        self._stage: str | None = None
        self._local_rank: int | None = None
        self._written: set[str] = set()

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Begin to record an action.

        Args:
            action_name: Name of the action.
        """

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """End the recording of an action.

        Args:
            action_name: Name it was started with.
        """

    @contextmanager
    def profile(self, action_name: str) -> Generator[str, None, None]:
        """Record what runs inside the `with` block, also if it raises.

        Args:
            action_name: Name of the action.

        Yields:
            The name.

        Example::

            with profiler.profile("load data"):
                load()
        """
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def summary(self) -> str:
        """Return the report; empty if there is none."""
        return ""

    def describe(self) -> None:
        """Write the report to `<dirpath>/<stage>-<filename>[-<rank>].txt`, or to the log if there is no `filename`.

        The first report replaces a file of that name, further ones of the same profiler are appended.
        """
        report = self.summary()
        if not report:
            return
        if self.filename is None:
            rank_zero_info(report)
            return
        path = os.path.join(self._folder(), self._file_name(extension=".txt"))
        mode = "a" if path in self._written else "w"
        self._written.add(path)
        if is_local(path):
            with open(path, mode, encoding="utf-8") as file:
                file.write(report)
        else:
            with get_filesystem(path).open(path, mode, encoding="utf-8") as file:
                file.write(report)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Prepare for a run.

        Args:
            stage: What runs, e.g. `"fit"`; it is named in the report.
            local_rank: Put into file names; `None` when there is only one process.
            log_dir: Folder of the report if no `dirpath` was given.
        """
        self._stage = stage.value if isinstance(stage, Enum) else stage
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir

    def connect(self, module: nn.Module, *, num_steps: float) -> None:  # noqa: B027 - optional to override
        """Learn what is about to run, before its first batch; does nothing unless a profiler overrides it.

        Args:
            module: The model.
            num_steps: How many batches will run in all; infinite if unknown.
        """

    def teardown(self, stage: str | None) -> None:  # noqa: B027 - optional to override
        """End the run; does nothing unless a profiler overrides it, and leaves the report for `describe`.

        Args:
            stage: As in `setup`.
        """

    @property
    def local_rank(self) -> int:
        """Rank given at set-up; 0 before."""
        return self._local_rank or 0

    def _folder(self) -> str:
        """The folder of the report, made if absent; the working directory if nobody gave one."""
        folder = os.fspath(self.dirpath or os.curdir)
        if is_local(folder):
            folder = local_path(folder)
            os.makedirs(folder, exist_ok=True)
        else:
            get_filesystem(folder).makedirs(folder, exist_ok=True)
        return folder

    def _file_name(self, action_name: str | None = None, extension: str = "") -> str:
        """`<stage>-<filename>-<action>-<rank>`, with the parts that there are."""
        parts = [self._stage, self.filename]
        if action_name is not None:
            parts.append(_NOT_IN_FILE_NAMES.sub("_", action_name)[-_LONGEST_NAME:])
        if self._local_rank is not None:
            parts.append(str(self._local_rank))
        return "-".join(part for part in parts if part) + extension

    def _title(self) -> str:
        stage = f"{self._stage.upper()} " if self._stage else ""
        return f"{stage}Profiler Report\n"
