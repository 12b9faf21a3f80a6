"""LambdaCallback: a callback made of single functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.core.callback import Callback

__all__ = ["LambdaCallback"]

_Hook = Callable[..., Any] | None


class LambdaCallback(Callback):
    """Make a callback from functions, without a class of your own.

    Args:
        hooks: The arguments have the names of the hooks; each function gets what the hook gets, without `self`.

    Example::

        Trainer(callbacks=LambdaCallback(on_train_epoch_end=lambda trainer, pl_module: print(trainer.current_epoch)))
    """

    def __init__(
        self,
        setup: _Hook = None,
        teardown: _Hook = None,
        on_fit_start: _Hook = None,
        on_fit_end: _Hook = None,
        on_sanity_check_start: _Hook = None,
        on_sanity_check_end: _Hook = None,
        on_train_batch_start: _Hook = None,
        on_train_batch_end: _Hook = None,
        on_train_epoch_start: _Hook = None,
        on_train_epoch_end: _Hook = None,
        on_validation_epoch_start: _Hook = None,
        on_validation_epoch_end: _Hook = None,
        on_test_epoch_start: _Hook = None,
        on_test_epoch_end: _Hook = None,
        on_validation_batch_start: _Hook = None,
        on_validation_batch_end: _Hook = None,
        on_test_batch_start: _Hook = None,
        on_test_batch_end: _Hook = None,
        on_train_start: _Hook = None,
        on_train_end: _Hook = None,
        on_validation_start: _Hook = None,
        on_validation_end: _Hook = None,
        on_test_start: _Hook = None,
        on_test_end: _Hook = None,
        on_exception: _Hook = None,
        on_save_checkpoint: _Hook = None,
        on_load_checkpoint: _Hook = None,
        on_before_backward: _Hook = None,
        on_after_backward: _Hook = None,
        on_before_optimizer_step: _Hook = None,
        on_before_zero_grad: _Hook = None,
        on_predict_start: _Hook = None,
        on_predict_end: _Hook = None,
        on_predict_batch_start: _Hook = None,
        on_predict_batch_end: _Hook = None,
        on_predict_epoch_start: _Hook = None,
        on_predict_epoch_end: _Hook = None,
    ) -> None:
        hooks = {name: hook for name, hook in locals().items() if name != "self" and hook is not None}
        # attributes of the instance: what is not given stays the base class's hook, which is never called
        self.__dict__.update(hooks)
