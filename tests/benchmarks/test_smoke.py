from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases import CASES
from benchmarks.checkpoints import CHECKPOINT_CASES
from benchmarks.driver import IMPORT_ROWS
from benchmarks.ranks import RANK_CASES
from benchmarks.report import as_markdown, as_text
from benchmarks.shape import SHAPES

ROOT = Path(__file__).parent.parent.parent
ON_A_GPU_ONLY = {"syncs_bare", "syncs_log_1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the terminal of the benchmarks is a Unix one"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    assert result.stdout == as_text(found)
    return found


def test_every_row_is_measured(results: dict[str, Any]) -> None:
    assert [row["key"] for row in results["times"]] == [*(case.key for case in CASES), *RANK_CASES, *CHECKPOINT_CASES]
    assert [row["key"] for row in results["memory"]] == ["checkpoint_sync", "checkpoint_async"]
    assert {row["key"] for row in results["counts"]} | ON_A_GPU_ONLY == {shape.key for shape in SHAPES}
    assert [row["key"] for row in results["imports"]] == [key for key, _ in IMPORT_ROWS]


def test_every_time_is_positive(results: dict[str, Any]) -> None:
    figures = [row["packages"]["fulmen"] for row in results["times"]]

    assert all(figure["plain"]["median"] > 0 and figure["measured"]["median"] > 0 for figure in figures)


def test_every_count_is_of_something(results: dict[str, Any]) -> None:
    counts = {row["key"]: row["packages"]["fulmen"] for row in results["counts"]}

    assert all(value > 0 for key, value in counts.items() if key not in ON_A_GPU_ONLY), counts


@pytest.mark.parametrize("write", [as_text, as_markdown])
def test_reports_have_every_row(write: Any, results: dict[str, Any]) -> None:
    rows = [*results["times"], *results["memory"], *results["counts"], *results["imports"]]
    lines = write(results).splitlines()

    assert [row["title"] for row in rows if not any(row["title"] in line for line in lines)] == []
