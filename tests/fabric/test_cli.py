from __future__ import annotations

import json
from pathlib import Path

import pytest

from fulmen.fabric.cli import read_arguments
from tests.support import run_python

SHOW = """
import json, os, sys
print(json.dumps([sys.argv[1:], {key: value for key, value in os.environ.items() if key.startswith("LT_")}]))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "show.py"
    path.write_text(SHOW)
    return str(path)


def test_help_comes_without_torch() -> None:
    code = """
import sys
from fulmen.cli import main
try:
    main({})
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    for arguments in (["--help"], ["run", "--help"], ["--version"]):
        result = run_python("-c", code.format(arguments))
        assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_options_stand_before_or_after_the_script(script: str) -> None:
    before, rest = read_arguments(["--devices=2", script, "--lr", "0.1", "x"])
    after, same_rest = read_arguments([script, "--lr", "0.1", "x", "--devices", "2"])

    assert before == after
    assert (before.devices, before.script, before.num_nodes, before.main_port) == ("2", script, 1, 29400)
    assert rest == same_rest == ["--lr", "0.1", "x"]


def test_what_follows_two_dashes_is_the_scripts(script: str) -> None:
    options, rest = read_arguments(["--num_nodes", "2", script, "a", "--", "--devices", "3"])

    assert (options.devices, options.num_nodes) == ("1", 2)
    assert rest == ["a", "--devices", "3"]


def test_abbreviations_are_left_to_the_script(script: str) -> None:
    assert read_arguments([script, "--dev", "2"])[1] == ["--dev", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "'nowhere.py' does not exist"),
        (["--accelerator=bad", "x.py"], "invalid choice: 'bad'"),
        (["--precision=8", "x.py"], "invalid choice: '8'"),
        ([], "required: SCRIPT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(arguments)

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_script_gets_settings_and_arguments(script: str) -> None:
    options = ["--accelerator=cpu", "--devices=1", "--precision=bf16-true", "--main-port=0", "--strategy=ddp"]
    result = run_python("-m", "fulmen.cli", "run", *options, script, "--lr", "0.1")

    assert json.loads(result.stdout.splitlines()[-1]) == [
        ["--lr", "0.1"],
        {
            "LT_ACCELERATOR": "cpu",
            "LT_CLI_USED": "1",
            "LT_DEVICES": "1",
            "LT_NUM_NODES": "1",
            "LT_PRECISION": "bf16-true",
            "LT_STRATEGY": "ddp",
        },
    ], result.stderr


def test_what_the_machine_cannot_do_ends_with_a_message(script: str) -> None:
    spawned = run_python("-m", "fulmen.cli", "run", "--strategy=ddp_spawn", script)
    counted = run_python("-m", "fulmen.cli", "run", "--accelerator=cpu", "--devices=-1", script)

    assert (spawned.returncode, counted.returncode) == (2, 2)
    assert "--strategy=ddp_spawn is not one of" in spawned.stderr
    assert "--devices=-1" in counted.stderr


def test_an_unknown_command_shows_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    from fulmen.cli import main

    with pytest.raises(SystemExit):
        main(["fly"])
    assert "no command 'fly'" in capsys.readouterr().err
    main([])
    assert "run " in capsys.readouterr().out
