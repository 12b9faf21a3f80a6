"""Which `self.log` calls are refused, and what the message says to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from fulmen.core.events import CALLS, EVENTS, LOG_RULES
from fulmen.core.module import LightningModule
from fulmen.demos.boring_classes import BoringModel
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet


class Tries(BoringModel):
    """Does one thing in one hook."""

    def __init__(self, hook: str, action: Callable[[Any], Any]) -> None:
        super().__init__()
        self.metric, self.other = MeanMetric(), SumMetric()
        original = getattr(self, hook)

        def hooked(*args: Any, **kwargs: Any) -> Any:
            action(self)
            return original(*args, **kwargs)

        setattr(self, hook, hooked)


def attempt(tmp_path: Any, hook: str, action: Callable[[Any], Any]) -> Trainer:
    trainer = Trainer(**quiet(tmp_path, limit_train_batches=2, limit_val_batches=2, num_sanity_val_steps=0))
    trainer.fit(Tries(hook, action))
    return trainer


def log(*args: Any, **kwargs: Any) -> Callable[[Any], None]:
    return lambda module: module.log(*args, **kwargs)


def test_every_hook_has_a_rule() -> None:
    assert {event.name for event in EVENTS} | set(CALLS) == set(LOG_RULES)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("high", "got a str, but logs a number"),
        ([1.0], "got a list, but logs a number"),
        (None, "got a NoneType, but logs a number"),
        (1j, "got a complex, but logs a number"),
        ({"a": 1.0}, "Use `self.log_dict(...)` for several values"),
        (torch.ones(2), "got a tensor of shape (2,), but logs one number. Reduce it first"),
        (torch.ones(0), "got a tensor of shape (0,), but logs one number. Reduce it first"),
        (torch.tensor(1j), "got a complex tensor, but logs a real number. Log `value.abs()`"),
        (MetricCollection([SumMetric()]), "Use `self.log_dict(...)`"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        attempt(tmp_path, "training_step", log("x", value))


def test_a_tensor_that_grows_later_is_refused(tmp_path) -> None:
    def grows(module: Any) -> None:
        module.log("x", torch.ones(module.trainer.global_step + 1))

    with pytest.raises(ValueError, match=re.escape("got a tensor of shape (2,), but logs one number")):
        attempt(tmp_path, "training_step", grows)


@pytest.mark.parametrize(
    ("hook", "action", "words"),
    [
        ("on_fit_start", log("x", 1.0), "was called inside `on_fit_start`, where nothing is recorded"),
        ("on_train_end", log("x", 1.0), "inside `on_train_end`"),
        ("on_validation_end", log("x", 1.0), "inside `on_validation_end`"),
        ("on_train_epoch_end", log("x", 1.0, on_step=True), "no step is running there"),
        ("on_validation_epoch_start", log("x", 1.0, on_step=True), "no step is running there"),
        ("training_step", log("x", 1.0, on_step=False, on_epoch=False), "Set one of them to True"),
        ("training_step", log("x", 1.0, reduce_fx="median"), "reduce_fx='median'"),
        ("training_step", log("x", 1.0, reduce_fx=torch.std), "For others log a `torchmetrics.Metric`"),
        ("training_step", log("x", 1.0, reduce_fx=lambda values: values.mean()), "only 'mean', 'sum', 'min' and 'max'"),
        ("training_step", log("a/dataloader_idx_0", 1.0), "names must not contain '/dataloader_idx_'"),
        ("training_step", lambda m: (m.log("x", 1.0), m.log("x", 1.0, prog_bar=True)), "prog_bar=True (was old False)"),
        ("training_step", log("x", MeanMetric()), "Make it in `__init__`: `self.meanmetric = MeanMetric(...)`"),
    ],
)
def test_calls_that_cannot_work_are_refused(tmp_path, hook: str, action: Callable[[Any], Any], words: str) -> None:
    words = words.replace("was old", "was")

    with pytest.raises(MisconfigurationException, match=re.escape(words)):
        attempt(tmp_path, hook, action)


def test_a_name_must_be_text(tmp_path) -> None:
    with pytest.raises(TypeError, match=re.escape("got a int as name, but needs a string")):
        attempt(tmp_path, "training_step", log(5, 1.0))


@pytest.mark.parametrize(
    "reduce_fx",
    ["mean", "avg", "MEAN", "sum", "min", "max", torch.mean, torch.sum, torch.min, torch.max, sum, min, max],
)
def test_known_reductions_are_accepted(tmp_path, reduce_fx: Any) -> None:
    trainer = attempt(tmp_path, "training_step", log("x", 2.0, reduce_fx=reduce_fx, on_epoch=True, batch_size=1))

    assert trainer.callback_metrics["x_epoch"] in (2.0, 4.0)


def test_a_metric_elsewhere_is_accepted_when_named(tmp_path) -> None:
    metric = SumMetric()

    def logs(module: Any) -> None:
        metric.update(1.0)
        module.log("x", metric, on_step=False, on_epoch=True, metric_attribute="outside")

    assert attempt(tmp_path, "training_step", logs).callback_metrics["x"] == 2.0


def test_the_same_name_for_two_dataloaders_is_refused(tmp_path) -> None:
    class Two(BoringModel):
        def val_dataloader(self) -> Any:
            loader = super().val_dataloader()
            return [loader, loader]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("x", 1.0, add_dataloader_idx=False)

    with pytest.raises(MisconfigurationException, match="Use a different name per dataloader"):
        Trainer(**quiet(tmp_path)).validate(Two(), verbose=False)


def test_logging_without_a_trainer_warns_and_records_nothing() -> None:
    class Lonely(LightningModule):
        """A module that nobody runs."""

    with pytest.warns(UserWarning, match="on a `Lonely` that no Trainer runs; nothing is recorded"):
        Lonely().log("x", 1.0)


def test_logging_in_predict_is_refused(tmp_path) -> None:
    with pytest.raises(MisconfigurationException, match=r"inside `predict_step`|where nothing is recorded"):
        Trainer(**quiet(tmp_path)).predict(Tries("predict_step", log("x", 1.0)))


def test_tensors_of_integers_are_taken_with_a_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match="with a tensor of torch.int64; it is recorded as torch.float32"):
        trainer = attempt(tmp_path, "training_step", log("count of a rare kind", torch.tensor(3)))

    assert trainer.callback_metrics["count of a rare kind"].dtype == torch.float32
