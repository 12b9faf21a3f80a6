"""What logging makes visible, recorded once with the released `lightning` and compared with every run here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "reference" / "logged_values.py"
EXPECTED: dict[str, Any] = json.loads(PROGRAM.with_suffix(".json").read_text())

# Where fulmen differs on purpose: the parts of a case's record that are not compared, and why.
SEEN_AT_ONCE = "values logged before the first batch of a validation inside `fit` are visible at once, as in `validate`"
DELIBERATE: dict[str, tuple[set[str], str]] = {
    "same name in every hook": ({"events"}, SEEN_AT_ONCE),
    "own name in every hook": ({"events"}, SEEN_AT_ONCE),
    "own name in every hook, two loaders, not sanity": ({"events"}, SEEN_AT_ONCE),
    "plateau by step": (
        {"events"},
        "a plateau scheduler that reads after validation does not bring the training value of the same name back",
    ),
    "manual, hooks log between": (
        {"events", "rows"},
        "a hook that logs in the middle of the first batch's step does not erase what the step logged before it",
    ),
}
REFUSED_DELIBERATELY = {
    # a complex number is no number that loggers, bars and monitors can use: always a ValueError, at the call
    "value complex": "ValueError",
    "value complex in log_dict": "ValueError",
    "value complex tensor": "ValueError",
    "value complex tensor in log_dict": "ValueError",
}


def recorded_by(python: str, package: str) -> dict[str, Any]:
    output = subprocess.run([python, str(PROGRAM), package], capture_output=True, text=True, check=True, timeout=110)
    result: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return recorded_by(sys.executable, "fulmen")


def difference(expected: Any, actual: Any, where: str = "") -> str | None:
    """Return the first place where two records differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        return next(filter(None, (difference(expected[k], actual[k], f"{where}/{k}") for k in expected)), None)
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return next(filter(None, (difference(e, a, f"{where}[{i}]") for i, (e, a) in pairs)), None)
    if isinstance(expected, float) or isinstance(actual, float):
        numbers = isinstance(expected, int | float) and isinstance(actual, int | float)
        same = numbers and math.isclose(expected, actual, rel_tol=1e-6, abs_tol=1e-6)
    else:
        same = expected == actual
    return None if same else f"{where}: expected {expected!r:.1500}, got {actual!r:.1500}"


@pytest.mark.parametrize("case", sorted(EXPECTED["cases"]))
def test_logged_values_are_seen_where_lightning_shows_them(case: str, ours: dict[str, Any]) -> None:
    expected = EXPECTED["cases"][case]
    parts = expected.keys() - DELIBERATE.get(case, (set(), ""))[0]

    assert [difference(expected[part], ours["cases"][case][part], part) for part in sorted(parts)] == [None] * len(
        parts
    )


@pytest.mark.parametrize("case", sorted(DELIBERATE))
def test_a_deliberate_difference_is_still_one(case: str, ours: dict[str, Any]) -> None:
    for part in DELIBERATE[case][0]:
        assert difference(EXPECTED["cases"][case][part], ours["cases"][case][part]) is not None


def test_wrong_calls_end_in_the_same_errors(ours: dict[str, Any]) -> None:
    assert ours["refused"] == {**EXPECTED["refused"], **REFUSED_DELIBERATELY}


@pytest.mark.skipif("FULMEN_REFERENCE_PYTHON" not in os.environ, reason="needs FULMEN_REFERENCE_PYTHON with lightning")
def test_the_recording_is_what_lightning_does() -> None:
    assert difference(EXPECTED, recorded_by(os.environ["FULMEN_REFERENCE_PYTHON"], "lightning.pytorch")) is None
