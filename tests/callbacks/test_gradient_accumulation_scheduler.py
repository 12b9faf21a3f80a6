from __future__ import annotations

import pytest

from fulmen.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.utilities.exceptions import MisconfigurationException


@pytest.mark.parametrize("scheduling", [{}, [1]])
def test_schedule_must_be_a_filled_dict(scheduling):
    with pytest.raises(TypeError, match="dict"):
        GradientAccumulationScheduler(scheduling)


@pytest.mark.parametrize("scheduling", [{0: 0}, {-1: 2}, {0.5: 1}, {0: 1.5}])
def test_epochs_and_factors_are_checked(scheduling):
    with pytest.raises(MisconfigurationException, match="should be an int"):
        GradientAccumulationScheduler(scheduling)


def test_factor_holds_until_the_next_entry():
    scheduler = GradientAccumulationScheduler({2: 3, 4: 1})

    assert [scheduler.get_accumulate_grad_batches(epoch) for epoch in range(6)] == [1, 1, 3, 3, 1, 1]
    assert scheduler.going_to_accumulate_grad_batches()
    assert scheduler.epochs == [0, 2, 4]


def test_optimizer_steps_follow_the_schedule(quiet_trainer, model_class):
    trainer = quiet_trainer(GradientAccumulationScheduler({1: 2, 2: 4}), enable_checkpointing=False)
    trainer.fit(model_class())

    assert trainer.global_step == 4 + 2 + 1


def test_trainer_can_fit_again(quiet_trainer, model_class):
    trainer = quiet_trainer(GradientAccumulationScheduler({0: 2}), enable_checkpointing=False, max_epochs=1)
    trainer.fit(model_class())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model_class())

    assert trainer.global_step == 4


def test_factor_is_set_when_training_resumes_inside_an_epoch(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    quiet_trainer(GradientAccumulationScheduler({1: 2}), checkpoint, max_epochs=-1, max_steps=5).fit(model_class())
    again = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    trainer = quiet_trainer(GradientAccumulationScheduler({1: 2}), again, max_epochs=2)
    trainer.fit(model_class(), ckpt_path=checkpoint.best_model_path)

    assert trainer.global_step == 6


def test_two_settings_are_refused(quiet_trainer, model_class):
    trainer = quiet_trainer(
        GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=2, enable_checkpointing=False
    )
    with pytest.raises(ValueError, match="both set the factor"):
        trainer.fit(model_class())


def test_manual_optimization_is_refused(quiet_trainer, model_class):
    model = model_class()
    model.automatic_optimization = False
    with pytest.raises(RuntimeError, match="automatic_optimization"):
        quiet_trainer(GradientAccumulationScheduler({0: 2}), enable_checkpointing=False).fit(model)


def test_refused_fit_leaves_the_factor_of_the_trainer(quiet_trainer, model_class):
    trainer = quiet_trainer(GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=4)
    with pytest.raises(ValueError, match="both set the factor"):
        trainer.fit(model_class())

    assert trainer.accumulate_grad_batches == 4
