"""Runs the function in one process for each TPU core."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fulmen.strategies.launchers.launcher import Carrier
from fulmen.strategies.launchers.multiprocessing import MultiProcessingLauncher, do_task
from fulmen.utilities.lazy import require

__all__ = ["XLALauncher"]


class XLALauncher(MultiProcessingLauncher):
    """Lets `torch_xla` start the processes.

    Args:
        strategy: The strategy.
        start_method: "fork" (the default of `torch_xla`) or "spawn".

    Raises:
        ModuleNotFoundError: `torch_xla` is not installed.
    """

    def __init__(self, strategy: Any, start_method: Literal["fork", "spawn"] = "fork") -> None:
        require("torch_xla", extra="xla", for_="XLALauncher")
        super().__init__(strategy, start_method)

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook; yes."""
        return True

    def launch(  # noqa: D102 - as in the base class
        self, function: Callable[..., Any], *args: Any, carrier: Carrier | None = None, **kwargs: Any
    ) -> Any:
        if self.strategy.num_processes > 1:
            return super().launch(function, *args, carrier=carrier, **kwargs)
        self.strategy.set_local_rank(0)  # `torch_xla` starts no process for one device
        return function(*args, **kwargs)

    def _run_workers(self, folder: Path, inherited: Any) -> None:
        spawn = require("torch_xla.distributed.xla_multiprocessing", extra="xla", for_="XLALauncher").spawn
        try:
            # it takes one process or as many as there are devices, and for that it wants to hear `None`
            spawn(_work, args=(str(folder), inherited), nprocs=None, start_method=self.start_method)
        except Exception:
            self._raise_failure(folder, [])  # what a worker left in writing says more
            raise
        self._raise_failure(folder, [])


def _work(local_rank: int, folder: str, inherited: Any) -> None:
    """Be one rank, in a process that `torch_xla` ends."""
    code = do_task(local_rank, folder, inherited)
    if code:
        os._exit(code)
