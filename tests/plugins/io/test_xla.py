"""Checkpoints of models on XLA devices, with a stand-in for `torch_xla`."""

from __future__ import annotations

import pytest
import torch

from fulmen.plugins.io import XLACheckpointIO
from fulmen.utilities.lazy import is_installed
from tests import xla_stand_in


@pytest.fixture
def synced(monkeypatch):
    return xla_stand_in.install(monkeypatch)


@pytest.mark.skipif(is_installed("torch_xla"), reason="`torch_xla` is installed")
def test_torch_xla_is_needed():
    with pytest.raises(ModuleNotFoundError, match="`XLACheckpointIO` needs the package `torch_xla`"):
        XLACheckpointIO()


def test_a_checkpoint_is_written_from_the_cpu_after_one_sync(tmp_path, synced):
    files = XLACheckpointIO()

    files.save_checkpoint({"state": {"a": torch.ones(2)}, "list": [torch.zeros(1), "text", None]}, tmp_path / "f.ckpt")

    assert synced == ["sync"]
    loaded = files.load_checkpoint(tmp_path / "f.ckpt")
    assert loaded["state"]["a"].tolist() == [1.0, 1.0]
    assert loaded["list"][1:] == ["text", None]


@pytest.mark.usefixtures("synced")
def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`XLACheckpointIO`, which would ignore them"):
        XLACheckpointIO().save_checkpoint({}, tmp_path / "f.ckpt", storage_options={"a": 1})
