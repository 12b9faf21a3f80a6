"""What tests of the pages share."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PROGRAM = re.compile(r'^```python title="(\S+)".*?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def programs_of(page: Path) -> dict[str, str]:
    """The programs of a page by file name: blocks with a title."""
    return dict(_PROGRAM.findall(page.read_text()))
