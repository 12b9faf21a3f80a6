"""Folders of runs."""

import os
import subprocess
import sys

import pytest

from fulmen.loggers import CSVLogger
from fulmen.loggers.versioned import claim_version, next_version
from fulmen.utilities.rank_zero import rank_zero_only


def test_first_version_is_zero(tmp_path):
    root = str(tmp_path / "runs")

    assert next_version(root) == 0
    assert claim_version(root) == 0
    assert os.listdir(root) == ["version_0"]


def test_next_version_follows_the_highest_and_ignores_other_names(tmp_path):
    for name in ("version_1", "version_12", "version_x", "other", "version_3.bak"):
        (tmp_path / name).mkdir()

    assert next_version(str(tmp_path)) == 13


def test_processes_started_at_once_never_share_a_version(tmp_path):
    code = (
        "import sys\n"
        "from fulmen.loggers.versioned import claim_version\n"
        "sys.stdin.readline()\n"
        "print([claim_version(sys.argv[1]) for _ in range(20)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    versions = [version for process in processes for version in eval(process.communicate()[0])]

    assert sorted(versions) == list(range(40))


def test_two_loggers_of_one_experiment_get_two_folders(tmp_path):
    first, second = CSVLogger(tmp_path), CSVLogger(tmp_path)

    assert (first.version, second.version) == (0, 1)
    assert first.version == 0


def test_other_ranks_reserve_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)

    assert CSVLogger(tmp_path).version == 0
    assert os.listdir(tmp_path) == []


def test_nothing_is_made_before_first_use(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.save()
    logger.finalize("success")

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "version", "folder"),
    [
        ("exp", 3, "exp/version_3"),
        ("exp", "best", "exp/best"),
        (None, 0, "version_0"),
        ("", "run", "run"),
    ],
)
def test_log_dir_is_made_of_name_and_version(tmp_path, name, version, folder):
    logger = CSVLogger(tmp_path, name=name, version=version)

    assert os.path.normpath(logger.log_dir) == str(tmp_path / folder)
    assert logger.name == (name or "")


def test_home_and_variables_are_expanded_in_folders_but_not_in_save_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "logs")
    logger = CSVLogger("~/$WHERE", name="exp", version=0)

    assert logger.save_dir == "~/$WHERE"
    assert logger.log_dir == str(tmp_path / "logs" / "exp" / "version_0")


def test_file_urls_are_local_folders(tmp_path):
    logger = CSVLogger(f"file://{tmp_path}", name="exp")

    assert logger.version == 0
    assert logger.log_dir == str(tmp_path / "exp" / "version_0")
