"""Fixtures of all tests."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Same random numbers in every test, whatever ran before."""
    torch.manual_seed(0)
    random.seed(0)
    try:
        import numpy as np
    except ModuleNotFoundError:  # numpy is no dependency
        pass
    else:
        np.random.seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
