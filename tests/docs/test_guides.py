"""The programs of the migration guides: what is before and what is after print the same losses."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, programs_of
from tests.support import run_python

_LOSSES = re.compile(r"(?:epoch|step) \d+: (?:\w*loss) .*|best val_loss .*")
# programs for Lightning are answered by fulmen if it is installed first
_RUN_ALL = """
import sys
import fulmen.compat
fulmen.compat.install()
for name in sys.argv[1:]:
    print("PROGRAM", name)
    exec(compile(open(name).read(), name, "exec"), {"__name__": "__main__"})
"""


def losses_of(text: str) -> list[str]:
    """The lines on losses, without what a progress bar left in front of them."""
    return [found.strip() for line in re.split(r"[\r\n]", text) for found in _LOSSES.findall(line)]


def guide(name: str, folder: Path) -> list[str]:
    """Write the programs of a page into a folder, return their names."""
    programs = programs_of(ROOT / "docs" / f"{name}.md")
    for file, text in programs.items():
        (folder / file).write_text(text)
    return list(programs)


def run_alone(program: str, folder: Path) -> list[str]:
    result = run_python(program, cwd=folder, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    return losses_of(result.stdout)


def test_programs_that_need_no_other_package_print_the_same_losses(tmp_path: Path) -> None:
    names = [*guide("from-lightning", tmp_path), *guide("from-accelerate", tmp_path)[1:]]
    (tmp_path / "run_all.py").write_text(_RUN_ALL)
    result = run_python("run_all.py", *names, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    parts = {part.partition("\n")[0]: losses_of(part) for part in result.stdout.split("PROGRAM ")[1:]}

    assert len(parts["lightning_before.py"]) == 4
    assert parts["lightning_before.py"] == parts["lightning_after.py"]
    assert len(parts["accelerate_fabric.py"]) == 3
    assert parts["accelerate_fabric.py"] == parts["accelerate_trainer.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "package", "num_lines"),
    [
        ("from-lightning", "lightning", 4),
        ("from-hf-trainer", "transformers", 18),
        ("from-accelerate", "accelerate", 3),
    ],
)
def test_before_and_after_print_the_same_losses(tmp_path: Path, page: str, package: str, num_lines: int) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here: `make test-guides` runs this")
    before, *after = guide(page, tmp_path)
    expected = run_alone(before, tmp_path)

    assert len(expected) == num_lines
    assert {name: run_alone(name, tmp_path) for name in after} == dict.fromkeys(after, expected)
