from __future__ import annotations

import logging
import math

import pytest
import torch

from fulmen.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from fulmen.callbacks.lambda_function import LambdaCallback
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.utilities.exceptions import MisconfigurationException


@pytest.fixture
def stop_with(quiet_trainer, model_class):
    """Train with scripted losses; return the callback and the number of epochs."""

    def run(losses, *, trainer_arguments=None, **arguments):
        stopping = EarlyStopping("val_loss", **arguments)
        settings = {"max_epochs": len(losses), "enable_checkpointing": False, **(trainer_arguments or {})}
        trainer = quiet_trainer(stopping, **settings)
        trainer.fit(model_class(losses))
        return stopping, trainer.current_epoch

    return run


@pytest.mark.parametrize(
    ("losses", "arguments", "epochs", "wait", "best", "reason"),
    [
        ([3.0, 2.0, 2.0, 2.0, 2.0, 2.0], {}, 5, 3, 2.0, EarlyStoppingReason.PATIENCE_EXHAUSTED),
        ([3.0, 2.0, 2.0, 2.0], {"patience": 0}, 3, 1, 2.0, EarlyStoppingReason.PATIENCE_EXHAUSTED),
        ([3.0, 2.8, 2.6], {"patience": 1, "min_delta": 0.5}, 2, 1, 3.0, EarlyStoppingReason.PATIENCE_EXHAUSTED),
        ([3.0, math.nan, 2.0], {}, 2, 0, 3.0, EarlyStoppingReason.NON_FINITE_METRIC),
        ([3.0, math.nan, 2.0], {"check_finite": False}, 3, 0, 2.0, EarlyStoppingReason.NOT_STOPPED),
        ([3.0, 2.0, 1.0], {"stopping_threshold": 2.1}, 2, 0, 3.0, EarlyStoppingReason.STOPPING_THRESHOLD),
        ([3.0, 2.0, 2.0], {"stopping_threshold": 2.0}, 3, 1, 2.0, EarlyStoppingReason.NOT_STOPPED),
        ([3.0, 2.0, 5.0], {"divergence_threshold": 4.0}, 3, 0, 2.0, EarlyStoppingReason.DIVERGENCE_THRESHOLD),
        ([1.0, 2.0, 1.0], {"mode": "max", "patience": 1}, 3, 1, 2.0, EarlyStoppingReason.PATIENCE_EXHAUSTED),
        (
            [1.0, 2.0, 0.0],
            {"mode": "max", "divergence_threshold": 0.5},
            3,
            0,
            2.0,
            EarlyStoppingReason.DIVERGENCE_THRESHOLD,
        ),
    ],
)
def test_reasons_to_stop(stop_with, losses, arguments, epochs, wait, best, reason):
    stopping, trained = stop_with(losses, **arguments)

    assert trained == epochs
    assert stopping.wait_count == wait
    assert float(stopping.best_score) == best
    assert stopping.stopping_reason is reason
    assert stopping.stopped_epoch == (0 if reason is EarlyStoppingReason.NOT_STOPPED else epochs - 1)


@pytest.mark.parametrize(
    ("losses", "arguments", "part"),
    [
        ([3.0, 1.0], {"stopping_threshold": 2.0}, "val_loss = 1.0 < 2.0"),
        ([3.0, 5.0], {"divergence_threshold": 4.0}, "val_loss = 5.0 > 4.0"),
        ([3.0, 5.0], {"mode": "max", "stopping_threshold": 4.0}, "val_loss = 5.0 > 4.0"),
        ([3.0, 0.0], {"mode": "max", "divergence_threshold": 0.5}, "val_loss = 0.0 < 0.5"),
    ],
)
def test_messages_show_the_comparison_that_holds(stop_with, losses, arguments, part):
    stopping, _ = stop_with(losses, **arguments)

    assert part in stopping.stopping_reason_message


def test_why_it_stopped_is_logged(stop_with, caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        stop_with([1.0, 1.0], patience=1)

    assert "did not improve in the last 1 checks" in caplog.text


def test_checks_happen_at_each_validation(stop_with):
    arguments = {"max_epochs": 1, "val_check_interval": 1}
    stopping, _ = stop_with([4.0, 3.0, 2.0, 1.0], trainer_arguments=arguments)

    assert float(stopping.best_score) == 1.0


def test_time_between_validations_is_understood(stop_with):
    stopping, epochs = stop_with([1.0], trainer_arguments={"max_epochs": 2, "val_check_interval": "00:01:00:00"})

    assert epochs == 2
    assert stopping.wait_count == 0


def test_training_metric_is_checked_although_validation_is_rare_and_absent(quiet_trainer, model_class):
    stopping = EarlyStopping("epoch_loss", divergence_threshold=-1.0)
    trainer = quiet_trainer(stopping, enable_checkpointing=False, check_val_every_n_epoch=2, limit_val_batches=0)
    trainer.fit(model_class())

    assert trainer.current_epoch == 1


def test_missing_metric_is_an_error(quiet_trainer, model_class):
    with pytest.raises(RuntimeError, match="Did you mean 'val_loss'"):
        quiet_trainer(EarlyStopping("val_los"), enable_checkpointing=False).fit(model_class())


def test_missing_metric_is_passed_over_when_not_strict(quiet_trainer, model_class):
    trainer = quiet_trainer(EarlyStopping("nothing", strict=False), enable_checkpointing=False)
    trainer.fit(model_class())

    assert trainer.current_epoch == 3


def test_missing_metric_warns_when_verbose(quiet_trainer, model_class):
    trainer = quiet_trainer(EarlyStopping("nothing", strict=False, verbose=True), enable_checkpointing=False)
    with pytest.warns(RuntimeWarning, match="not available"):
        trainer.fit(model_class())


def test_unknown_mode_is_refused():
    with pytest.raises(MisconfigurationException, match="mode"):
        EarlyStopping("v", mode="best")


def test_attributes_are_those_of_lightning():
    assert EarlyStopping("v", min_delta=0.1).min_delta == -0.1
    assert EarlyStopping("v", min_delta=-0.1, mode="max").min_delta == -0.1
    assert EarlyStopping("v", mode="max").monitor_op is torch.gt
    assert EarlyStopping("v", mode="max").state_key == "EarlyStopping{'monitor': 'v', 'mode': 'max'}"
    assert set(EarlyStopping("v").state_dict()) == {
        "wait_count",
        "stopped_epoch",
        "best_score",
        "patience",
        "stopping_reason",
        "stopping_reason_message",
    }


def test_resume_keeps_a_changed_patience():
    state = {"wait_count": 2, "stopped_epoch": 0, "best_score": torch.tensor(1.0), "patience": 3}
    stopping = EarlyStopping("v", patience=10)
    stopping.load_state_dict(state)

    assert stopping.patience == 10
    assert stopping.wait_count == 2


def test_resumed_run_counts_on(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    quiet_trainer(EarlyStopping("val_loss"), checkpoint, max_epochs=3).fit(model_class([1.0]))
    stopping = EarlyStopping("val_loss")
    trainer = quiet_trainer(stopping, ModelCheckpoint(tmp_path), max_epochs=9)
    trainer.fit(model_class([1.0]), ckpt_path=checkpoint.best_model_path)

    assert trainer.current_epoch == 4
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_no_check_before_start_from_epoch(stop_with):
    stopping, epochs = stop_with([1.0, 9.0, 8.0, 9.0, 9.0], start_from_epoch=2, patience=2)

    assert epochs == 5
    assert float(stopping.best_score) == 8.0


def weights_by_epoch(seen):
    def remember(trainer, pl_module):
        seen.append(pl_module.layer.weight.detach().clone())

    return LambdaCallback(on_train_epoch_end=remember)


def test_best_weights_are_restored_and_the_last_checkpoint_keeps_the_latest(quiet_trainer, model_class, tmp_path):
    seen: list[torch.Tensor] = []
    stopping = EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    model = model_class([3.0, 1.0, 2.0, 2.0])
    quiet_trainer(weights_by_epoch(seen), stopping, checkpoint, max_epochs=9).fit(model)

    assert len(seen) == 4
    assert torch.equal(model.layer.weight, seen[1])
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["state_dict"]["layer.weight"]
    assert torch.equal(saved, seen[3])


def test_weights_that_reach_the_goal_are_kept(quiet_trainer, model_class):
    seen: list[torch.Tensor] = []
    stopping = EarlyStopping("val_loss", stopping_threshold=1.5, restore_best_weights=True)
    model = model_class([3.0, 1.0])
    quiet_trainer(weights_by_epoch(seen), stopping, enable_checkpointing=False).fit(model)

    assert torch.equal(model.layer.weight, seen[1])


def test_best_weights_survive_a_resume(quiet_trainer, model_class, tmp_path):
    seen: list[torch.Tensor] = []
    checkpoint = ModelCheckpoint(tmp_path)
    first = EarlyStopping("val_loss", restore_best_weights=True)
    quiet_trainer(weights_by_epoch(seen), first, checkpoint, max_epochs=2).fit(model_class([1.0, 2.0]))
    model = model_class([2.0])
    second = EarlyStopping("val_loss", restore_best_weights=True)
    trainer = quiet_trainer(second, ModelCheckpoint(tmp_path), max_epochs=3)
    trainer.fit(model, ckpt_path=checkpoint.best_model_path)

    assert torch.equal(model.layer.weight, seen[0])


def test_best_weights_of_another_module_are_not_restored(quiet_trainer, model_class):
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    arguments = {"max_epochs": 1, "enable_checkpointing": False}
    first, second = model_class([1.0]), model_class([2.0])
    quiet_trainer(stopping, **arguments).fit(first)
    quiet_trainer(stopping, **arguments).fit(second)

    assert not torch.equal(first.layer.weight, second.layer.weight)
