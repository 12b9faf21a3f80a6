"""`examples/llm/train.py`: the same losses with every strategy, and what a person sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import run_python

PROGRAM = str(Path(__file__).parents[2] / "examples" / "llm" / "train.py")
SMALL = (
    *("--accelerator", "cpu", "--steps", "8", "--dim", "32", "--layers", "2", "--heads", "2", "--kv-heads", "2"),
    *("--context", "32", "--sampled", "20"),
)


def train(folder: Path, *arguments: str) -> str:
    """Run the example; return what it prints."""
    result = run_python("-W", "ignore", PROGRAM, *SMALL, "--out", str(folder), *arguments, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    return result.stdout


def losses(printed: str) -> list[float]:
    """The losses in the lines of validations."""
    return [float(each) for each in re.findall(r"val (\d\.\d+)", printed)]


def test_a_small_model_trains_and_writes_text(tmp_path: Path) -> None:
    printed = train(tmp_path, "--batch-size", "4")

    assert len(losses(printed)) == 8
    assert losses(printed)[-1] < losses(printed)[0]
    assert "nats a byte" in printed
    assert "class Connection:" in printed  # a prompt, with what the model makes of it
    assert (tmp_path / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_every_strategy_gives_the_losses_of_one_device_and_lora_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    alone = losses(train(tmp_path / "alone", "--batch-size", "4"))
    for name, ranks, arguments in (
        ("ddp", 2, ("--strategy", "ddp", "--devices", "2")),
        ("fsdp", 2, ("--strategy", "fsdp", "--devices", "2", "--sharded", "--checkpointing")),
        ("2d", 2, ("--strategy", "2d", "--devices", "4")),
    ):
        printed = train(tmp_path / name, "--batch-size", str(4 // ranks), *arguments)
        assert losses(printed) == pytest.approx(alone, abs=2e-3), name

    for name in ("alone", "fsdp"):
        printed = train(tmp_path / name, "--batch-size", "4", "--lora", str(tmp_path / name / "last.ckpt"))
        before, after = map(float, re.findall(r"before (\d\.\d+), (\d\.\d+) nats", printed)[0])
        assert after < before
