from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fulmen.cli import main
from tests.cli.trained import train


class Ended(NamedTuple):
    """How a command ended."""

    code: object
    out: str
    err: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a short training; not to be changed."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def fulmen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """The command in this process and the test's folder: called with its words, returns code, output and errors."""
    variables = dict(os.environ)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run(*words: object, columns: int = 80) -> Ended:
        os.environ["COLUMNS"] = str(columns)
        capfd.readouterr()
        code: object = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    yield run
    os.environ.clear()
    os.environ.update(variables)
