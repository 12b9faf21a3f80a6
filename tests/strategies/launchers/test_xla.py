from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing

from fulmen.strategies.launchers import XLALauncher
from fulmen.utilities.exceptions import RankFailedError
from tests.strategies.launchers.stand_in import StandIn


def spawn(fn, args, nprocs, start_method):
    """Stands for `torch_xla`, which needs its hardware: two processes, an error for each that fails."""
    assert nprocs is None
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]  # public, but not declared so
        fn, args=args, nprocs=2, start_method=start_method
    )


@pytest.fixture
def torch_xla(monkeypatch):
    for name in ("torch_xla", "torch_xla.distributed"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_xla.distributed.xla_multiprocessing", SimpleNamespace(spawn=spawn))


def rank_and_boom(strategy, fails):
    if fails and strategy.rank == 1:
        raise ValueError("boom")
    return strategy.rank, torch.ones(1)


def test_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ModuleNotFoundError, match="`XLALauncher` needs the package `torch_xla`"):
        XLALauncher(StandIn())


@pytest.mark.distributed
@pytest.mark.usefixtures("torch_xla")
def test_result_of_rank_zero_and_errors_come_back():
    strategy = StandIn()
    launcher = XLALauncher(strategy, "fork")

    assert launcher.launch(rank_and_boom, strategy, False) == (0, torch.ones(1))
    with pytest.raises(RankFailedError, match=r"(?s)^Rank 1 .*ValueError: boom$"):
        launcher.launch(rank_and_boom, strategy, True)


@pytest.mark.usefixtures("torch_xla")
def test_one_device_needs_no_process():
    strategy = StandIn(num_processes=1)

    assert XLALauncher(strategy).launch(rank_and_boom, strategy, False) == (0, torch.ones(1))
