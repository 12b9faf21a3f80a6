"""The command itself: what there is, help, and words that are not known."""

from __future__ import annotations

import pytest

from tests.support import run_python

COMMANDS = ("fit", "validate", "test", "predict", "run", "submit", "inspect", "convert", "consolidate", "report",
            "plan", "doctor", "events", "completion")  # fmt: skip


def test_help_names_every_command_and_fits_80_columns(fulmen) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        ended = fulmen(*words)

        assert ended.code == 0
        assert all(f"\n  {name} " in ended.out for name in COMMANDS)
        assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "command", ["run", "submit", "inspect", "convert", "consolidate", "report", "doctor", "events", "completion"]
)
def test_each_command_explains_itself(fulmen, command) -> None:
    ended = fulmen(command, "--help")

    assert ended.code == 0
    assert ended.out.startswith(f"usage: fulmen {command}")
    assert fulmen("help", command) == ended
    assert max(map(len, ended.out.splitlines())) <= 90


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["inspekt"], "there is no command 'inspekt'. Did you mean `inspect`?"),
        (["convrt", "a", "b"], "Did you mean `convert`?"),
        (["--versoin"], "there is no option '--versoin'. Did you mean `--version`?"),
        (["xyzzy"], "there is no command 'xyzzy'.\n"),
        (["inspect", "x.ckpt", "--jsn"], "there is no option `--jsn`. Did you mean `--json`?"),
        (["inspect", "x.ckpt", "y.ckpt"], "the argument `y.ckpt` is one too many"),
        (["inspect"], "required: CKPT"),
        (["inspect", "x.ckpt", "--depth", "0"], "--depth=0 groups nothing"),
        (["doctor", "--no-tests"], "Did you mean `--no-test`?"),
        (["convert", "a", "b", "--dtype", "bfloat"], "'bfloat' is none of float32"),
        (["convert", "a", "b", "--too", "weights"], "Did you mean `--to`?"),
        (["submit", "--node", "2", "x.py"], "Did you mean `--nodes`?"),
        (["consolidate", "a", "--output-fil", "x"], "Did you mean `--output-file`?"),
        (["report", "a", "--outptu", "x"], "Did you mean `--output`?"),
        (["events"], "which script?"),
        (["events", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["events", "--al", "nowhere.py"], "Did you mean `--all`?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_end_with_a_message_that_names_the_nearest(fulmen, words, hint) -> None:
    ended = fulmen(*words)

    assert ended.code == 2
    assert hint in ended.err
    assert ended.out == ""


def test_help_of_all_commands_comes_without_torch() -> None:
    code = f"""
import contextlib, sys
from fulmen.cli import main
for words in ([], ["--help"], ["--version"], *([name, "--help"] for name in {COMMANDS})):
    with contextlib.suppress(SystemExit):
        main(words)
    print("loaded by", words, sorted({{"torch", "jsonargparse", "numpy"}} & set(sys.modules)))
"""
    result = run_python("-c", code)
    loaded = [line for line in result.stdout.splitlines() if line.startswith("loaded by")]

    assert len(loaded) == 3 + len(COMMANDS), result.stderr
    assert [line for line in loaded if not line.endswith("[]")] == []


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from fulmen.utilities.command_line import say\nfor _ in range(100_000): say('x' * 100)"
    result = run_python(
        "-c",
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.readline(); p.stdout.close(); print(p.stderr.read(), p.wait())",
    )

    assert result.stdout == "b'' 141\n"


@pytest.mark.slow
def test_the_installed_command_is_the_same(tmp_path) -> None:
    module = run_python("-m", "fulmen.cli", "--version")
    assert module.stdout.startswith("fulmen "), module.stderr
    missing = run_python("-m", "fulmen.cli", "inspect", "nowhere.ckpt", cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        1,
        "fulmen inspect: error: there is no file or folder 'nowhere.ckpt'\n",
    )
