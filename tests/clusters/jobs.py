"""Jobs of a real Slurm: submit, watch, signal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TRAIN", "Job", "is_slurm_up", "submit", "wait_until"]

TRAIN = f"{sys.executable} {Path(__file__).with_name('train.py')}"
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


def is_slurm_up() -> bool:
    """Tell whether the Slurm of `slurm.sh` is at hand; jobs of tests do not go to a cluster that has real work."""
    configuration = Path(os.environ.get("SLURM_CONF", "/nowhere"))
    return configuration.is_file() and "ClusterName=fulmen_tests" in configuration.read_text()


def wait_until(is_so: Callable[[], object], timeout: float, *, waiting_for: Callable[[], str]) -> None:
    """Return when something is so.

    Args:
        is_so: Tells it.
        timeout: Seconds.
        waiting_for: Text for the error.

    Raises:
        TimeoutError: It is not after that time.
    """
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain.\n{waiting_for()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array.

    Attributes:
        number: As Slurm's commands take it.
        output_file: What the processes print goes there.
    """

    number: str
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text() if self.output_file.exists() else ""

    def facts(self) -> dict[str, str]:
        text = _slurm("scontrol", "--oneliner", "show", "job", self.number)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait_for_output(self, pattern: str, timeout: float = 120) -> None:
        wait_until(lambda: re.search(pattern, self.output), timeout, waiting_for=lambda: f"{pattern!r} in:\n{self}")

    def wait_for_end(self, timeout: float = 120) -> str:
        """Return the state that the job ended in."""
        wait_until(lambda: self.facts()["JobState"] in _OVER, timeout, waiting_for=lambda: f"the end of:\n{self}")
        return self.facts()["JobState"]

    def signal(self, name: str) -> None:
        """Send a signal to all processes that `srun` started."""
        _slurm("scancel", f"--signal={name}", self.number)

    def __str__(self) -> str:
        return f"{self.facts()}\n{self.output}"


def submit(folder: Path, command: str, *directives: str, name: str = "train", task: int | None = None) -> Job:
    """Send a job script to Slurm.

    Args:
        folder: Where script, output and results of the job go; made if absent.
        command: Last line of the script.
        directives: What stands after `#SBATCH`.
        name: Name of the job.
        task: Number of the task that the returned job stands for, if the job is an array.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = "output.txt" if task is None else "output-%a.txt"
    lines = [f"--job-name={name}", f"--output={folder / output}", "--open-mode=append", f"--chdir={folder}"]
    script = folder / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in (*lines, *directives)), command, ""]))
    number = _slurm("sbatch", "--parsable", str(script), OMP_NUM_THREADS="1").strip()
    if task is None:
        return Job(number, folder / output)
    return Job(f"{number}_{task}", folder / output.replace("%a", str(task)))


def _slurm(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
