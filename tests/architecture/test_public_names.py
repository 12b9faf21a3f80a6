from __future__ import annotations

import ast
import importlib

import pytest

from tests.architecture.sources import Source, sources

# `log` is a module's logger by convention; `__main__` modules are programs
_NOT_NAMES = {"log"}
MODULES = [s for s in sources() if not s.is_private and not s.is_package]
PACKAGES = [s for s in sources() if s.is_package and s.module != "fulmen"]


def _declared(source: Source) -> list[str] | None:
    """`__all__` as written, or None."""
    for node in source.tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets) and node.value:
                value: list[str] = ast.literal_eval(node.value)
                return value
    return None


def _defined(source: Source) -> set[str]:
    """Public names that a module defines at its top level."""
    names: set[str] = set()
    for node in source.tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            if not _makes_type_variable(node.value):
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")} - _NOT_NAMES


def _makes_type_variable(value: ast.expr) -> bool:
    made_by = value.func if isinstance(value, ast.Call) else None
    return isinstance(made_by, ast.Name) and made_by.id in ("TypeVar", "ParamSpec")


def _imported_for_types(source: Source) -> set[str]:
    """Names of the `if TYPE_CHECKING:` block."""
    return {
        alias.asname or alias.name
        for node in source.tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@pytest.mark.parametrize("source", MODULES, ids=str)
def test_all_names_what_the_module_defines(source: Source) -> None:
    declared = _declared(source)

    assert declared is not None
    assert _defined(source) - set(declared) == set()
    module = importlib.import_module(source.module)
    assert [name for name in declared if not hasattr(module, name)] == []


@pytest.mark.parametrize("source", PACKAGES, ids=str)
def test_package_exports_what_type_checkers_see(source: Source) -> None:
    package = importlib.import_module(source.module)
    exported = set(getattr(package, "__all__", ()))

    assert exported == _imported_for_types(source)
    assert [name for name in exported if not hasattr(package, name)] == []
    assert exported <= set(dir(package))


def test_root_exports_its_first_names() -> None:
    package = importlib.import_module("fulmen")

    assert sorted(package.__all__) == [
        "Callback",
        "Fabric",
        "LightningDataModule",
        "LightningModule",
        "Trainer",
        "seed_everything",
    ]
    assert package.__version__
