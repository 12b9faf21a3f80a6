from __future__ import annotations

import inspect

import pytest

from fulmen.callbacks.lambda_function import LambdaCallback
from fulmen.core.callback import Callback
from fulmen.core.events import EVENTS
from fulmen.utilities.model_helpers import is_overridden


def test_functions_become_hooks_and_the_others_stay_unused():
    callback = LambdaCallback(on_fit_start=lambda *_: None)

    assert is_overridden("on_fit_start", callback, Callback)
    assert not is_overridden("on_fit_end", callback, Callback)


def test_hooks_get_trainer_and_module(quiet_trainer, model_class):
    seen = []
    callback = LambdaCallback(on_train_start=lambda trainer, pl_module: seen.append((trainer, pl_module)))
    trainer, model = quiet_trainer(callback, enable_checkpointing=False, max_epochs=1), model_class()
    trainer.fit(model)

    assert seen == [(trainer, model)]


def test_every_event_can_be_given():
    assert set(inspect.signature(LambdaCallback).parameters) == {event.name for event in EVENTS}


def test_unknown_hook_is_refused():
    with pytest.raises(TypeError, match="on_nothing"):
        LambdaCallback(on_nothing=print)  # type: ignore[call-arg]  # the mistake
