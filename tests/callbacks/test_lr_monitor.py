from __future__ import annotations

import csv

import pytest
import torch

from fulmen.callbacks.lr_monitor import LearningRateMonitor
from fulmen.callbacks.warmup import WarmupLR
from fulmen.loggers.csv_logs import CSVLogger
from fulmen.utilities.exceptions import MisconfigurationException

Exponential = torch.optim.lr_scheduler.ExponentialLR


def sgd(parameters, **arguments):
    return torch.optim.SGD(parameters, lr=0.1, **arguments)


@pytest.fixture
def monitor_with(quiet_trainer, model_class, tmp_path):
    """Train two epochs with the given optimizers; return the callback and the logged rows."""

    def run(configure, *callbacks, **arguments):
        class Model(model_class):  # type: ignore[misc, valid-type]  # a fixture
            def __init__(self):
                super().__init__()
                configured = configure(self)
                several = isinstance(configured, tuple) and len(configured[0]) > 1
                self.automatic_optimization = not several

            def training_step(self, batch, batch_idx):
                if self.automatic_optimization:
                    return self.layer(batch[0]).square().mean()
                for optimizer in self.optimizers():
                    optimizer.step()
                return None

            def configure_optimizers(self):
                return configure(self)

        monitor = LearningRateMonitor(**arguments)
        trainer = quiet_trainer(
            *callbacks,
            monitor,
            max_epochs=2,
            limit_val_batches=0,
            log_every_n_steps=2,
            enable_checkpointing=False,
            logger=CSVLogger(tmp_path, name="", version="v"),
        )
        trainer.fit(Model())
        with open(tmp_path / "v" / "metrics.csv") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        return monitor, rows, trainer

    return run


def steps_of(rows, name):
    return [int(row["step"]) for row in rows if name in row]


def test_without_scheduler_both_intervals_are_logged(monitor_with):
    monitor, rows, trainer = monitor_with(lambda m: sgd(m.parameters()))

    assert monitor.lrs == {"lr-SGD": [0.1] * 6}
    assert sorted(steps_of(rows, "lr-SGD")) == [0, 1, 3, 4, 5, 7]
    assert float(trainer.callback_metrics["lr-SGD"]) == pytest.approx(0.1)


@pytest.mark.parametrize(("interval", "steps"), [("step", [1, 3, 5, 7]), ("epoch", [0, 4])])
def test_interval_can_be_chosen(monitor_with, interval, steps):
    _, rows, _ = monitor_with(lambda m: sgd(m.parameters()), logging_interval=interval)

    assert steps_of(rows, "lr-SGD") == steps


def test_interval_follows_the_scheduler(monitor_with):
    def configure(model):
        optimizer = sgd(model.parameters())
        return [optimizer], [{"scheduler": Exponential(optimizer, 0.5), "interval": "step"}]

    monitor, rows, _ = monitor_with(configure)

    assert monitor.lrs == {"lr-SGD": [0.05, 0.0125, 0.003125, 0.00078125]}
    assert steps_of(rows, "lr-SGD") == [1, 3, 5, 7]


def test_schedulers_can_be_named(monitor_with):
    def configure(model):
        optimizer = sgd(model.parameters())
        return [optimizer], [{"scheduler": Exponential(optimizer, 0.5), "interval": "epoch", "name": "foo"}]

    assert monitor_with(configure)[0].lrs == {"foo": [0.1, 0.05]}


def test_momentum_and_weight_decay(monitor_with):
    def configure(model):
        return sgd(model.parameters(), momentum=0.9, weight_decay=0.5)

    monitor, rows, _ = monitor_with(configure, log_momentum=True, log_weight_decay=True)

    assert monitor.last_momentum_values == {"lr-SGD-momentum": 0.9}
    assert monitor.last_weight_decay_values == {"lr-SGD-weight_decay": 0.5}
    assert rows[0]["lr-SGD-momentum"] == "0.9"


def test_first_beta_counts_as_momentum(monitor_with):
    monitor, _, _ = monitor_with(lambda m: torch.optim.Adam(m.parameters()), log_momentum=True)

    assert monitor.last_momentum_values == {"lr-Adam-momentum": 0.9}


def test_parameter_groups_are_numbered_or_named(monitor_with):
    def configure(model):
        return sgd([{"params": [model.layer.weight], "name": "a"}, {"params": [model.layer.bias], "lr": 0.2}])

    assert set(monitor_with(configure)[0].lrs) == {"lr-SGD/a", "lr-SGD/pg2"}


def test_groups_of_one_name_are_refused(monitor_with):
    def configure(model):
        return sgd([{"params": [model.layer.weight], "name": "a"}, {"params": [model.layer.bias], "name": "a"}])

    with pytest.raises(MisconfigurationException, match="same name"):
        monitor_with(configure)


def test_optimizers_of_one_class_are_numbered(monitor_with):
    def configure(model):
        return [sgd([model.layer.weight]), torch.optim.Adam([model.layer.bias]), sgd([model.layer.weight])], []

    assert set(monitor_with(configure)[0].lrs) == {"lr-SGD", "lr-Adam", "lr-SGD-1"}


def test_scheduled_and_free_optimizers_have_their_own_intervals(monitor_with):
    def configure(model):
        first, second = sgd([model.layer.weight]), sgd([model.layer.bias])
        return [first, second], [Exponential(first, 0.5)]

    monitor, rows, _ = monitor_with(configure)

    assert {name: len(values) for name, values in monitor.lrs.items()} == {"lr-SGD": 2, "lr-SGD-1": 6}
    assert steps_of(rows, "lr-SGD") == [0, 4]


def test_warmup_is_shown(monitor_with):
    warmup = WarmupLR(4, start_factor=0.5)
    monitor, _, _ = monitor_with(lambda m: sgd(m.parameters()), warmup, logging_interval="step")

    assert monitor.lrs["lr-SGD"] == pytest.approx([0.1 * factor for factor in (0.625, 0.875, 1.0, 1.0)])


def test_group_added_while_training_gets_a_curve(monitor_with):
    from fulmen.callbacks.lambda_function import LambdaCallback

    def grow(trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.optimizers(use_pl_optimizer=False).add_param_group({"params": [pl_module.layer.bias], "lr": 0.2})

    grower = LambdaCallback(on_train_epoch_start=grow)
    monitor, _, _ = monitor_with(lambda m: sgd([m.layer.weight]), grower, logging_interval="epoch")

    assert monitor.lrs == {"lr-SGD/pg1": [0.1, 0.1], "lr-SGD/pg2": [0.2]}


def test_unknown_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="logging_interval"):
        LearningRateMonitor(logging_interval="batch")  # type: ignore[arg-type]  # the mistake


def test_a_logger_is_needed(quiet_trainer, model_class):
    with pytest.raises(MisconfigurationException, match="no logger"):
        quiet_trainer(LearningRateMonitor(), enable_checkpointing=False).fit(model_class())
