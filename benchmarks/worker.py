"""One process that measures one package; it is told what to do by lines of JSON, and answers with such lines."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import shape
from benchmarks.cases import CASES
from benchmarks.frameworks import Framework, load
from benchmarks.screen import output_to
from benchmarks.timing import Setup

__all__ = ["Worker"]

_CASES = {case.key: case for case in CASES}


class Worker:
    """Measures one package in this process.

    Args:
        framework: The package.
        setup: Sizes and device.
        screens: File descriptors by the names that cases use.
    """

    def __init__(self, framework: Framework, setup: Setup, screens: Mapping[str, int]) -> None:
        self._framework = framework
        self._setup = setup
        self._screens = screens

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        if request["do"] == "describe":
            return self._describe()
        if request["do"] == "count":
            with output_to(self._screens["pipe"]):
                small = Setup(self._setup.device, steps=min(100, self._setup.steps), warmup=shape.WARMUP)
                return dict(shape.measure(small, self._framework))
        return self._time(request["case"], plain_first=request["plain_first"])

    def _time(self, key: str, *, plain_first: bool) -> dict[str, Any]:
        """Measure a case and its plain loop, right after one another."""
        case = _CASES[key]
        seconds: dict[str, Any] = {}
        for which in ("plain", "measured") if plain_first else ("measured", "plain"):
            gc.collect()
            gc.freeze()  # what is alive now is no work for the collector while measuring
            with output_to(self._screens[case.screen]):
                if which == "measured":
                    seconds[which] = case.measured(self._setup, self._framework)
                elif case.unit == "step with callbacks":  # over a Trainer without them
                    seconds[which] = case.plain(self._setup, self._framework)
                else:
                    seconds[which] = case.plain(self._setup)
        return seconds

    def _describe(self) -> dict[str, Any]:
        device = torch.cuda.get_device_name() if self._setup.device == "cuda" else platform.machine()
        return {
            "package": self._framework.name,
            "version": self._framework.version,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": f"{self._setup.device} ({device})",
        }


def main() -> None:
    """Answer requests from stdin until it ends."""
    parser = argparse.ArgumentParser(description="Measure one package; started by `python -m benchmarks`.")
    parser.add_argument("package")
    parser.add_argument("--setup", required=True, help="sizes, as JSON")
    parser.add_argument("--answers", type=int, required=True, help="file descriptor to answer to")
    parser.add_argument("--pipe", type=int, required=True, help="file descriptor of a pipe")
    parser.add_argument("--terminal", type=int, required=True, help="file descriptor of a terminal")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as where stdout is a terminal
    nowhere = os.open(os.devnull, os.O_WRONLY)
    screens = {"nowhere": nowhere, "pipe": arguments.pipe, "terminal": arguments.terminal}
    worker = Worker(load(arguments.package), Setup(**json.loads(arguments.setup)), screens)
    with open(arguments.answers, "w") as answers, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line in sys.stdin:
            try:
                answer = worker.answer(json.loads(line))
            except Exception:
                answer = {"error": traceback.format_exc()}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        os.chdir(os.path.sep)  # so that the folder can be removed


if __name__ == "__main__":
    main()
