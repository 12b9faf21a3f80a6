"""Metrics as lines of JSON; what all loggers do is in the contract suite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fulmen.loggers import JSONLogger


def lines_of(logger):
    return [json.loads(line) for line in Path(logger.log_dir, "metrics.jsonl").read_text().splitlines()]


def run_of(logger):
    return json.loads(Path(logger.log_dir, "run.json").read_text())


def test_rows_are_strict_json_with_the_step_first(tmp_path):
    logger = JSONLogger(tmp_path, prefix="p")
    logger.log_metrics({"loss": torch.tensor(0.5), "bad": float("nan"), "low": float("-inf")}, step=3)
    logger.log_metrics({"loss": 1})
    logger.save()

    text = Path(logger.log_dir, "metrics.jsonl").read_text()
    assert text == '{"step": 3, "p-loss": 0.5, "p-bad": "NaN", "p-low": "-Infinity"}\n{"step": 4, "p-loss": 1}\n'


def test_run_file_has_nested_hyperparameters_and_the_status(tmp_path):
    logger = JSONLogger(tmp_path)
    logger.log_hyperparams({"a": {"lr": 0.5, "sizes": (1, 2)}, "act": torch.nn.ReLU, "n": None})
    logger.log_hyperparams({"w": torch.ones(2), "inf": float("inf")})
    logger.save()
    expected = {"a": {"lr": 0.5, "sizes": [1, 2]}, "act": "torch.nn.modules.activation.ReLU", "n": None}

    assert run_of(logger) == {"status": "running", "hyperparameters": {**expected, "w": [1.0, 1.0], "inf": "Infinity"}}
    logger.finalize("failed")
    assert run_of(logger)["status"] == "failed"


def test_file_that_was_cut_off_is_gone_on_with_on_a_new_line(tmp_path):
    first = JSONLogger(tmp_path, version=0)
    first.log_metrics({"x": 1.0}, 4)
    first.finalize("success")
    with Path(first.log_dir, "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x')
    second = JSONLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match="holds the metrics of an earlier run"):
        second.log_metrics({"x": 2.0})
    second.save()

    assert Path(first.log_dir, "metrics.jsonl").read_text().splitlines()[-1] == '{"step": 5, "x": 2.0}'


def test_earlier_attempt_is_kept_beside(tmp_path):
    first = JSONLogger(tmp_path, version=0)
    first.log_metrics({"x": 1.0}, 4)
    first.save()
    second = JSONLogger(tmp_path, version=0)
    second.begin_anew()
    second.log_metrics({"x": 2.0})
    second.save()

    assert lines_of(second) == [{"step": 0, "x": 2.0}]
    assert Path(second.log_dir, "metrics.jsonl.bak").read_text() == '{"step": 4, "x": 1.0}\n'


def test_program_that_ends_without_finalize_loses_no_rows(tmp_path):
    code = "import sys; from fulmen.loggers import JSONLogger; JSONLogger(sys.argv[1]).log_metrics({'x': 1.0})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

    assert (tmp_path / "lightning_logs/version_0/metrics.jsonl").read_text() == '{"step": 0, "x": 1.0}\n'
