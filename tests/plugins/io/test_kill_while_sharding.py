"""Ranks of which one is killed while they save leave whole checkpoints, and the next run clears up after them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.plugins.io.kill_while_sharding import MODES, kill_often

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no server of forks"),
]


@pytest.mark.parametrize("mode", MODES)
def test_whichever_rank_is_killed_the_newest_sharded_checkpoint_is_whole(mode: str, tmp_path: Path) -> None:
    findings = kill_often(mode, 50, seed=3, folder=tmp_path)

    assert findings.kills == 50
    assert findings.saved > 0
    assert findings.in_the_middle > 0
