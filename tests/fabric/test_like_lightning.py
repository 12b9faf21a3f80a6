"""Small programs with Fabric, recorded once with the released `lightning` and run here: same results, same errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).with_name("programs.py")
EXPECTED: dict[str, Any] = json.loads(PROGRAMS.with_suffix(".json").read_text())


def recorded_by(python: str, package: str) -> dict[str, Any]:
    command = [python, str(PROGRAMS), package]
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    result: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return recorded_by(sys.executable, "fulmen")


def same(expected: Any, actual: Any) -> bool:
    """Equal but for rounding of floats, which differs between machines."""
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return math.isclose(expected, actual, rel_tol=1e-3, abs_tol=1e-4)
    return bool(expected == actual)


@pytest.mark.parametrize("title", sorted(EXPECTED))
def test_a_program_ends_as_with_lightning(title: str, ours: dict[str, Any]) -> None:
    assert same(EXPECTED[title], ours[title]), f"expected {EXPECTED[title]}, got {ours[title]}"


@pytest.mark.skipif("FULMEN_REFERENCE_PYTHON" not in os.environ, reason="needs FULMEN_REFERENCE_PYTHON with lightning")
def test_the_recording_is_what_lightning_does() -> None:
    assert recorded_by(os.environ["FULMEN_REFERENCE_PYTHON"], "lightning") == EXPECTED
