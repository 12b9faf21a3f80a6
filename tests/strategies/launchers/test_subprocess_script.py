from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from fulmen.strategies.launchers.launcher import threads_per_process
from fulmen.strategies.launchers.subprocess_script import SubprocessScriptLauncher, command_of_this_program
from tests.strategies.launchers.stand_in import StandIn
from tests.support import run_python

PYTHON = sys.executable


def command(monkeypatch, orig, argv, *, file="/home/me/train.py", spec=None):
    monkeypatch.setattr(sys, "orig_argv", ["python", *orig])
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=file, __spec__=spec))
    words, folder = command_of_this_program()
    assert folder is None
    assert words[0] == PYTHON
    return words[1:]


MODULE = SimpleNamespace(name="pkg.train")


@pytest.mark.parametrize(
    ("orig", "argv", "spec", "expected"),
    [
        (["train.py", "--lr", "1"], ["train.py", "--lr", "1"], None, ["/home/me/train.py", "--lr", "1"]),
        (
            ["-W", "ignore", "-Xdev", "-Ou", "-X", "utf8", "train.py", "-m"],
            ["train.py", "-m"],
            None,
            ["-W", "ignore", "-Xdev", "-Ou", "-X", "utf8", "/home/me/train.py", "-m"],
        ),
        (["-m", "pkg.train", "a"], ["/home/me/pkg/train.py", "a"], MODULE, ["-m", "pkg.train", "a"]),
        (["-um", "pkg.train", "a"], ["/home/me/pkg/train.py", "a"], MODULE, ["-u", "-m", "pkg.train", "a"]),
        (["-mpkg.train"], ["/home/me/pkg/train.py"], MODULE, ["-m", "pkg.train"]),
        # arguments that the program changed
        (["train.py", "a"], ["train.py", "b", "c"], None, ["/home/me/train.py", "b", "c"]),
        # tools that run a script
        (["-m", "tool", "run", "train.py", "a"], ["train.py", "a"], None, ["-m", "tool", "run", "train.py", "a"]),
        (["-m", "tool", "run", "train.py", "a"], ["train.py", "b"], None, ["-m", "tool", "run", "train.py", "b"]),
        (["-m", "pdb", "train.py", "a"], ["train.py", "a"], None, ["/home/me/train.py", "a"]),
        (["/opt/debugpy/launcher", "7", "--", "train.py"], ["train.py"], None, ["/home/me/train.py"]),
    ],
)
def test_program_is_run_again_as_it_was_started(monkeypatch, orig, argv, spec, expected):
    assert command(monkeypatch, orig, argv, spec=spec) == expected


@pytest.mark.parametrize(
    ("orig", "argv", "file"), [(["-c", "pass"], ["-c"], None), ([], [""], None), (["-"], ["-"], None)]
)
def test_program_without_a_script_is_refused(monkeypatch, orig, argv, file):
    with pytest.raises(RuntimeError, match="ddp_notebook"):
        command(monkeypatch, orig, argv, file=file)


# prints, for each of several command lines, the one that starts process 3
HYDRA_PROGRAM = """
import json, sys
import hydra
from fulmen.strategies.launchers.subprocess_script import command_of_this_program

@hydra.main(version_base="1.3", config_path=".", config_name="usual")
def show(config):
    words, folder = command_of_this_program(3)
    print("JSON", json.dumps([words[2:], folder]))

for line in json.loads(sys.argv[1]):
    sys.argv = [sys.argv[0], *line]
    sys.orig_argv = ["python", *sys.argv]
    show()
"""


def test_hydra_application_keeps_its_folder_and_gets_a_job_name(tmp_path):
    (tmp_path / "program.py").write_text(HYDRA_PROGRAM)
    for name in ("usual", "other"):
        (tmp_path / f"{name}.yaml").write_text("lr: 0")
    lines = [
        ["lr=1", 'hydra.run.dir="it\'s"', "hydra/job_logging=none"],
        ["lr=1", "hydra.run.dir=out", "-cn", "other"],
        ["lr=1,2", "hydra.sweep.dir=all", "-m"],
    ]
    result = run_python("program.py", json.dumps(lines), cwd=tmp_path)
    found = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("JSON")]
    job = ["hydra.job.name=train_ddp_process_3", "hydra.output_subdir=null"]

    assert result.returncode == 0, result.stderr
    assert [folder for _, folder in found] == [str(tmp_path)] * 4
    assert found[0][0] == [*lines[0], f"hydra.run.dir='{tmp_path}/it\\'s'", *job]
    assert found[1][0] == ["lr=1", "hydra.run.dir=out", f"hydra.run.dir='{tmp_path}/out'", *job, "-cn", "other"]
    assert found[2][0] == [*lines[2][:2], f"hydra.sweep.dir='{tmp_path}/all'", *job, "-m"]
    assert found[3] == found[2]


def test_it_does_not_work_in_a_notebook():
    assert not SubprocessScriptLauncher(StandIn()).is_interactive_compatible


def test_processes_share_the_cores():
    assert threads_per_process(1) >= threads_per_process(2) >= threads_per_process(10_000) == 1
