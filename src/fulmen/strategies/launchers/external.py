"""Processes that exist already."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fulmen.strategies.fault_report import as_exception, mark_launched
from fulmen.strategies.launchers.launcher import PARENT_VARIABLE, Carrier, Launcher, watch_parent
from fulmen.utilities.parent_death import die_with_parent

__all__ = ["ExternalLauncher"]


class ExternalLauncher(Launcher):
    """For processes that torchrun, srun, mpirun or a person started: it only runs the function.

    It is also the launcher of the processes that `SubprocessScriptLauncher` started; they end with the one that did.

    Args:
        strategy: The strategy of this process.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy)
        _obey_parent()

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook; no, a session there is one process."""
        return False

    def launch(  # noqa: D102 - as in the base class
        self, function: Callable[..., Any], *args: Any, carrier: Carrier | None = None, **kwargs: Any
    ) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            culprit = self.explain(error)
            if culprit is not None:
                raise as_exception(culprit) from None
            raise


def _obey_parent() -> None:
    """In a process that `SubprocessScriptLauncher` started: end with it."""
    text = os.environ.get(PARENT_VARIABLE, "")
    if not text:
        return
    del os.environ[PARENT_VARIABLE]  # not for the processes that this one starts
    parent, rank = (int(part) for part in text.split(":"))
    if os.getppid() == parent:
        mark_launched(parent)
        watch_parent(parent, rank)
        die_with_parent(None)  # the thread does it from now on, and says why
    elif not _is_alive(parent):
        raise SystemExit(1)  # it was killed before this script came here


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
