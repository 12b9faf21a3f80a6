"""Marks in the profiles of XLA devices, which TensorBoard or `torch_xla.debug.profiler.trace` collect from a port."""

from __future__ import annotations

from typing import Any, ClassVar

from fulmen.profilers.profiler import Profiler
from fulmen.utilities.lazy import require

__all__ = ["XLAProfiler"]


class XLAProfiler(Profiler):
    """Mark steps and backward passes for XLA's own profiler, and open the port at which it can be asked.

    The profile is collected from outside while the run goes on, e.g. by the profile page of TensorBoard at
    `localhost:9012`; there is no report at the end.

    Args:
        port: Where XLA's profiler listens, from the first step on.

    Raises:
        ModuleNotFoundError: torch_xla is not installed.
        ValueError: The port is no number from 1 to 65535.

    Example::

        trainer = Trainer(accelerator="tpu", profiler=XLAProfiler(port=9001))
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"validation_step", "test_step", "predict_step"}
    RECORD_FUNCTIONS: ClassVar[set[str]] = {"training_step", "backward", "validation_step", "test_step", "predict_step"}

    def __init__(self, port: int = 9012) -> None:
        super().__init__()
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
            raise ValueError(f"`XLAProfiler(port={port!r})` is no port: a whole number from 1 to 65535.")
        self.port = port
        self._xla: Any = require("torch_xla.debug.profiler", extra="xla", for_="XLAProfiler")
        self._server: Any = None
        self._num_steps: dict[str, int] = {}
        self._open: dict[str, Any] = {}

    def start(self, action_name: str) -> None:
        """Begin a mark, if the action is a step or a backward pass.

        Args:
            action_name: Name of the action.
        """
        function = action_name.rpartition(".")[2]
        if function not in self.RECORD_FUNCTIONS or action_name in self._open:
            return
        if self._server is None:
            self._server = self._xla.start_server(self.port)
        if function in self.STEP_FUNCTIONS:
            step = self._num_steps.get(function, 0)
            self._num_steps[function] = step + 1
            mark = self._xla.StepTrace(function, step_num=step)
        else:
            mark = self._xla.Trace(action_name)
        mark.__enter__()
        self._open[action_name] = mark

    def stop(self, action_name: str) -> None:
        """End the mark.

        Args:
            action_name: Name it was started with; one that has no mark is passed over.
        """
        mark = self._open.pop(action_name, None)
        if mark is not None:
            mark.__exit__(None, None, None)

    def teardown(self, stage: str | None) -> None:
        """End the marks that an error has left open.

        Args:
            stage: As in `setup`.
        """
        while self._open:
            self._open.popitem()[1].__exit__(None, None, None)
