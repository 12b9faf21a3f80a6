"""Machines and jobs that tests of decisions pretend to be on."""

from __future__ import annotations

import os

import pytest
import torch

from fulmen.utilities.rank_zero import rank_zero_only
from tests.engine.launched import set_environment


@pytest.fixture(autouse=True)
def plain_start(monkeypatch):
    """Nobody has started this process: no variables of launchers, rank 0, not an interactive session."""
    set_environment(monkeypatch, {}, dict(os.environ))
    monkeypatch.setattr(rank_zero_only, "_rank", 0)


@pytest.fixture
def only_cpu(monkeypatch):
    """A machine without GPU."""
    pretend(monkeypatch, gpus=0)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs."""
    pretend(monkeypatch, gpus=2)


@pytest.fixture
def mac(monkeypatch):
    """A machine with MPS."""
    pretend(monkeypatch, gpus=0, mps=True)


def pretend(monkeypatch, *, gpus: int, mps: bool = False) -> None:
    """Let torch find so many GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.fixture
def machine(request, monkeypatch):
    """One of these machines, by name."""
    pretend(monkeypatch, gpus=2 if request.param == "two gpus" else 0, mps=request.param == "mac")
    return request.param


@pytest.fixture
def console(monkeypatch):
    """Somebody types the program into Python's console."""
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
