"""One case: a run without interruption, the same one interrupted up to three times, and what differs."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.torture.compare import Difference, compare, read_record, steps_done
from tests.torture.processes import Ended, run_in_fork
from tests.torture.program import Broken, train
from tests.torture.settings import KINDS, Interruption, Setting, draw_interruption

__all__ = ["Outcome", "run_case", "warm_up"]

_BROKEN = 3
_FAILED = 1
_MOST_INTERRUPTIONS = 3


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        setting: What was trained.
        interruptions: What ended the runs, those that happened.
        resumes: How many runs went on from where another was ended.
        differences: Between the interrupted and the uninterrupted run.
        problems: What went wrong otherwise, e.g. a resume that failed, with the end of its output.
        seconds: How long it took.
    """

    setting: Setting
    interruptions: list[Interruption] = field(default_factory=list)
    resumes: int = 0
    differences: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether nothing differed and nothing went wrong."""
        return not self.differences and not self.problems

    def figures(self) -> Counter[str]:
        """Return how much differed, by kind."""
        sums: Counter[str] = Counter()
        for each in self.differences:
            sums[each.figure] += each.count
        return sums

    def as_plain(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Outcome:
        """Take back what `as_plain` gave."""
        return cls(
            setting=Setting(**data["setting"]),
            interruptions=[Interruption(**each) for each in data["interruptions"]],
            resumes=data["resumes"],
            differences=[Difference(**each) for each in data["differences"]],
            problems=data["problems"],
            seconds=data["seconds"],
        )


def warm_up() -> None:
    """Train once in this process, so that all is imported and forked processes need not do it."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork, and the runs are tiny
    with tempfile.TemporaryDirectory() as folder:
        train(Setting(precision="scaled", ema=True, averaged=True, scheduler="OneCycleLR"), Path(folder))


def run_case(setting: Setting, folder: Path, *, kinds: tuple[str, ...] = KINDS, keep: bool = False) -> Outcome:
    """Run a case; all that is random about it follows from the seed of its setting.

    Args:
        setting: What is trained.
        folder: Empty folder for the files.
        kinds: Kinds of interruptions to choose from.
        keep: Keep the files, to look at them.
    """
    start = time.monotonic()
    outcome = Outcome(setting)
    whole, interrupted = folder / "whole", folder / "interrupted"
    for each in (whole, interrupted):
        each.mkdir(parents=True)
    ended = _run(setting, whole, None)
    if ended.code != 0:
        outcome.problems.append(f"the run without interruption {_how(ended, whole)}")
    else:
        _torture(outcome, whole, interrupted, ended.seconds, kinds)
        if not outcome.problems:
            outcome.differences = compare(whole, interrupted)
    if not keep:
        shutil.rmtree(folder)
    outcome.seconds = time.monotonic() - start
    return outcome


def _torture(outcome: Outcome, whole: Path, folder: Path, seconds: float, kinds: tuple[str, ...]) -> None:
    rng = random.Random(outcome.setting.seed)
    places = _places(whole, outcome.setting)
    left = rng.randint(1, _MOST_INTERRUPTIONS)
    while True:
        interruption = None
        if left:
            interruption = draw_interruption(rng, kinds, places, after=steps_done(folder))
        left = max(left - 1, 0)
        num_entries = len(read_record(folder))
        kill_after_s = None if interruption is None or interruption.hook else interruption.share * seconds
        ended = _run(outcome.setting, folder, interruption, kill_after_s)
        entries = read_record(folder)[num_entries:]
        outcome.resumes += bool(outcome.interruptions) and any("step" in entry for entry in entries)
        problem = _problem(ended, interruption, [entry for entry in entries if "strike" in entry], steps_done(whole))
        if problem:
            outcome.problems.append(f"{problem}: it {_how(ended, folder)}")
            return
        if ended.code == 0:
            return
        outcome.interruptions.append(interruption)  # type: ignore[arg-type]  # without one, it would be a problem


def _places(whole: Path, setting: Setting) -> dict[str, list[int]]:
    """Return the hooks of a run, each with the training steps after which it came."""
    places: dict[str, list[int]] = read_record(whole)[-1]["places"]
    if setting.num_workers:  # samples are asked for in other processes
        places["getitem"] = list(range(steps_done(whole) - 1))
    return places


def _run(setting: Setting, folder: Path, interruption: Interruption | None, kill_after_s: float | None = None) -> Ended:
    work = partial(train, setting, folder, interruption)
    return run_in_fork(work, folder / "output.txt", codes={Broken: _BROKEN}, kill_after_s=kill_after_s)


def _problem(ended: Ended, interruption: Interruption | None, strikes: list[dict[str, Any]], num_steps: int) -> str:
    """Return what is wrong with the way in which a run ended; nothing if it is as it should be."""
    if ended.hung:
        return f"a run with {interruption} hangs"
    if interruption is None or (interruption.hook and not strikes):
        return "" if ended.code == 0 else "a run that nobody interrupted failed"
    allowed = {
        "exception": {_BROKEN},
        "SIGTERM": {143, -15},  # the latter where there is no loop to obey it
        "SIGINT": {130},
        "kill -9": {-9},
        "kill -9 at any time": {-9, 0},
    }[interruption.kind]
    if any(strike["in_worker"] for strike in strikes):
        # workers pass over Ctrl-C, which a terminal sends to all; of other ends the main process makes an error
        allowed = {0 if interruption.kind == "SIGINT" else _FAILED, *allowed}
    if interruption.kind in ("SIGTERM", "SIGINT") and any(strike["after"] == num_steps for strike in strikes):
        allowed = {0, *allowed}  # a run that was at its end may end as usual
    return "" if ended.code in allowed else f"{interruption} was not obeyed"


def _how(ended: Ended, folder: Path) -> str:
    output = (folder / "output.txt").read_text(errors="replace").strip()
    return f"ended with {ended.code} after {ended.seconds:.1f} s: ...{output[-1500:]}"
