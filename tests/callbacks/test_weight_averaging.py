from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen import Callback, Trainer
from fulmen.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.small_digits import BATCHES, Reader, SaveAt, differences, fit, seeded


def test_ema_is_the_average_that_one_computes_by_hand(tmp_path: Path) -> None:
    class ByHand(Callback):
        average: torch.Tensor | None = None

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            new = pl_module.head.weight.detach().clone()
            self.average = new if self.average is None else 0.9 * self.average + 0.1 * new

    by_hand, model = ByHand(), Reader()
    fit(model, tmp_path, EMAWeightAveraging(decay=0.9), by_hand)

    torch.testing.assert_close(model.head.weight.detach(), by_hand.average)


def test_each_validation_evaluates_the_average_and_training_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    averaged, plain = seeded(Reader), seeded(Reader)
    fit(averaged, tmp_path, EMAWeightAveraging(decay=0.5), num_sanity_val_steps=0)
    fit(plain, tmp_path, num_sanity_val_steps=0)

    assert averaged.losses == plain.losses
    assert not any(torch.equal(*pair) for pair in zip(averaged.evaluated, plain.evaluated, strict=True))
    assert torch.equal(averaged.evaluated[-1], averaged.head.weight)


@pytest.mark.parametrize(
    "start", [{"update_starting_at_step": 999}, {"update_starting_at_epoch": 99, "update_every_n_steps": 0}]
)
def test_a_start_that_never_comes_leaves_the_trained_weights_alone(start: Any, tmp_path: Path) -> None:
    averaged, plain = seeded(Reader), seeded(Reader)
    trainer = fit(averaged, tmp_path, EMAWeightAveraging(**start))
    fit(plain, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)

    assert differences(averaged.state_dict(), plain.state_dict()) == []
    assert all(map(torch.equal, averaged.evaluated, plain.evaluated))
    assert differences(saved["state_dict"], plain.state_dict()) == []
    assert saved["averaging_state"] == {"n_averaged": torch.tensor(0)}


def test_checkpoint_has_the_average_as_weights_and_the_trained_ones_beside_it(tmp_path: Path) -> None:
    plain = seeded(Reader)
    fit(plain, tmp_path, max_epochs=2)
    path = tmp_path / "saved.ckpt"
    model = seeded(Reader)
    ema = EMAWeightAveraging(decay=0.5)
    fit(model, tmp_path, ema, SaveAt("on_train_epoch_end", 2 * BATCHES, path), max_epochs=2)
    saved = torch.load(path, weights_only=True)

    assert differences(saved["current_model_state"], plain.state_dict()) == []
    assert differences(saved["state_dict"], model.state_dict()) == []
    assert saved["averaging_state"] == {"n_averaged": torch.tensor(2 * BATCHES)}
    assert saved["callbacks"]["EMAWeightAveraging"] == {"latest_update_step": 2 * BATCHES}
    assert differences(Reader.load_from_checkpoint(path, weights_only=True).state_dict(), model.state_dict()) == []


def test_a_file_with_weights_only_has_the_average(tmp_path: Path) -> None:
    model = Reader()
    checkpoint = ModelCheckpoint(tmp_path / "files", save_weights_only=True)
    fit(model, tmp_path, EMAWeightAveraging(decay=0.5), checkpoint, enable_checkpointing=True)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)

    assert differences(saved["state_dict"], model.state_dict()) == []
    assert "current_model_state" not in saved


@pytest.mark.parametrize("use_buffers", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 3),
        ("on_train_batch_end", BATCHES),
        ("on_train_batch_end", 6),
        ("on_validation_end", BATCHES),
        ("on_train_epoch_end", 2 * BATCHES),
        ("on_train_epoch_end", 3 * BATCHES),
    ],
)
def test_a_resumed_run_is_the_same_run(hook: str, step: int, use_buffers: bool, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    whole, resumed = Reader(), seeded(Reader, seed=99)

    def ema() -> EMAWeightAveraging:
        return EMAWeightAveraging(use_buffers=use_buffers, decay=0.7, update_starting_at_step=2)

    trainer = fit(whole, tmp_path, ema(), SaveAt(hook, step, path))
    again = fit(resumed, tmp_path, ema(), ckpt_path=path)

    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []
    if step < 3 * BATCHES:
        assert again.callback_metrics == trainer.callback_metrics
    assert torch.equal(whole.evaluated[-1], whole.head.weight)


class Interrupts(Callback):
    """In the second validation: an error, or a signal, at its second batch."""

    def __init__(self, signum: int | None) -> None:
        self.signum = signum

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1 and args[3] == 1:
            if self.signum is None:
                raise ValueError("boom")
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [None, signal.SIGTERM])
def test_a_run_interrupted_inside_a_validation_resumes_bit_exactly(signum: int | None, tmp_path: Path) -> None:
    whole, broken, resumed = seeded(Reader), seeded(Reader), seeded(Reader, seed=99)
    fit(whole, tmp_path, EMAWeightAveraging(decay=0.7))
    with pytest.raises(BaseException, match="boom" if signum is None else "143"):
        fit(broken, tmp_path, EMAWeightAveraging(decay=0.7), Interrupts(signum), OnExceptionCheckpoint(tmp_path),
            ModelCheckpoint(tmp_path, save_top_k=0), enable_checkpointing=True)  # fmt: skip
    assert len(broken.evaluated) == 2 + BATCHES + 2  # left at once
    path = tmp_path / ("on_exception.ckpt" if signum is None else "interrupted.ckpt")
    fit(resumed, tmp_path, EMAWeightAveraging(decay=0.7), ModelCheckpoint(tmp_path, save_top_k=0), ckpt_path=path,
        enable_checkpointing=True)  # fmt: skip

    assert resumed.losses == whole.losses[2 * BATCHES :]
    assert all(map(torch.equal, resumed.evaluated, whole.evaluated[-2 * BATCHES :]))
    assert differences(resumed.state_dict(), whole.state_dict()) == []


def test_training_longer_from_the_last_file_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    whole, first, second = seeded(Reader), seeded(Reader), seeded(Reader, seed=99)
    fit(whole, tmp_path, EMAWeightAveraging(decay=0.7), max_epochs=4)
    trainer = fit(first, tmp_path, EMAWeightAveraging(decay=0.7), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "after_fit.ckpt")
    fit(second, tmp_path, EMAWeightAveraging(decay=0.7), max_epochs=4, ckpt_path=tmp_path / "after_fit.ckpt")

    assert second.losses == whole.losses[2 * BATCHES :]
    assert differences(second.state_dict(), whole.state_dict()) == []


def test_weight_averaging_is_the_mean_where_should_update_says_so(tmp_path: Path) -> None:
    class EveryEpoch(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None

    class Seen(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            weights.append(pl_module.head.weight.detach().clone())

    weights: list[torch.Tensor] = []
    model = Reader()
    fit(model, tmp_path, Seen(), EveryEpoch())

    torch.testing.assert_close(model.head.weight.detach(), torch.stack(weights).mean(0))


def test_accumulation_updates_once_a_step(tmp_path: Path) -> None:
    class Counts(EMAWeightAveraging):
        asked: list[int]

        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            if step_idx is not None:
                self.asked.append(step_idx)
            return super().should_update(step_idx, epoch_idx)

    ema = Counts()
    ema.asked = []
    fit(Reader(), tmp_path, ema, accumulate_grad_batches=2)

    assert ema.asked == list(range(3 * BATCHES // 2))


def test_schedules_are_those_of_lightning() -> None:
    every_third = EMAWeightAveraging(update_starting_at_step=4, update_every_n_steps=3)
    from_epoch = EMAWeightAveraging(update_starting_at_epoch=1)

    assert [every_third.should_update(step_idx=i) for i in range(8)] == [False] * 6 + [True, False]
    assert [from_epoch.should_update(epoch_idx=i) for i in range(3)] == [False, True, True]
    assert WeightAveraging().should_update(step_idx=0)
    assert not WeightAveraging().should_update(epoch_idx=0)


def test_early_stopping_restores_the_average_that_was_best(tmp_path: Path) -> None:
    model = Reader()
    stopping = EarlyStopping("val_loss", mode="max", patience=1, restore_best_weights=True)  # the first is best
    fit(model, tmp_path, EMAWeightAveraging(decay=0.5), stopping, num_sanity_val_steps=0)

    assert torch.equal(model.head.weight, model.evaluated[0])


def test_a_file_without_an_average_begins_anew_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    plain, model = Reader(), Reader()
    fit(plain, tmp_path, SaveAt("on_train_epoch_end", BATCHES, path))
    with pytest.warns(UserWarning, match="holds no average"):
        fit(model, tmp_path, EMAWeightAveraging(decay=0.5), ckpt_path=path)

    assert model.losses == plain.losses[BATCHES:]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"decay": 1.5}, ValueError, "decay=1.5"),
        ({"update_every_n_steps": 0}, ValueError, "would never update"),
        ({"update_every_n_steps": -1}, ValueError, "update_every_n_steps=-1"),
        ({"update_every_n_steps": 1.5}, ValueError, "must be an int"),
        ({"update_starting_at_step": "x"}, ValueError, "update_starting_at_step='x'"),
        ({"update_starting_at_epoch": -1}, ValueError, "update_starting_at_epoch=-1"),
        ({"decay": "x"}, ValueError, "decay='x'"),
        ({"device": "gpu?"}, MisconfigurationException, "no device that torch knows"),
        ({"avg_fn": max}, TypeError, "own `avg_fn`"),
        ({"decoy": 1}, TypeError, "decoy"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        EMAWeightAveraging(**arguments)


def test_two_averages_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="both `avg_fn`"):
        WeightAveraging(avg_fn=max, multi_avg_fn=max)


@pytest.mark.parametrize("other", [StochasticWeightAveraging(0.1), ModelPruning("l1_unstructured")])
def test_callbacks_that_would_disagree_about_the_weights_are_refused(other: Callback, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="Leave one of them out"):
        fit(Reader(), tmp_path, EMAWeightAveraging(), other)
