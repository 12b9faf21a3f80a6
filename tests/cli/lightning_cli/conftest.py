"""Command lines without the one that pytest was started with."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Be a program `train.py` without arguments, that writes to a folder of its own."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
