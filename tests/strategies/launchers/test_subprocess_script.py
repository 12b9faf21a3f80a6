from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fulmen.strategies.launchers.launcher import threads_per_process
from fulmen.strategies.launchers.subprocess_script import SubprocessScriptLauncher, command_of_this_program
from tests.strategies.launchers.stand_in import StandIn

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


def test_hydra_application_keeps_its_folder_and_gets_a_job_name(monkeypatch):
    runtime = SimpleNamespace(output_dir="/out/it's")
    config = SimpleNamespace(initialized=lambda: True, get=lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "hydra", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "hydra.core", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "hydra.core.hydra_config", SimpleNamespace(HydraConfig=config))
    monkeypatch.setitem(sys.modules, "hydra.utils", SimpleNamespace(get_original_cwd=lambda: "/start"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "lr=1"])
    monkeypatch.setattr(sys, "argv", ["train.py", "lr=1"])
    words, folder = command_of_this_program(3)

    assert folder == "/start"
    assert words[-4:] == [
        "lr=1",
        "hydra.run.dir='/out/it\\'s'",
        "hydra.job.name=train_ddp_process_3",
        "hydra.output_subdir=null",
    ]


def test_it_does_not_work_in_a_notebook():
    assert not SubprocessScriptLauncher(StandIn()).is_interactive_compatible


def test_processes_share_the_cores():
    assert threads_per_process(1) >= threads_per_process(2) >= threads_per_process(10_000) == 1
