from __future__ import annotations

import os

import pytest

from fulmen import Trainer
from fulmen.demos.boring_classes import BoringModel
from fulmen.utilities.lazy import is_installed
from fulmen.utilities.model_registry import (
    download_model_from_registry,
    find_model_local_ckpt_path,
    is_registry_address,
)
from tests.support import quiet

needs_no_package = pytest.mark.skipif(is_installed("litmodels"), reason="tells what happens without litmodels")


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("registry", "org_team_usual"),
        ("registry:mine", "mine"),
        ("registry:version:3", "org_team_usual_3"),
        ("registry:org/team/mine:version:v1", "org_team_mine_v1"),
    ],
)
def test_the_newest_file_of_an_address_is_found(tmp_path, address, folder):
    files = [tmp_path / folder / name for name in ("old.ckpt", "new.ckpt", "other.txt")]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        file.touch()
        os.utime(file, (number, number))

    assert find_model_local_ckpt_path(address, "org/team/usual", str(tmp_path)) == str(files[1])


def test_an_address_without_files_says_where_they_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint in `.*mine`"):
        find_model_local_ckpt_path("registry:mine", None, str(tmp_path))


@pytest.mark.parametrize("address", [None, "a.ckpt", "registry:", "registry:a:version:", "registry:a:b"])
def test_other_names_are_no_addresses(tmp_path, address):
    with pytest.raises(ValueError, match="is no address in a model registry"):
        find_model_local_ckpt_path(address, "usual", str(tmp_path))


def test_an_address_without_name_needs_a_default(tmp_path):
    with pytest.raises(ValueError, match=r"Trainer\(model_registry=NAME\)"):
        find_model_local_ckpt_path("registry:version:2", None, str(tmp_path))


@needs_no_package
def test_without_the_package_an_address_is_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(**quiet(tmp_path))

    assert not is_registry_address("registry:mine")
    with pytest.raises(FileNotFoundError, match="registry:mine"):
        trainer.fit(BoringModel(), ckpt_path="registry:mine")
    with pytest.raises(ModuleNotFoundError, match="pip install litmodels"):
        download_model_from_registry("registry:mine", trainer)
