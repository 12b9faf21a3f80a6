"""Processes of PyTorch/XLA, with a stand-in for `torch_xla`."""

from __future__ import annotations

import pytest

from fulmen.plugins.environments import XLAEnvironment
from fulmen.utilities.lazy import is_installed
from tests import xla_stand_in


@pytest.mark.skipif(is_installed("torch_xla"), reason="`torch_xla` is installed")
def test_torch_xla_is_needed():
    assert not XLAEnvironment.detect()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fulmen\[xla\]'"):
        XLAEnvironment()


def test_the_runtime_decides(monkeypatch):
    xla_stand_in.install(monkeypatch)
    environment = XLAEnvironment()
    environment.set_world_size(2)
    environment.set_global_rank(0)

    assert XLAEnvironment.detect()
    assert not environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (8, 5)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)


@pytest.mark.parametrize("name", ["main_address", "main_port"])
def test_there_is_no_meeting_point(monkeypatch, name):
    xla_stand_in.install(monkeypatch)

    with pytest.raises(NotImplementedError, match=f"`XLAEnvironment.{name}` does not exist"):
        getattr(XLAEnvironment(), name)
