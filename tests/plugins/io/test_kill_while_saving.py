"""A program that is killed while it saves leaves whole checkpoints, and the next one clears up after it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.plugins.io.kill_while_saving import MODES, kill_often

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no server of forks"),
]


@pytest.mark.parametrize("mode", MODES)
def test_whenever_a_saver_is_killed_the_newest_checkpoint_is_whole(mode: str, tmp_path: Path) -> None:
    findings = kill_often(mode, 12, seed=3, folder=tmp_path)

    assert findings.kills == 12
    assert findings.saved > 0
