"""`fulmen doctor`: what is here, what is wrong with it, and whether it works."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fulmen.cli.text import columns, count_text
from fulmen.utilities.command_line import CommandParser, say

__all__ = ["command", "make_parser"]

_PROG = "fulmen doctor"
_DESCRIPTION = """\
Show versions, devices and optional packages; look for what makes training fail (a build of torch that
does not fit the machine, too little shared memory, too few files, leftover variables, ...); and try
it, within seconds: a fit, a checkpoint there and back, two processes that talk to each other."""
_EPILOG = """\
exit code:
  0 all works, 1 there is a problem or a test failed, 2 wrong arguments"""


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen doctor`.

    Args:
        arguments: What follows the command's name.
    """
    options = make_parser().parse_args(list(arguments))
    report = _as_json if options.json else _as_text
    raise SystemExit(0 if report(is_tested=not options.no_test) else 1)


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG)
    parser.add_argument("--no-test", action="store_true", help="only look: train nothing, start no processes")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    return parser


def _as_json(*, is_tested: bool) -> bool:
    with _tests(is_tested) as tests:
        from fulmen.cli import machine  # imports torch, beside the processes of the test

        findings = machine.findings()
        outcomes = list(tests)
    is_well = _is_well(findings, outcomes)
    facts = {
        "versions": machine.versions(),
        "devices": machine.devices(),
        "packages": machine.packages(),
        "findings": [dataclasses.asdict(each) for each in findings],
        "tests": [dataclasses.asdict(each) for each in outcomes],
        "is_well": is_well,
    }
    say(json.dumps(facts, indent=2))
    return is_well


def _as_text(*, is_tested: bool) -> bool:
    outcomes = []
    with _tests(is_tested) as tests:
        from fulmen.cli import machine  # imports torch, beside the processes of the test

        say(f"versions\n{columns(list(machine.versions().items()))}")
        say(f"\ndevices\n{columns(list(machine.devices().items()))}")
        say(f"\noptional packages\n{columns(list(_packages(machine.packages())))}")
        findings = machine.findings()
        say(f"\nfindings\n{columns(list(_findings(findings)) or [('none', '')])}")
        if is_tested:
            say("\nself-test")
        for outcome in tests:
            outcomes.append(outcome)
            verdict = f"{'FAILED' if outcome.error else 'ok':6}"
            what = outcome.error or outcome.what
            say(columns([(verdict, f"{outcome.test:13}", f"{outcome.seconds:4.1f} s", what)]))
    num_problems = sum(each.level == machine.PROBLEM for each in findings)
    num_failed = sum(bool(each.error) for each in outcomes)
    bad = [count_text(num_problems, "problem")] if num_problems else []
    bad += [f"{count_text(num_failed, 'test')} failed"] if num_failed else []
    say(
        "\n"
        + (", ".join(bad) if bad else "All works." if is_tested else "Nothing stands in the way; nothing was tried.")
    )
    return not bad


def _tests(is_tested: bool) -> contextlib.AbstractContextManager[Iterable[Any]]:
    if not is_tested:
        return contextlib.nullcontext([])
    from fulmen.cli.self_test import self_test

    return self_test()


def _is_well(findings: Sequence[Any], outcomes: Sequence[Any]) -> bool:
    from fulmen.cli.machine import PROBLEM

    return not any(each.level == PROBLEM for each in findings) and not any(each.error for each in outcomes)


def _packages(packages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for entry in packages:
        if entry["installed"] is not None:
            yield entry["package"], entry["installed"], "" if entry["fits"] else f"NOT {entry['asked']}"
    missing = [entry for entry in packages if entry["installed"] is None]
    for entry in missing:
        yield entry["package"], "-", f"pip install 'fulmen[{entry['extras'][0]}]'"


def _findings(findings: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for finding in findings:
        yield (
            finding.level.upper() if finding.level == "problem" else finding.level,
            f"{finding.what}. {finding.remedy}",
        )
