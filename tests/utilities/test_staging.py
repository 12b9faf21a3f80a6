"""Hidden files beside a target: those of the dead go, those of the living stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.plugins.io import TorchCheckpointIO
from fulmen.utilities import staging
from fulmen.utilities.files import atomic_open, atomic_symlink, ensure_writable, load_file
from fulmen.utilities.staging import LEFTOVER_AGE_S, create_beside, name_beside, put_in_place, remove_leftovers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks that end with a process")

DYING_WRITER = """
import os, signal, sys
from fulmen.utilities.staging import create_beside, name_beside
file, _ = create_beside(sys.argv[1], "wb")
file.write(b"half")
file.flush()
os.symlink("somewhere", name_beside(sys.argv[1]))
if sys.argv[2] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
print("writing", flush=True)
sys.stdin.read()
"""


def writer(path: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DYING_WRITER, str(path), what]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def of_another_machine(path: Path) -> Path:
    name = name_beside(str(path))
    other = re.sub(r"\.[0-9a-f]{8}-", ".01234567-", name)
    assert other != name
    return Path(other)


def make_old(path: Path) -> None:
    long_ago = time.time() - LEFTOVER_AGE_S - 10
    os.utime(path, (long_ago, long_ago), follow_symlinks=False)


def test_what_a_killed_writer_left_is_removed_at_the_start_of_the_next_run(tmp_path):
    with writer(tmp_path / "a.ckpt", "dies") as process:
        process.wait(60)
    (tmp_path / ".user.tmp").touch()
    (tmp_path / "a.ckpt.01234567-01234567.tmp").touch()
    assert len(hidden(tmp_path)) == 3

    ensure_writable(tmp_path)

    assert hidden(tmp_path) == [".user.tmp"]
    assert (tmp_path / "a.ckpt.01234567-01234567.tmp").exists()


def test_the_first_save_into_a_folder_removes_it_too(tmp_path):
    with writer(tmp_path / "a.ckpt", "dies") as process:
        process.wait(60)

    TorchCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "b.ckpt")

    assert os.listdir(tmp_path) == ["b.ckpt"]


def test_the_file_of_a_living_writer_stays(tmp_path):
    with writer(tmp_path / "a.ckpt", "lives") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        files = [name for name in hidden(tmp_path) if not (tmp_path / name).is_symlink()]
        for name in files:
            make_old(tmp_path / name)

        remove_leftovers(str(tmp_path))
        left = hidden(tmp_path)
        process.communicate("")

    assert left == files
    assert len(files) == 1


def test_the_file_that_another_thread_of_this_process_writes_stays(tmp_path):
    with atomic_open(tmp_path / "a.csv", "w") as file:
        file.write("half")

        assert remove_leftovers(str(tmp_path)) == []

    assert (tmp_path / "a.csv").read_text() == "half"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_comes_from_another_machine_goes_when_it_is_old(kind, tmp_path):
    other = of_another_machine(tmp_path / "a.ckpt")
    other.touch() if kind == "file" else other.symlink_to("nowhere")

    assert remove_leftovers(str(tmp_path)) == []
    make_old(other)
    assert remove_leftovers(str(tmp_path)) == [str(other)]


def test_without_locks_only_age_counts(tmp_path, monkeypatch):
    file, name = create_beside(str(tmp_path / "a.ckpt"), "wb")
    file.close()
    monkeypatch.setattr(staging, "fcntl", None)

    assert remove_leftovers(str(tmp_path)) == []
    make_old(Path(name))
    assert remove_leftovers(str(tmp_path)) == [name]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert remove_leftovers(str(tmp_path / "none")) == []


def test_a_link_that_a_starting_run_took_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    (tmp_path / "a.ckpt").write_text("a")
    replace = os.replace
    removed: list[str] = []

    def meets_a_starting_run(source, target):
        if not removed:
            removed.extend(remove_leftovers(str(tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", meets_a_starting_run)
    atomic_symlink(tmp_path / "a.ckpt", tmp_path / "last.ckpt")

    assert len(removed) == 1
    assert (tmp_path / "last.ckpt").read_text() == "a"
    assert hidden(tmp_path) == []


def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock = staging._lock
    removed: list[bool] = []

    def loses_the_first_file(descriptor):
        if not removed:
            removed.append(True)
            for name in hidden(tmp_path):
                (tmp_path / name).unlink()
        return lock(descriptor)

    monkeypatch.setattr(staging, "_lock", loses_the_first_file)
    TorchCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "a.ckpt")

    assert removed
    assert load_file(tmp_path / "a.ckpt") == {"a": 1}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced(can_exchange, tmp_path, monkeypatch):
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchanged", lambda first, second: False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "shard").touch()
    (tmp_path / "new").touch()

    put_in_place(str(tmp_path / "new"), str(tmp_path / "a"))

    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_while_a_folder_is_replaced_its_name_is_never_missing(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "new").touch()
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("the name is missing between two renames"))

    put_in_place(str(tmp_path / "new"), str(tmp_path / "a"))

    assert (tmp_path / "a").is_file()
