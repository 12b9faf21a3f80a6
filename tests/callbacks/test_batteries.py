"""The figures that `examples/batteries.py` prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = """
import json, batteries
figures = batteries.main()
print("FIGURES", json.dumps(figures))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_callbacks_do_their_job_on_the_digits() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.split("FIGURES", 1)[1])
    pruning, ema, swa = (figures[name] for name in ("ModelPruning", "EMAWeightAveraging", "StochasticWeightAveraging"))
    distillation, finetuning = figures["KnowledgeDistillation"], figures["BackboneFinetuning"]

    assert pruning["share of zeros in the file"] == pytest.approx(0.5, abs=1e-3)
    assert pruning["test accuracy, pruned"] > 0.9
    assert ema["numbers that differ after a resume"] == 0
    assert ema["test accuracy, average"] > ema["test accuracy, last weights"]
    assert swa["test accuracy, average"] > swa["test accuracy, last weights"]
    assert distillation["test accuracy, distilled"] > distillation["test accuracy, alone"] + 0.02
    assert finetuning["first epoch in which the backbone changes"] == 3
    assert finetuning["its learning rate in epoch 3, as a share"] == pytest.approx(0.1)
    assert finetuning["its learning rate in epoch 4, as a share"] == pytest.approx(0.2)
