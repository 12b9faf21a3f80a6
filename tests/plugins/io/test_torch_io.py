"""Checkpoints as files."""

from __future__ import annotations

import pytest
import torch

from fulmen.plugins.io import TorchCheckpointIO


def test_what_is_saved_is_loaded(tmp_path):
    io = TorchCheckpointIO()
    path = tmp_path / "new" / "folder" / "a.ckpt"

    io.save_checkpoint({"weights": torch.arange(3), "epoch": 2}, path)
    loaded = io.load_checkpoint(path)

    assert loaded["weights"].tolist() == [0, 1, 2]
    assert loaded["epoch"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})


def test_weights_only_false_loads_any_object(tmp_path):
    io, path = TorchCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"object": pytest.approx}, path)

    assert io.load_checkpoint(path, weights_only=False)["object"] is pytest.approx
    with pytest.raises(Exception, match="weights_only"):
        io.load_checkpoint(path, weights_only=True)


def test_files_folders_and_links_are_removed(tmp_path):
    io = TorchCheckpointIO()
    file, folder, link = tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "last.ckpt"
    io.save_checkpoint({}, file)
    folder.mkdir()
    (folder / "shard").write_text("x")
    link.symlink_to(file)

    io.remove_checkpoint(link)
    kept = file.exists()
    for path in (file, folder, tmp_path / "absent.ckpt"):
        io.remove_checkpoint(path)

    assert kept
    assert list(tmp_path.iterdir()) == []
