"""What tests of several folders share. Import as `from tests.support import quiet`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import fulmen

PACKAGE_FOLDER = Path(fulmen.__file__).parent


def quiet(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of a Trainer on the CPU that prints nothing and writes only below `tmp_path`; `changes` win."""
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": tmp_path,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return {**arguments, **changes}


def framework_frames(traceback: TracebackType | None) -> int:
    """Count the frames of a traceback whose code lies in the package."""
    count = 0
    while traceback is not None:
        count += _is_ours(traceback.tb_frame)
        traceback = traceback.tb_next
    return count


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(PACKAGE_FOLDER)


def run_python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a new process and return what it wrote; a failure is not an error."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
