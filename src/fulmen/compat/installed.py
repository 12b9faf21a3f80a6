"""Flags by which programs ask what they run on."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version

from fulmen.utilities.lazy import is_installed

__all__ = [
    "IS_INTERACTIVE",
    "IS_WINDOWS",
    "OMEGACONF_AVAILABLE",
    "PYTHON_GREATER_EQUAL_3_10_0",
    "PYTHON_GREATER_EQUAL_3_11_0",
    "TORCHMETRICS_GREATER_EQUAL_1_0_0",
    "TORCH_EQUAL_2_4_0",
    "TORCH_GREATER_EQUAL_2_2",
    "TORCH_GREATER_EQUAL_2_3",
    "TORCH_GREATER_EQUAL_2_4",
    "TORCH_GREATER_EQUAL_2_4_1",
    "TORCH_GREATER_EQUAL_2_5",
    "TORCH_GREATER_EQUAL_2_6",
    "TORCH_GREATER_EQUAL_2_8",
    "TORCH_LESS_EQUAL_2_6",
]


def _at_least(package: str, least: str) -> bool:
    try:
        return Version(version(package)) >= Version(least)
    except PackageNotFoundError:
        return False


_TORCH = Version(torch.__version__.partition("+")[0])

IS_INTERACTIVE = hasattr(sys, "ps1")
IS_WINDOWS = os.name == "nt"
OMEGACONF_AVAILABLE = is_installed("omegaconf")
PYTHON_GREATER_EQUAL_3_10_0 = sys.version_info >= (3, 10)
PYTHON_GREATER_EQUAL_3_11_0 = sys.version_info >= (3, 11)
TORCHMETRICS_GREATER_EQUAL_1_0_0 = _at_least("torchmetrics", "1.0.0")
TORCH_EQUAL_2_4_0 = Version("2.4.0") == _TORCH
TORCH_GREATER_EQUAL_2_2 = Version("2.2.0") <= _TORCH
TORCH_GREATER_EQUAL_2_3 = Version("2.3.0") <= _TORCH
TORCH_GREATER_EQUAL_2_4 = Version("2.4.0") <= _TORCH
TORCH_GREATER_EQUAL_2_4_1 = Version("2.4.1") <= _TORCH
TORCH_GREATER_EQUAL_2_5 = Version("2.5.0") <= _TORCH
TORCH_GREATER_EQUAL_2_6 = Version("2.6.0") <= _TORCH
TORCH_GREATER_EQUAL_2_8 = Version("2.8.0") <= _TORCH
TORCH_LESS_EQUAL_2_6 = Version("2.6.0") >= _TORCH
