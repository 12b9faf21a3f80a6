from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from fulmen.callbacks import LambdaCallback, SpikeDetection
from fulmen.fabric.spike import TrainingSpikeException
from tests.callbacks.digits_reader import Reader, loader, stopped_by_signal, train


class Scripted(Reader):
    """Its loss jumps in some batches."""

    def __init__(self, jumps: dict[tuple[int, int], float]) -> None:
        super().__init__()
        self.jumps = jumps

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * self.jumps.get((self.trainer.current_epoch, batch_idx), 1.0)


def test_a_jump_ends_training_and_names_its_batches(tmp_path):
    with pytest.raises(TrainingSpikeException) as caught:
        train(tmp_path, SpikeDetection(exclude_batches_path=tmp_path / "bad.json"), model=Scripted({(0, 7): 50.0}))

    assert caught.value.batch_idx == 7
    assert json.loads((tmp_path / "bad.json").read_text()) == [6, 7]


def test_nothing_jumps_in_a_calm_run(tmp_path):
    trainer = train(tmp_path, SpikeDetection(exclude_batches_path=tmp_path), max_epochs=2)

    assert trainer.global_step == 40
    assert not (tmp_path / "skip_batches.json").exists()


def test_a_loss_that_is_not_finite_is_a_jump_unless_that_is_allowed(tmp_path):
    for finite_only, steps in ((True, 4), (False, 5)):
        model = Scripted({(0, 4): float("nan")})
        callback = SpikeDetection(exclude_batches_path=tmp_path, finite_only=finite_only)
        seen: list[int] = []
        note = LambdaCallback(on_train_batch_end=lambda *args, seen=seen: seen.append(args[-1]))
        ends = pytest.raises(TrainingSpikeException) if finite_only else nullcontext()
        with pytest.warns(RuntimeWarning, match="nan"), ends:
            train(tmp_path, callback, note, model=model, max_steps=5)

        assert len(seen) == steps


def test_batches_of_earlier_runs_stay_in_the_file_of_the_folder(tmp_path):
    for batch_idx in (9, 4):
        callback = SpikeDetection(exclude_batches_path=tmp_path / "new" / "folder")
        with pytest.raises(TrainingSpikeException):
            train(tmp_path, callback, model=Scripted({(0, batch_idx): 50.0}))

    assert json.loads((tmp_path / "new/folder/skip_batches.json").read_text()) == [8, 9, 3, 4]


def test_a_skipped_batch_is_not_judged(tmp_path):
    class Skips(Reader):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="returned None"):
        trainer = train(tmp_path, SpikeDetection(exclude_batches_path=tmp_path), model=Skips(), max_steps=4)

    assert trainer.global_step == 4


def test_a_loss_kept_back_in_manual_optimization_is_an_error(tmp_path):
    class Manual(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.raises(TypeError, match="found no loss in batch 0"):
        train(tmp_path, SpikeDetection(exclude_batches_path=tmp_path), model=Manual())


def test_a_run_resumed_after_a_signal_sees_the_same_jump(tmp_path):
    """Only a window that was kept can hold so many losses that the jump is none."""
    settings: dict[str, Any] = {"window": 20, "warmup": 0, "rtol": 0.5}

    def spikes(folder: Any, ckpt_path: str | None) -> SpikeDetection:
        callback = SpikeDetection(exclude_batches_path=folder, **settings)
        with pytest.raises(TrainingSpikeException):
            train(folder, callback, model=partial(Scripted, {(0, 15): 3.0}), ckpt_path=ckpt_path)
        return callback

    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    path = stopped_by_signal(
        tmp_path / "part",
        SpikeDetection(exclude_batches_path=tmp_path, **settings),
        batch_idx=6,
    )
    whole, resumed = spikes(tmp_path / "whole", None), spikes(tmp_path / "part", path)

    assert resumed.state_dict()["recent"] == whole.state_dict()["recent"]
    assert len(whole.state_dict()["recent"]) == 15
    assert resumed.bad_batches == whole.bad_batches == [14, 15]
    assert loader().batch_size == 32


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"window": 0}, ValueError), ({"warmup": -1}, ValueError), ({"atol": "x"}, ValueError), ({"rtol": -1}, ValueError),
     ({"exclude_batches_path": 3}, TypeError)],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        SpikeDetection(**arguments)
