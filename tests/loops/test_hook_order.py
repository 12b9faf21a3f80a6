"""The order of all hooks, recorded once with the released `lightning` and compared with every run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "reference" / "hook_order.py"
RECORDED = PROGRAM.with_suffix(".json")


def recorded_by(python: str, package: str) -> dict[str, list[str]]:
    output = subprocess.run(
        [python, str(PROGRAM), package], capture_output=True, text=True, check=True, timeout=110
    ).stdout
    result: dict[str, list[str]] = json.loads(output.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def ours() -> dict[str, list[str]]:
    return recorded_by(sys.executable, "fulmen")


EXPECTED: dict[str, Any] = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("run", sorted(EXPECTED))
def test_hooks_are_called_in_the_order_of_lightning(run: str, ours: dict[str, list[str]]) -> None:
    assert ours[run] == EXPECTED[run]


@pytest.mark.skipif("FULMEN_REFERENCE_PYTHON" not in os.environ, reason="needs FULMEN_REFERENCE_PYTHON with lightning")
def test_the_recording_is_what_lightning_does() -> None:
    assert recorded_by(os.environ["FULMEN_REFERENCE_PYTHON"], "lightning.pytorch") == EXPECTED
