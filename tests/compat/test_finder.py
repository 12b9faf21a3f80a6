from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fulmen.compat.table import MODULES, table_name
from tests.support import run_python

INSTALL = "import fulmen.compat\nfulmen.compat.install()\n"


def _output_of(code: str) -> str:
    result = run_python("-c", INSTALL + code)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def _error_of(code: str) -> str:
    result = run_python("-c", INSTALL + code)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


# ---- the table
@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_the_table_exists(module: str) -> None:
    lost = []
    for name, target in MODULES[module].items():
        source, _, attribute = target.partition(":")
        if not hasattr(importlib.import_module(source), attribute):
            lost.append(name)

    assert lost == []


def test_every_module_of_the_table_has_its_parents() -> None:
    parents = {module.rpartition(".")[0] for module in MODULES if "." in module}

    assert parents - set(MODULES) == set()


def test_both_spellings_share_one_entry() -> None:
    assert table_name("pytorch_lightning.callbacks") == "lightning.pytorch.callbacks"
    assert table_name("lightning_fabric") == "lightning.fabric"
    assert table_name("lightning.pytorch") == "lightning.pytorch"


# ---- the hook
def test_names_are_the_same_objects_under_every_spelling() -> None:
    code = """
import fulmen, fulmen.callbacks, lightning as L, lightning.pytorch as pl, pytorch_lightning
from lightning.pytorch.callbacks.early_stopping import EarlyStopping
import lightning_fabric
assert L.Trainer is pl.Trainer is pytorch_lightning.Trainer is fulmen.Trainer
assert L.Fabric is L.fabric.Fabric is lightning_fabric.Fabric is fulmen.Fabric
assert EarlyStopping is pl.callbacks.EarlyStopping is fulmen.callbacks.EarlyStopping
print(isinstance(fulmen.LightningModule(), pytorch_lightning.LightningModule))
"""
    assert _output_of(code) == "True"


def test_submodules_answer_as_attributes_without_an_import() -> None:
    code = "import lightning as L\nprint(L.pytorch.utilities.rank_zero.rank_zero_info.__name__)"

    assert _output_of(code) == "rank_zero_info"


def test_star_import_gives_the_public_names() -> None:
    code = "from lightning.pytorch import *\nprint(LightningModule.__name__, seed_everything.__name__)"

    assert _output_of(code) == "LightningModule seed_everything"


def test_version_is_that_of_the_interface() -> None:
    code = """
import importlib.metadata as metadata
import lightning, lightning.pytorch, pytorch_lightning
import lightning_fabric
names = ("lightning", "pytorch-lightning", "pytorch_lightning", "lightning_fabric")
modules = (lightning, lightning.pytorch, pytorch_lightning, lightning_fabric)
print({*(module.__version__ for module in modules), *map(metadata.version, names)})
assert metadata.version("torch") and any(d.name == "fulmen" for d in metadata.distributions())
"""
    assert _output_of(code) == "{'2.6.6'}"


def test_installing_twice_adds_one_finder() -> None:
    code = "import sys\nbefore = len(sys.meta_path)\nfulmen.compat.install()\nprint(len(sys.meta_path) - before)"

    assert _output_of(code) == "0"


def test_importing_the_hook_alone_changes_nothing() -> None:
    result = run_python("-c", "import fulmen.compat, sys; print([f for f in sys.meta_path if 'fulmen' in repr(f)])")

    assert result.stdout.strip() == "[]"


def test_real_lightning_imported_before_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text("")
    result = run_python("-c", "import lightning\n" + INSTALL, cwd=tmp_path)

    assert result.returncode == 1
    assert "RuntimeError: `fulmen.compat.install()` comes too late: `lightning` is imported already" in result.stderr


def test_installed_lightning_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text("raise AssertionError('the real one')")
    result = run_python("-c", INSTALL + "import lightning; print(lightning.__version__)", cwd=tmp_path)

    assert result.stdout.strip() == "2.6.6", result.stderr


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from lightning.pytorch.callbacks import NoSuchCallback", "lightning.pytorch.callbacks.NoSuchCallback"),
        ("from lightning.pytorch.core.module import Nothing", "lightning.pytorch.core.module.Nothing"),
        ("import lightning.pytorch.nowhere", "lightning.pytorch.nowhere"),
        ("import pytorch_lightning as pl; pl.Nothing", "pytorch_lightning.Nothing"),
        ("from lightning.fabric.strategies import NoSuchStrategy", "lightning.fabric.strategies.NoSuchStrategy"),
        ("from lightning_fabric.utilities import nothing", "lightning_fabric.utilities.nothing"),
        ("import lightning_fabric.nowhere", "lightning_fabric.nowhere"),
    ],
)
def test_unknown_name_is_named_with_the_version(code: str, name: str) -> None:
    error = _error_of(code)

    assert error.startswith(("ModuleNotFoundError:", "AttributeError:"))
    assert f"`{name}` is not provided by fulmen " in error


def test_unknown_attribute_can_be_asked_for() -> None:
    assert _output_of("import lightning\nprint(hasattr(lightning, 'Nothing'))") == "False"


def test_setting_the_level_of_lightnings_logger_quietens_ours() -> None:
    code = """
import logging
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print(logging.getLogger("fulmen.trainer").isEnabledFor(logging.INFO))
"""
    assert _output_of(code) == "False"


def test_banner_is_printed() -> None:
    code = "import lightning.pytorch as pl\npl.cli_lightning_logo()\nassert isinstance(pl.LIGHTNING_LOGO, str)"

    assert _output_of(code)
