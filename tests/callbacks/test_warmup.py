from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.callbacks.warmup import WarmupLR
from fulmen.utilities.exceptions import MisconfigurationException

SCHEDULERS = {
    "none": None,
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=13),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "plateau": lambda o: {"scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=0), "monitor": "val_loss"},
}


@pytest.fixture
def recording_class(model_class):
    """Model whose optimizer notes the learning rate that each step really uses."""

    class Recording(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def __init__(self, scheduler="none", lr=0.1):
            super().__init__()
            self.scheduler_name, self.lr, self.used = scheduler, lr, []

        def configure_optimizers(self):
            used = self.used

            class Noting(torch.optim.SGD):
                def step(self, closure=None):
                    used.append(float(self.param_groups[0]["lr"]))
                    return super().step(closure)

            optimizer = Noting(self.parameters(), lr=self.lr)
            make = SCHEDULERS[self.scheduler_name]
            if make is None:
                return optimizer
            scheduler = make(optimizer)
            if not isinstance(scheduler, dict):
                scheduler = {"scheduler": scheduler, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Recording


def fit(quiet_trainer, model, *callbacks, **arguments):
    settings = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **arguments}
    trainer = quiet_trainer(*callbacks, **{key: value for key, value in settings.items() if key != "ckpt_path"})
    trainer.fit(model, ckpt_path=arguments.get("ckpt_path"))
    return model


def test_linear_factors():
    assert [WarmupLR(4, start_factor=0.2).factor_at(step) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_exponential_factors():
    warmup = WarmupLR(4, shape="exponential", start_factor=0.0001)

    assert [warmup.factor_at(step) for step in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduled_rate_is_scaled_and_the_scheduler_undisturbed(quiet_trainer, recording_class, name):
    plain = fit(quiet_trainer, recording_class(name)).used
    warm = fit(quiet_trainer, recording_class(name), WarmupLR(5, start_factor=0.1)).used

    factors = [WarmupLR(5, start_factor=0.1).factor_at(step) for step in range(12)]
    assert warm == [rate * factor if factor < 1 else rate for rate, factor in zip(plain, factors, strict=True)]


def test_rates_in_tensors_are_scaled_in_place(quiet_trainer, recording_class):
    rate = torch.tensor(0.1)
    model = fit(quiet_trainer, recording_class(lr=rate), WarmupLR(2, start_factor=0.5), max_epochs=1)

    assert model.used == pytest.approx([0.05, 0.075, 0.1, 0.1])
    assert rate == torch.tensor(0.1)


def test_fraction_of_the_run(quiet_trainer, recording_class):
    model = fit(quiet_trainer, recording_class(), WarmupLR(0.5, start_factor=0.1))

    assert sum(rate < 0.1 for rate in model.used) == 6


def test_fraction_of_an_endless_run_is_refused(quiet_trainer, recording_class):
    with pytest.raises(MisconfigurationException, match="max_steps"):
        fit(quiet_trainer, recording_class(), WarmupLR(0.5), max_epochs=-1)


@pytest.mark.parametrize(("arguments", "name"), [({}, "none"), ({"shape": "exponential"}, "cosine")])
def test_resumed_warmup_is_the_same_to_the_bit(quiet_trainer, recording_class, tmp_path, arguments, name):
    torch.manual_seed(1)
    whole = fit(quiet_trainer, recording_class(name), WarmupLR(0.6, **arguments))
    torch.manual_seed(1)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(quiet_trainer, recording_class(name), WarmupLR(0.6, **arguments), checkpoint)
    path = next(str(path) for path in tmp_path.iterdir() if path.name.endswith("step=3.ckpt"))
    again = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    rest = fit(quiet_trainer, recording_class(name), WarmupLR(0.6, **arguments), again, ckpt_path=path)

    assert rest.used == whole.used[3:]
    assert torch.equal(rest.layer.weight, whole.layer.weight)


def test_learning_rate_is_put_back_when_a_step_fails(quiet_trainer, model_class):
    optimizers = []

    class Fails(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def configure_optimizers(self):
            class Broken(torch.optim.SGD):
                def step(self, closure=None):
                    raise ZeroDivisionError

            optimizers.append(Broken(self.parameters(), lr=0.1))
            return optimizers[0]

    with pytest.raises(ZeroDivisionError):
        fit(quiet_trainer, Fails(), WarmupLR(5))

    assert optimizers[0].param_groups[0]["lr"] == 0.1
    assert not optimizers[0]._optimizer_step_pre_hooks


def test_checkpoints_hold_the_unscaled_rate(quiet_trainer, recording_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    fit(quiet_trainer, recording_class(), WarmupLR(50), checkpoint, max_epochs=1)

    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


@pytest.mark.parametrize("arguments", [{"warmup": -1}, {"warmup": 1.5}, {"warmup": 3, "start_factor": 0.0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="WarmupLR"):
        WarmupLR(**arguments)
    with pytest.raises(ValueError, match="shape"):
        WarmupLR(3, shape="cosine")  # type: ignore[arg-type]  # the mistake


def test_no_warmup_changes_nothing(quiet_trainer, recording_class):
    assert fit(quiet_trainer, recording_class(), WarmupLR(0)).used == [0.1] * 12
    assert WarmupLR(0).factor_at(0) == 1.0
    assert not math.isnan(WarmupLR(0.0).factor_at(0))


def test_callback_that_served_another_run_warms_up_again(quiet_trainer, recording_class):
    warmup = WarmupLR(3)
    models = [recording_class(), recording_class()]
    for model in models:
        quiet_trainer(warmup, max_epochs=1, enable_checkpointing=False).fit(model)

    assert models[0].used == models[1].used
    assert models[1].used[0] < models[1].used[-1]
