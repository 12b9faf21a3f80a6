"""What a person sees for command lines of `fulmen`, right and wrong ones: the exit code, and part of what is printed.

Those of programs with a `LightningCLI` are in `lightning_cli/test_command_lines.py`.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

OK, FAILED, WRONG = 0, 1, 2

# line (CKPT stands for a trained checkpoint), exit code, what is printed
LINES: list[tuple[str, int, list[str]]] = [
    # ---- the command itself
    ("", OK, ["usage: fulmen COMMAND", "fit ", "doctor"]),
    ("--version", OK, ["fulmen 0."]),
    ("help inspect", OK, ["usage: fulmen inspect"]),
    ("inspekt CKPT", WRONG, ["there is no command 'inspekt'. Did you mean `inspect`?", "usage: fulmen COMMAND"]),
    ("--versoin", WRONG, ["Did you mean `--version`?"]),
    ("train", WRONG, ["there is no command 'train'."]),
    # ---- fit, validate, test, predict
    ("fit", OK, ["usage: fulmen fit --model CLASS", "--optimizer CLASS", "--help-all"]),
    ("test --help", OK, ["usage: fulmen test", "checkpoint to load weights from"]),
    ("predict -h", OK, ["usage: fulmen predict", "fulmen predict --model my_package.Net"]),
    ("fit --model nowhere.Net", WRONG, ["nowhere"]),
    ("fit --model fulmen.demos.BoringModel --trainer.max_epochss 1", WRONG, ["Did you mean 'trainer.max_epochs'?"]),
    ("fit --model fulmen.demos.BoringModel --trainer.max_epochs soon", WRONG, ["trainer.max_epochs", "soon"]),
    ("fit --model fulmen.demos.BoringModel --trainer.strategy dpp", WRONG, ["'dpp'"]),
    ("fit --config nowhere.yaml", WRONG, ["nowhere.yaml"]),
    ("fit --model fulmen.demos.BoringModel --print_config", OK, ["class_path: fulmen.demos", "max_epochs: null"]),
    ("validate --trainer.max_epochs 1", WRONG, ["model"]),
    # ---- run
    ("run --help", OK, ["usage: fulmen run", "--devices DEVICES"]),
    ("run", WRONG, ["required: SCRIPT"]),
    ("run nowhere.py", WRONG, ["the script 'nowhere.py' does not exist"]),
    ("run script.py --accelerator gpuu", WRONG, ["invalid choice: 'gpuu'"]),
    ("run script.py --accelerator cpu --devices none", WRONG, ["--devices=none"]),
    ("run script.py --accelerator cpu --strategy ddp_spawn", WRONG, ["--strategy=ddp_spawn is not one of"]),
    # ---- submit
    ("submit --dry-run script.py --lr 0.1", OK, ["#!/bin/bash", "script.py --lr 0.1"]),
    ("submit --dry-run --gpus a100:4 --time 8h script.py", OK, ["#SBATCH --gpus-per-node=a100:4", "08:00:00"]),
    ("submit", WRONG, ["which script?"]),
    ("submit nowhere.py", WRONG, ["the script 'nowhere.py' does not exist"]),
    ("submit --nodes 0 script.py", WRONG, ["--nodes=0: it is 1 or more"]),
    ("submit --gpus many script.py", WRONG, ["--gpus=many: write a number"]),
    ("submit --time soon script.py", WRONG, ["--time=soon"]),
    ("submit --env A script.py", WRONG, ["--env=A: write NAME=VALUE"]),
    ("submit --gpus 1 --tasks 2 script.py", WRONG, ["--gpus and --tasks exclude each other"]),
    ("submit --sbatch --nodes=2 script.py", WRONG, ["this command has an option for it: --nodes"]),
    # ---- inspect
    ("inspect CKPT", OK, ["checkpoint of fulmen", "epoch"]),
    ("inspect CKPT --quick", OK, ["checkpoint of fulmen"]),
    ("inspect CKPT --json", OK, ['"health"']),
    ("inspect CKPT --all", OK, ["head.weight"]),
    ("inspect nowhere.ckpt", FAILED, ["there is no file or folder 'nowhere.ckpt'"]),
    ("inspect text.ckpt", FAILED, ["unreadable"]),
    ("inspect CKPT --depth 0", WRONG, ["--depth=0 groups nothing"]),
    ("inspect CKPT --depth two", WRONG, ["invalid int value: 'two'"]),
    ("inspect CKPT --key nowhere", FAILED, ["nowhere"]),
    ("inspect", WRONG, ["required: CKPT"]),
    # ---- convert
    ("convert CKPT weights.pt", OK, ["weights.pt"]),
    ("convert CKPT model.safetensors --dtype bf16", OK, ["model.safetensors"]),
    ("convert CKPT text.ckpt", FAILED, ["text.ckpt", "--overwrite"]),
    ("convert CKPT weights.xyz", FAILED, ["--to"]),
    ("convert nowhere.ckpt weights.pt", FAILED, ["nowhere.ckpt"]),
    ("convert CKPT weights.pt --dtype bfloat", WRONG, ["'bfloat' is none of float32"]),
    ("convert CKPT weights.pt --to safetensor", WRONG, ["Did you mean `safetensors`?"]),
    ("convert CKPT", WRONG, ["required: OUT"]),
    # ---- consolidate
    ("consolidate nowhere", FAILED, ["nowhere"]),
    ("consolidate .", FAILED, [".metadata"]),
    ("consolidate", WRONG, ["required: checkpoint_folder"]),
    # ---- report
    ("report nowhere", FAILED, ["nowhere"]),
    ("report", WRONG, ["required: FOLDER"]),
    ("report . --otput x.html", WRONG, ["Did you mean `--output`?"]),
    # ---- doctor, events, completion
    ("doctor --no-test", OK, ["versions", "devices", "findings", "nothing was tried"]),
    ("doctor --no-test --json", OK, ['"is_well": true']),
    ("doctor now", WRONG, ["the argument `now` is one too many"]),
    ("events", WRONG, ["which script?"]),
    ("events nowhere.py", WRONG, ["there is no file 'nowhere.py'"]),
    ("events script.py", FAILED, ["Trainer"]),
    ("completion", WRONG, ["required: SHELL"]),
    ("completion bsh", WRONG, ["Did you mean `bash`?"]),
]  # fmt: skip


def test_the_list_is_long_and_names_each_line_once() -> None:
    lines = [line for line, _, _ in LINES]

    assert len(set(lines)) == len(lines) > 60


@pytest.mark.parametrize(("line", "code", "printed"), LINES, ids=[line or "nothing" for line, _, _ in LINES])
def test_command_line_prints(
    fulmen: Any, trained: Path, tmp_path: Path, line: str, code: int, printed: list[str]
) -> None:
    shutil.copy(trained, tmp_path / "trained.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "script.py").write_text("print('no training here')\n")
    ended = fulmen(*shlex.split(line.replace("CKPT", "trained.ckpt")), columns=200)
    shown, other = (ended.out, ended.err) if code == OK else (ended.out + ended.err, "")

    assert ended.code == code, ended
    assert [part for part in printed if part not in shown] == [], ended
    assert "Traceback" not in shown + other
