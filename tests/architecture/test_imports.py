from __future__ import annotations

import json

from tests.architecture.sources import sources
from tests.support import run_python

MOST_MODULES_OVER_TORCH = 120
# classes derived from its own
STAND_ON_JSONARGPARSE = ("fulmen.cli.argument_parser", "fulmen.cli.lightning_cli", "fulmen.cli.planning_cli")
MOST_OTHER_MODULES = 10  # of the standard library, that torch had not loaded
HEAVY = (
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "fsspec",
    "jsonargparse",
    "lightning",
    "lightning_utilities",
    "matplotlib",
    "mlflow",
    "neptune",
    "pytorch_lightning",
    "rich",
    "scipy",
    "sklearn",
    "swanlab",
    "tensorboard",
    "tensorboardX",
    "torch._dynamo",
    "torch._inductor",
    "torchmetrics",
    "tqdm",
    "trackio",
    "wandb",
    "yaml",
)

_USE_EVERY_NAME = """
import json, sys
import torch
{first}
before = set(sys.modules)
import fulmen
{use}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def _loaded_by(use: str, first: str = "") -> list[str]:
    result = run_python("-c", _USE_EVERY_NAME.format(use=use, first=first))
    assert result.returncode == 0, result.stderr
    modules: list[str] = json.loads(result.stdout)
    return modules


def _heavy(modules: list[str]) -> list[str]:
    return [module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in HEAVY)]


def test_import_of_the_package_does_not_load_torch() -> None:
    result = run_python("-c", "import fulmen, sys; print('torch' in sys.modules)")

    assert result.stdout.strip() == "False", result.stderr


def test_import_loads_few_modules() -> None:
    assert len(_loaded_by("")) <= MOST_MODULES_OVER_TORCH


def test_using_every_name_loads_little_beside_the_package() -> None:
    modules = _loaded_by("for name in fulmen.__all__: getattr(fulmen, name)")

    assert _heavy(modules) == []
    assert len([module for module in modules if not module.startswith("fulmen")]) <= MOST_OTHER_MODULES


def test_no_module_of_the_package_loads_a_heavy_one() -> None:
    names = [s.module for s in sources() if not s.module.endswith("__main__") and s.module not in STAND_ON_JSONARGPARSE]
    modules = _loaded_by(
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)",
        first="import torch.distributed.checkpoint",  # which loads the compiler in torch 2.8
    )

    assert _heavy(modules) == []


def test_import_does_not_touch_global_state() -> None:
    code = """
import logging, warnings, os, torch

def state():
    root = logging.getLogger()
    return {
        "filters": list(warnings.filters), "formatwarning": warnings.formatwarning, "environ": dict(os.environ),
        "handlers": list(root.handlers), "compile": torch.compile,
    }

before = state()
import fulmen
for name in fulmen.__all__: getattr(fulmen, name)
after = state()
print([key for key in before if before[key] != after[key]])
"""
    result = run_python("-c", code)

    # one filter of ours: LightningDeprecationWarning is shown, as programs expect
    assert result.stdout.strip() == "['filters']", result.stderr
