from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Fabric
from fulmen.fabric.spike import SpikeDetection, TrainingSpikeException


def spikes(losses: list[float], path: Path, **settings: Any) -> list[int]:
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=SpikeDetection(exclude_batches_path=path, **settings))

    def is_spike(idx: int) -> bool:
        try:
            fabric.call("on_train_batch_end", fabric, loss=torch.tensor(losses[idx]), batch=None, batch_idx=idx)
        except TrainingSpikeException as error:
            return error.batch_idx == idx
        return False

    return [idx for idx in range(len(losses)) if is_spike(idx)]


@pytest.mark.parametrize(
    ("settings", "losses", "expected"),
    [
        ({}, [1, 1, 1, 1, 5], [4]),
        ({}, [1, 1, 1, float("nan"), 1], [3]),
        ({"finite_only": False}, [1, 1, 1, float("nan"), 1], []),
        ({}, [1, 2, 3, 4, 1], []),
        ({"window": 3, "warmup": 3}, [5, 4, 3, 2, 9, 1], [4]),
        ({"atol": 1.0, "rtol": None}, [1, 2, 3, 4, 1], [1, 2, 3]),
        ({"atol": 1.0}, [5, 4, 3, 2, 9, 1], []),
        ({"mode": "max", "rtol": None, "atol": 1.0}, [5, 5, 2], [2]),
        ({"warmup": 3}, [1, 9, 1], []),
    ],
    ids=str,
)
def test_losses_far_off_the_running_mean_are_spikes(
    settings: dict[str, Any], losses: list[float], expected: list[int], tmp_path: Path
) -> None:
    assert spikes([float(loss) for loss in losses], tmp_path / "skip.json", **settings) == expected


def test_the_batch_and_the_one_before_are_written(tmp_path: Path) -> None:
    spikes([1.0, 1.0, 9.0, 9.0], tmp_path / "skip.json")

    assert json.loads((tmp_path / "skip.json").read_text()) == [1, 2, 2, 3]


def test_the_state_goes_to_another_detection(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    one, other = SpikeDetection(atol=3.0), SpikeDetection(exclude_batches_path=tmp_path / "skip.json")
    for idx in range(3):
        one.on_train_batch_end(fabric, 1.0, None, idx)
    other.load_state_dict({**one.state_dict(), "bad_batches_path": str(tmp_path / "skip.json")})

    with pytest.raises(TrainingSpikeException, match="batch 3"):
        other.on_train_batch_end(fabric, 9.0, None, 3)
    assert (one.last_val, other.atol) == (1.0, 3.0)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'min' or 'max'"):
        SpikeDetection(mode="x")  # type: ignore[arg-type]
