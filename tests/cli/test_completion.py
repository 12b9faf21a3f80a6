"""`fulmen completion`: the scripts, and what bash completes by them when a person presses TAB."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.cli.command import COMMANDS

_PATIENCE_S = 60


def typed_in_bash(folder: Path, *lines: str) -> str:
    """Type lines into an interactive bash; a tab character is the key TAB. Returns what stands on the terminal."""
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=follower, stdout=follower, stderr=follower, cwd=folder,
        env={**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "HISTFILE": os.devnull}, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    output = b""
    deadline = time.monotonic() + _PATIENCE_S
    os.write(leader, "\n".join([*lines, "exit", ""]).encode())
    while time.monotonic() < deadline and (shell.poll() is None or select.select([leader], [], [], 0)[0]):
        if select.select([leader], [], [], 0.1)[0]:
            try:
                output += os.read(leader, 4096)
            except OSError:  # Linux: the other end is closed
                break
    if shell.poll() is None:
        shell.kill()
    shell.wait()
    os.close(leader)
    return output.decode(errors="replace")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_and_files(fulmen, tmp_path) -> None:
    script = fulmen("completion", "bash")
    (tmp_path / "fulmen.bash").write_text(script.out)
    (tmp_path / "latest.ckpt").touch()
    (tmp_path / "runs").mkdir()
    shown = typed_in_bash(
        tmp_path,
        "source fulmen.bash; fulmen() { printf '<%s>' \"$@\"; echo; }",
        "fulmen insp\t--js\tlate\t",
        "fulmen convert late\tnew.ckpt --to safe\t",
        "fulmen fit --trainer.max_ep\t3 --optimizer Adag\t--trainer.strategy ddp_sp\t",
        "fulmen fit --trainer.callbacks+ EarlyS\t--config late\t",
        "fulmen report ru\t",
        "fulmen comp\tba\t",
    )

    assert script.code == 0, script.err
    assert "<inspect><--json><latest.ckpt>" in shown
    assert "<convert><latest.ckpt><new.ckpt><--to><safetensors>" in shown
    assert "<fit><--trainer.max_epochs><3><--optimizer><Adagrad><--trainer.strategy><ddp_spawn" in shown
    assert "<fit><--trainer.callbacks+><EarlyStopping><--config><latest.ckpt>" in shown
    assert "<report><runs" in shown
    assert "<completion><bash>" in shown


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_with_all_commands(fulmen, shell) -> None:
    script = fulmen("completion", shell)

    assert script.code == 0, script.err
    assert all(name in script.out for name in COMMANDS)
    assert "max_epochs" in script.out


def test_without_the_package_it_says_what_to_install(fulmen, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    ended = fulmen("completion", "bash")

    assert ended.code == 1
    assert "pip install 'fulmen[cli]'" in ended.err
