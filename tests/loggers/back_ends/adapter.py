"""What the contract suite asks of a tracker: how to make its logger, and how to read back what really was recorded.

One file per tracker beside this one, named like it, with a class derived from `BackEnd` and called `BackEndOfLogger`.
`tests/loggers/test_contract.py` finds it there and runs all its tests with it.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import tests.loggers.back_ends as package
from fulmen.loggers import Logger
from fulmen.utilities.lazy import is_installed

__all__ = ["KINDS", "BackEnd", "Kind", "all_back_ends"]

Kind = Literal["image", "figure", "text", "table", "histogram", "audio", "video", "artifact"]
KINDS: tuple[Kind, ...] = ("image", "figure", "text", "table", "histogram", "audio", "video", "artifact")


class BackEnd(ABC):
    """One tracker in the contract suite. A new instance is made for each test.

    Values are read from the tracker itself: from its offline files by its own package, or from a server on loopback.

    Args:
        folder: An empty folder for everything the tracker writes. The test runs with it as the working directory.
        monkeypatch: For environment variables and the tracker's settings; undone after the test.
    """

    # ---- what the tracker is
    package: ClassVar[str | None]  # module that must be installed; None for loggers of fulmen alone
    extra: ClassVar[str | None]  # the extra of fulmen that the error message names if it is not
    # ---- what it can
    media: ClassVar[frozenset[Kind]] = frozenset()  # the others must raise `NotImplementedError`
    keeps_media_steps: ClassVar[bool] = True  # whether `media` below gives the step of each
    takes_rows_back: ClassVar[bool] = False  # `resume_at` removes rows that were logged after the checkpoint
    continues_runs: ClassVar[bool] = True  # whether `again` is possible
    keeps_checkpoints: ClassVar[bool] = False  # `log_model=...`
    knows_failure: ClassVar[bool] = False  # `finalize("failed")` is told to the tracker
    keeps_booleans: ClassVar[bool] = True  # hyperparameters that are True read back as such, not as 1 or as text
    few: ClassVar[bool] = False  # only the tests of values, media, checkpoints and the Trainer run, as each takes long
    slow: ClassVar[bool] = False  # takes more than about a second per test: marks all of its tests `slow`

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch

    # ---- loggers
    @abstractmethod
    def make(self, **arguments: Any) -> Logger:
        """Return a logger of a new run. It must not have started the run: nothing is written before the first use.

        Args:
            arguments: Of the constructor: `prefix`, `log_model` where the tracker has them.
        """

    def again(self, logger: Logger) -> Logger:
        """Return a logger that goes on with the run of another, which was closed, as a program does that resumes.

        Args:
            logger: The first one.
        """
        raise NotImplementedError

    def close(self, logger: Logger) -> None:
        """Have everything written, so that it can be read, and end the run; `finalize` may have been called before.

        Args:
            logger: The logger.
        """
        logger.finalize("success")

    def tear_down(self) -> None:  # noqa: B027 - optional to override
        """End what else was started; called after each test, also a failed one."""

    # ---- reading back, after `close`
    @abstractmethod
    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        """Return each metric's points as (step, value), in order; without those of the tracker's own."""

    @abstractmethod
    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        """Return hyperparameters as one flat dict, nested ones as `"outer/inner"`; values may be text."""

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        """Return what was logged under a key, as (step, content), in order; several images of one call are several.

        Content: image, figure: (width, height); text: the text; table: (columns, rows), cells as text or as they were;
        histogram: number of values counted (`None` if it is not to be had); audio, video: number of bytes, or what
        else shows that it is there (not `None`); artifact: the bytes of the file.

        Args:
            logger: The logger.
            kind: What was logged.
            key: Under which name.
        """
        raise NotImplementedError

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        """Return the names of the checkpoint files that were uploaded, with their aliases or tags (empty if none)."""
        raise NotImplementedError

    def status(self, logger: Logger) -> str:
        """Return how the tracker says that the run ended: `"success"` or `"failed"`."""
        raise NotImplementedError


def all_back_ends() -> list[Any]:
    """Return one pytest parameter per file in this folder, skipped with the reason where the package is absent."""
    parameters = []
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == "adapter":
            continue
        back_end = importlib.import_module(f"{package.__name__}.{module.name}").BackEndOfLogger
        marks = [pytest.mark.slow] if back_end.slow else []
        if back_end.package is not None and not is_installed(back_end.package):
            marks.append(pytest.mark.skip(reason=f"the package {back_end.package!r} is not installed"))
        parameters.append(pytest.param(back_end, id=module.name, marks=marks))
    return parameters
