"""Starts the workers and asks them in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.checkpoints import CHECKPOINT_CASES
from benchmarks.frameworks import IMPORTS
from benchmarks.imports import time_import
from benchmarks.ranks import RANK_CASES
from benchmarks.screen import Screens
from benchmarks.shape import SHAPES
from benchmarks.timing import Spread, summary

__all__ = ["IMPORT_ROWS", "chosen", "count", "default_workers", "describe", "time_cases", "time_imports"]

_ROOT = Path(__file__).parent.parent
_SCALES = {"step": ("us", 1e6), "batch": ("us", 1e6), "epoch": ("ms", 1e3), "fit": ("ms", 1e3)}
_SCALES["step with callbacks"] = _SCALES["step"]

# key and title of the rows about imports, as `IMPORTS` has the statements
IMPORT_ROWS = (("package", "import of the package"), ("names", "import of Trainer and LightningModule"))


class RemoteWorker:
    """A worker in a process of its own.

    Args:
        package: What it measures.
        python: Its interpreter.
        setup: Arguments of `Setup`.
    """

    def __init__(self, package: str, python: str, setup: dict[str, Any]) -> None:
        self.package = package
        self.python = python
        self._screens = Screens()
        answers, answers_end = os.pipe()
        ends = {"answers": answers_end, "pipe": self._screens.pipe, "terminal": self._screens.terminal}
        command = [python, "-m", "benchmarks.worker", package, "--setup", json.dumps(setup)]
        for name, end in ends.items():
            command += [f"--{name}", str(end)]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TERM": "xterm-256color"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=ends.values(), env=environment, text=True
        )
        os.close(answers_end)
        self._answers = os.fdopen(answers)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Have a request answered.

        Raises:
            RuntimeError: The worker has failed.
        """
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "The process has ended."}
        if "error" in answer:
            raise RuntimeError(f"The worker for {self.package!r} could not answer {request}:\n{answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()
        self._screens.close()


Workers = Sequence[RemoteWorker]


def describe(workers: Workers) -> dict[str, Any]:
    """Return versions and devices by package."""
    return {worker.package: worker.ask(do="describe") for worker in workers}


def time_cases(
    workers: Workers, cases: Sequence[Case], rounds: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure all cases, round after round.

    Args:
        workers: Asked in turn for each case.
        cases: What to measure.
        rounds: How often.
        tell: Is told how far it is.
    """
    seconds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for case in cases:
            tell(f"round {number + 1} of {rounds}: {case.title}")
            for worker in workers:
                answer = worker.ask(do="time", case=case.key, plain_first=number % 2 == 0)
                seconds.setdefault((case.key, worker.package), []).append(answer)
    return [
        {
            "key": case.key,
            "title": case.title,
            "unit": f"{_SCALES[case.unit][0]} per {case.unit}",
            "packages": {w.package: _summary(seconds[case.key, w.package], _SCALES[case.unit][1]) for w in workers},
        }
        for case in cases
    ]


def _summary(rounds: list[dict[str, float]], scale: float) -> dict[str, Any]:
    return summary((answer["plain"] * scale, answer["measured"] * scale) for answer in rounds)


def count(workers: Workers) -> list[dict[str, Any]]:
    """Count frames, calls and waits; rows that no worker can count are left out."""
    counts = {worker.package: worker.ask(do="count") for worker in workers}
    rows = []
    for shape in SHAPES:
        values = {package: found[shape.key] for package, found in counts.items()}
        if any(value is not None for value in values.values()):
            rows.append({"key": shape.key, "title": shape.title, "packages": values})
    return rows


def time_imports(workers: Workers, rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time the import statements of all packages in turn, in new processes."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        tell(f"imports, round {number + 1} of {rounds}")
        for index, (key, _) in enumerate(IMPORT_ROWS):
            for worker in workers:
                statement = IMPORTS[worker.package][index]
                found.setdefault((key, worker.package), []).append(time_import(worker.python, statement))
    return [
        {
            "key": key,
            "title": title,
            "packages": {
                worker.package: {
                    "torch_ms": asdict(Spread.of(times["torch"] * 1e3 for times in found[key, worker.package])),
                    "over_ms": asdict(Spread.of(times["package"] * 1e3 for times in found[key, worker.package])),
                    "modules": found[key, worker.package][0]["modules"],
                }
                for worker in workers
            },
        }
        for key, title in IMPORT_ROWS
    ]


def default_workers(setup: dict[str, Any], reference_python: str | None) -> list[RemoteWorker]:
    """Start a worker for this package, and one for the released `lightning` if an interpreter that has it is given."""
    workers = [RemoteWorker("fulmen", sys.executable, setup)]
    if reference_python:
        workers.append(RemoteWorker("lightning", reference_python, setup))
    return workers


def chosen(keys: str | None) -> tuple[list[Case], list[str], list[str]]:
    """Return the cases named, the keys of those on several ranks, and of those that save checkpoints; all by default.

    Raises:
        SystemExit: There is no such case.
    """
    known = [*(case.key for case in CASES), *RANK_CASES, *CHECKPOINT_CASES]
    wanted = set(known) if keys is None else set(keys.split(","))
    if unknown := wanted - set(known):
        raise SystemExit(f"There is no case {sorted(unknown)}. Choose from: {', '.join(known)}.")
    return (
        [case for case in CASES if case.key in wanted],
        [key for key in RANK_CASES if key in wanted],
        [key for key in CHECKPOINT_CASES if key in wanted],
    )
