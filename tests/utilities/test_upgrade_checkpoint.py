from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.utilities.migration import LAYOUT_VERSION, LEGACY_VERSION_KEY, VERSION_KEY
from fulmen.utilities.upgrade_checkpoint import main


def old_checkpoint() -> dict[str, Any]:
    return {VERSION_KEY: "1.9.0", "state_dict": {"w": torch.ones(2)}, "global_step": 3, "loops": {}, "callbacks": {}}


def upgrade(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["upgrade_checkpoint", *map(str, arguments)])
    main()


def test_a_file_is_upgraded_and_the_old_one_kept(tmp_path, monkeypatch, capsys):
    file = tmp_path / "a.ckpt"
    torch.save(old_checkpoint(), file)
    before = file.read_bytes()

    upgrade(monkeypatch, file, "--map-to-cpu")

    upgraded = torch.load(file, weights_only=True)
    assert (upgraded[VERSION_KEY], upgraded[LEGACY_VERSION_KEY]) == (LAYOUT_VERSION, "1.9.0")
    assert upgraded["state_dict"]["w"].tolist() == [1, 1]
    assert (tmp_path / "a.ckpt.bak").read_bytes() == before
    assert "from 1.9.0 to" in capsys.readouterr().out


def test_a_folder_is_searched_and_files_of_today_stay(tmp_path, monkeypatch, capsys):
    (tmp_path / "deep").mkdir()
    for path, version in (("deep/a.pt", "1.9.0"), ("b.pt", LAYOUT_VERSION), ("c.ckpt", "1.9.0")):
        torch.save({**old_checkpoint(), VERSION_KEY: version}, tmp_path / path)

    upgrade(monkeypatch, tmp_path, "-e", ".pt")

    assert sorted(path.name for path in tmp_path.rglob("*.bak")) == ["a.pt.bak"]
    assert f"b.pt: is up to date ({LAYOUT_VERSION})" in capsys.readouterr().out


def test_a_backup_of_before_stays(tmp_path, monkeypatch):
    file = tmp_path / "a.ckpt"
    torch.save(old_checkpoint(), file)
    Path(f"{file}.bak").write_text("precious")

    upgrade(monkeypatch, file)

    assert (tmp_path / "a.ckpt.bak").read_text() == "precious"
    assert (tmp_path / "a.ckpt.bak1").exists()


@pytest.mark.parametrize("arguments", [["absent.ckpt"], [".", "-e", ".nothing"]])
def test_nothing_to_upgrade_is_an_error(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit):
        upgrade(monkeypatch, *arguments)

    assert "no file" in capsys.readouterr().err
