from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, programs_of
from tests.support import run_python

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if _BLOCK.search(path.read_text())
]
LOOPS = ROOT / "docs" / "from-your-loop.md"
GUIDES = {"from-accelerate.md", "from-hf-trainer.md", "from-lightning.md"}  # test_guides.py runs their programs
# one interpreter for several programs: most of the time goes to importing torch
_RUN_ALL = """
import sys
for name in sys.argv[1:]:
    exec(compile(open(name).read(), name, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_the_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(_BLOCK.findall(page.read_text())))
    result = run_python(str(program), cwd=tmp_path)

    assert result.returncode == 0, result.stderr


# ---- blocks with a title are programs of their own


def printed_losses(folder: Path, programs: dict[str, str], **environment: str) -> list[str]:
    """Run programs, one after the other; return the lines on losses that they print."""
    for name, text in {**programs, "run_all.py": _RUN_ALL}.items():
        (folder / name).write_text(text)
    result = run_python("run_all.py", *programs, cwd=folder, **environment)
    assert result.returncode == 0, result.stderr
    return re.findall(r"epoch \d: val_loss \S+", result.stdout)


def test_every_program_of_a_page_is_run_by_a_test() -> None:
    assert {page.name for page in ROOT.glob("docs/*.md") if programs_of(page)} == {LOOPS.name, *GUIDES}


@pytest.mark.distributed
def test_loop_fabric_and_trainer_print_the_same_losses_on_one_and_two_ranks(tmp_path: Path) -> None:
    programs = programs_of(LOOPS)
    two_ranks = {"LT_ACCELERATOR": "cpu", "PL_TRAINER_ACCELERATOR": "cpu", "LT_DEVICES": "2", "PL_TRAINER_DEVICES": "2"}
    alone = printed_losses(tmp_path, programs)
    together = printed_losses(
        tmp_path, {name: programs[name] for name in ("loop_fabric.py", "loop_trainer.py")}, **two_ranks
    )

    assert list(programs) == ["loop.py", "loop_fabric.py", "loop_trainer.py"]
    assert len(set(alone)) == 3
    assert alone == alone[:3] * 3
    assert together == alone[:3] * 2
