from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import run_python

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if _BLOCK.search(path.read_text())
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_the_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(_BLOCK.findall(page.read_text())))
    result = run_python(str(program), cwd=tmp_path)

    assert result.returncode == 0, result.stderr
