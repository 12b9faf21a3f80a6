"""Callbacks that keep a state: same results as Lightning's, and checkpoints that move both ways."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REFERENCE = os.environ.get("FULMEN_REFERENCE_PYTHON")
PROGRAM = Path(__file__).parents[1] / "reference" / "callback_states.py"
EXPECTED: dict[str, Any] = json.loads(PROGRAM.with_suffix(".json").read_text())
# Pruning goes by the current weights here, and Lightning by those of the start: other weights, and known to differ.
SAME = sorted(set(EXPECTED) - {"pruning"})


def run(python: str, package: str, task: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, str(PROGRAM), package, task, str(folder)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def same(expected: Any, actual: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(same(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    if isinstance(expected, float) and isinstance(actual, float):
        return math.isclose(expected, actual, rel_tol=1e-4, abs_tol=1e-5)
    return bool(expected == actual)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ours")
    return folder, run(sys.executable, "fulmen", "fit", folder)


@pytest.fixture(scope="module")
def resumed(ours: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return run(sys.executable, "fulmen", "resume", ours[0])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("theirs")
    return folder, run(str(REFERENCE), "lightning.pytorch", "fit", folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", SAME)
def test_a_run_ends_as_with_lightning(case: str, ours: tuple[Path, dict[str, Any]]) -> None:
    assert same(EXPECTED[case], ours[1][case]), ours[1][case]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ema", "finetuning", "pruning", "swa"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    case: str, ours: tuple[Path, dict[str, Any]], resumed: dict[str, Any]
) -> None:
    assert same(ours[1][case], resumed[case]), resumed[case]


needs_reference = pytest.mark.skipif(not REFERENCE, reason="FULMEN_REFERENCE_PYTHON names no python with lightning")


@needs_reference
@pytest.mark.slow
def test_the_recording_is_what_lightning_does(theirs: tuple[Path, dict[str, Any]]) -> None:
    assert same(EXPECTED, theirs[1])


@needs_reference
@pytest.mark.slow
def test_files_of_lightning_resume_here(theirs: tuple[Path, dict[str, Any]], resumed: dict[str, Any]) -> None:
    result = run(sys.executable, "fulmen", "resume", theirs[0])

    assert [case for case in SAME if not same(resumed[case], result[case])] == []
    assert result["pruning"]["steps"] == 12


@needs_reference
@pytest.mark.slow
def test_our_files_resume_in_lightning(ours: tuple[Path, dict[str, Any]], theirs: tuple[Path, dict[str, Any]]) -> None:
    of_theirs = run(str(REFERENCE), "lightning.pytorch", "resume", theirs[0])
    of_ours = run(str(REFERENCE), "lightning.pytorch", "resume", ours[0])

    assert [case for case in SAME if not same(of_theirs[case], of_ours[case])] == []
    assert of_ours["pruning"]["steps"] == 12
