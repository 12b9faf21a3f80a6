"""Which names of Lightning's public interface are answered, compared with the recorded list of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fulmen.compat.missing import MISSING, reason_for
from tests.support import run_python

RECORDED = Path(__file__).with_name("lightning_names.txt")
FIND_ABSENT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import fulmen.compat
fulmen.compat.install()

def member_of(owner, name):
    return hasattr(owner, name) or name in getattr(owner, "__annotations__", {})

absent = []
for line in open(sys.argv[1]):
    path, colon, members = line.strip().partition(":")
    module, _, name = path.rpartition(".")
    try:
        owner = getattr(importlib.import_module(module), name) if name and not path.endswith(".*") else None
        if path.endswith(".*"):
            importlib.import_module(module)
    except (ImportError, AttributeError):
        absent.append(path.removesuffix(".*"))
        continue
    absent += [f"{path}.{member}" for member in members.split() if not member_of(owner, member)]
print(json.dumps(absent))
"""


@pytest.fixture(scope="module")
def absent() -> set[str]:
    result = run_python("-c", FIND_ABSENT, str(RECORDED))
    assert result.returncode == 0, result.stderr
    names: Any = json.loads(result.stdout.splitlines()[-1])
    return set(names)


def test_every_name_is_answered_or_listed_with_a_reason(absent: set[str]) -> None:
    assert sorted(name for name in absent if reason_for(name) is None) == []


def test_every_listed_name_is_absent(absent: set[str]) -> None:
    assert [name for name in MISSING if not any(f"{each}.".startswith(f"{name}.") for each in absent)] == []


def test_a_reason_holds_for_all_below() -> None:
    assert "not built" in str(reason_for("lightning.fabric.strategies.XLAFSDPStrategy.setup_module"))
    assert reason_for("lightning.pytorch.strategies.DDPStrategy") is None
    assert reason_for("lightning.pytorch.strategies") is None
