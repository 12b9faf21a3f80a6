from __future__ import annotations

import ast

import pytest

from tests.architecture.sources import Source, sources
from tests.support import run_python


def test_imports_follow_the_layers() -> None:
    # the contracts are in pyproject.toml, [tool.importlinter]
    result = run_python("-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("source", sources(), ids=str)
def test_file_has_no_relative_import(source: Source) -> None:
    relative = [node.lineno for node in ast.walk(source.tree) if isinstance(node, ast.ImportFrom) and node.level]

    assert relative == []
