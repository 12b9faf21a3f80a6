"""Torture runs from the command line: `python -m tests.torture`, or `make torture`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.torture.cases import Outcome, run_case, warm_up
from tests.torture.compare import FIGURES
from tests.torture.processes import end_group, start_fork
from tests.torture.saving import kill_while_saving
from tests.torture.settings import KINDS, LOADERS, Setting, draw_setting


def main() -> int:
    """Do what the command line says; return the exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started is ended
    warm_up()
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) if arguments.folder is None else arguments.folder
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.what == "saving":
            return _torture_saving(arguments, folder)
        return _torture_resuming(arguments, folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description="Interrupt training runs at random, resume them, and compare them with runs that were not"
        " interrupted. The exit code is 1 if anything differs.",
    )
    parser.add_argument(
        "--what",
        choices=("resuming", "saving"),
        default="resuming",
        help="saving: kill runs while they save, with and without AsyncCheckpointIO (default: %(default)s)",
    )
    parser.add_argument(
        "--runs", type=int, default=200, help="runs; when saving, kills per mode (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first run; the others follow (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--case", type=int, metavar="SEED", help="only this run, kept in the folder of --folder")
    parser.add_argument("--loader", choices=LOADERS, help="only this kind of training loader")
    parser.add_argument("--kinds", metavar="KIND,KIND", help=f"only these interruptions, of: {', '.join(KINDS)}")
    parser.add_argument("--folder", type=Path, help="for the files; default a temporary one, deleted at the end")
    arguments = parser.parse_args()
    arguments.kinds = KINDS if arguments.kinds is None else tuple(arguments.kinds.split(","))
    unknown = set(arguments.kinds) - set(KINDS)
    if unknown:
        parser.error(f"--kinds: {', '.join(sorted(unknown))} is none of: {', '.join(KINDS)}")
    return arguments


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---- resuming
def _torture_resuming(arguments: argparse.Namespace, folder: Path) -> int:
    start = time.monotonic()
    outcomes = []
    for outcome in _outcomes(arguments, folder):
        outcomes.append(outcome)
        if not outcome.is_exact or arguments.case is not None:
            _say_outcome(outcome)
    _say_table(outcomes)
    failed = [outcome for outcome in outcomes if not outcome.is_exact]
    _say(f"\n{len(outcomes)} runs in {time.monotonic() - start:.0f} s, {len(failed)} of them not exact")
    for outcome in failed:
        _say(f"  python -m tests.torture --case {outcome.setting.seed}{_further_options(arguments)}")
    return int(bool(failed))


def _further_options(arguments: argparse.Namespace) -> str:
    """Return what else a case depends on."""
    options = "" if arguments.loader is None else f" --loader {arguments.loader!r}"
    return options if arguments.kinds == KINDS else f"{options} --kinds {','.join(arguments.kinds)!r}"


def _settings(arguments: argparse.Namespace) -> list[Setting]:
    first = arguments.seed if arguments.case is None else arguments.case
    seeds = range(first, first + (arguments.runs if arguments.case is None else 1))
    given = {} if arguments.loader is None else {"loader": arguments.loader}
    return [draw_setting(seed, **given) for seed in seeds]


def _outcomes(arguments: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Run the cases, each in a process of its own, and yield what came of them as they end."""
    waiting = _settings(arguments)
    running: dict[int, Setting] = {}
    try:
        while waiting or running:
            while waiting and len(running) < arguments.jobs:
                setting = waiting.pop(0)
                work = partial(_case_to_file, setting, folder, arguments.kinds, keep=arguments.case is not None)
                running[start_fork(work, folder / f"{setting.seed}.txt")] = setting
            pid, _ = os.wait()
            yield _outcome(running.pop(pid), folder)
    finally:
        for pid in running:
            end_group(pid)


def _outcome(setting: Setting, folder: Path) -> Outcome:
    result = folder / f"{setting.seed}.json"
    if result.exists():
        return Outcome.from_plain(json.loads(result.read_text()))
    output = (folder / f"{setting.seed}.txt").read_text()
    return Outcome(setting, problems=[f"the comparison failed: ...{output[-1500:]}"])


def _case_to_file(setting: Setting, folder: Path, kinds: tuple[str, ...], *, keep: bool) -> None:
    outcome = run_case(setting, folder / str(setting.seed), kinds=kinds, keep=keep)
    (folder / f"{setting.seed}.json").write_text(json.dumps(outcome.as_plain()))


def _say_outcome(outcome: Outcome) -> None:
    _say(f"{outcome.setting.seed}: {outcome.setting}")
    _say(f"    interrupted: {'; '.join(map(str, outcome.interruptions)) or 'not at all'}")
    for line in [*map(str, outcome.differences), *outcome.problems]:
        _say(f"    {line}")


def _say_table(outcomes: list[Outcome]) -> None:
    columns = ["runs", *KINDS, "resumes", *FIGURES, "failed", "seconds"]
    rows = [(loader, _sums([each for each in outcomes if each.setting.loader == loader])) for loader in LOADERS]
    rows = [(loader, sums) for loader, sums in rows if sums["runs"]]
    rows.append(("all", _sums(outcomes)))
    names = {"kill -9 at any time": "any time", "exception": "error", "validations": "valid.", "duplicate": "twice"}
    heads = [names.get(column, column) for column in columns]
    _say(f"\n{'loader':24}" + "".join(f"{head:>{len(head) + 2}}" for head in heads))
    for loader, sums in rows:
        values = zip(columns, heads, strict=True)
        _say(f"{loader:24}" + "".join(f"{round(sums[column]):>{len(head) + 2}}" for column, head in values))


def _sums(outcomes: list[Outcome]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for outcome in outcomes:
        sums.update(outcome.figures())
        sums.update(interruption.kind for interruption in outcome.interruptions)
        sums.update({"runs": 1, "resumes": outcome.resumes, "failed": int(bool(outcome.problems))})
        sums["seconds"] += outcome.seconds  # type: ignore[assignment]  # rounded when shown
    return sums


# ---- saving
def _torture_saving(arguments: argparse.Namespace, folder: Path) -> int:
    results = [kill_while_saving(mode, arguments.runs, arguments.seed, folder, _say) for mode in ("sync", "async")]
    _say(
        f"\n{'saves':8}{'kills':>8}{'inside a write':>16}{'resumed':>9}{'old files':>11}{'problems':>10}{'seconds':>9}"
    )
    for each in results:
        _say(
            f"{each.mode:8}{each.kills:>8}{each.in_write:>16}{each.loaded:>9}{each.superfluous:>11}"
            f"{len(each.problems):>10}{each.seconds:>9.0f}"
        )
    return int(any(each.problems for each in results))


if __name__ == "__main__":
    sys.exit(main())
