"""What is wrong with a run can often be known before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fulmen.core.callback import Callback
from fulmen.core.module import LightningModule
from fulmen.loops.micro_batches import check_can_split
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.rank_zero import rank_zero_deprecation, rank_zero_warn
from fulmen.utilities.signature_utils import is_param_in_hook_signature
from fulmen.utilities.warnings import PossibleUserWarning

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["check_callbacks", "check_module", "check_run"]

_STEP = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
_REMOVED = {
    "training_epoch_end": ("on_train_epoch_end", "training_step"),
    "validation_epoch_end": ("on_validation_epoch_end", "validation_step"),
    "test_epoch_end": ("on_test_epoch_end", "test_step"),
}


def check_module(model: Any, fn: str) -> None:
    """Check that what was passed as model is a `LightningModule`, and a whole one.

    Raises:
        TypeError: It is something else.
        RuntimeError: Its `__init__` does not call that of `LightningModule`.
    """
    if isinstance(model, LightningModule):
        if "_modules" not in vars(model) or "_fabric" not in vars(model):  # some packages remove `_trainer`
            raise RuntimeError(
                f"`{type(model).__name__}.__init__` did not call `super().__init__()`, so the module is not set up."
                " Call it first thing in `__init__`."
            )
        return
    if isinstance(model, type):
        got, advice = f"the class `{model.__name__}`", f"Make an object of it: `{model.__name__}(...)`."
    elif isinstance(model, nn.Module):
        got = f"a `{type(model).__name__}`"
        advice = "Subclass `LightningModule`; a plain module can be an attribute of it."
    else:
        got, advice = f"a `{type(model).__name__}`", "The model comes first, then the data."
    raise TypeError(f"`Trainer.{fn}(model)` needs a `fulmen.LightningModule`, but got {got}. {advice}")


def check_run(trainer: Trainer, module: LightningModule) -> None:
    """Check that module, data and settings fit together for the method that was called."""
    fn = str(trainer.state.fn.value) if trainer.state.fn else "fit"
    _check_removed_hooks(module)
    _check_configure_model(module)
    step = _STEP[fn]
    if is_param_in_hook_signature(getattr(module, step), "dataloader_iter", explicit=True):
        raise MisconfigurationException(
            f"`{type(module).__name__}.{step}(self, dataloader_iter)`: stepping over the iterator yourself is not"
            " supported. Take `batch` (and `batch_idx`) instead."
        )
    if fn == "fit":
        _check_fit(trainer, module)
    elif fn in ("validate", "test"):
        if not is_overridden(step, module, LightningModule):
            raise MisconfigurationException(
                f"`Trainer.{fn}()` needs `{type(module).__name__}.{step}`, which is not defined. Define it:"
                f" `def {step}(self, batch, batch_idx): ...`."
            )
        _check_loader(trainer, module, {"validate": "val", "test": "test"}[fn], fn)
    else:
        _check_predict(trainer, module)


def _check_fit(trainer: Trainer, module: LightningModule) -> None:
    name = type(module).__name__
    for method, example in (
        ("training_step", "def training_step(self, batch, batch_idx): return loss"),
        ("configure_optimizers", "def configure_optimizers(self): return torch.optim.Adam(self.parameters())"),
    ):
        if not is_overridden(method, module, LightningModule):
            raise MisconfigurationException(
                f"`Trainer.fit()` needs `{name}.{method}`, which is not defined. Define it: `{example}`."
            )
    if is_param_in_hook_signature(module.training_step, "optimizer_idx", explicit=True):
        raise RuntimeError(
            f"`{name}.training_step` takes `optimizer_idx`, which automatic optimization does not know any more. For"
            " several optimizers set `self.automatic_optimization = False` and step them in `training_step`."
        )
    _check_loader(trainer, module, "train", "fit")
    has_loader = trainer.sources.is_defined("val")
    has_step = is_overridden("validation_step", module, LightningModule)
    if has_loader and not has_step:
        rank_zero_warn(
            f"There is a validation dataloader but `{name}` has no `validation_step`; validation is skipped. Define"
            " `def validation_step(self, batch, batch_idx)`, or pass `Trainer(limit_val_batches=0)`."
        )
    if has_step and not has_loader:
        rank_zero_warn(
            f"`{name}` has a `validation_step` but there is no validation dataloader; validation is skipped. Pass"
            " `val_dataloaders` to `Trainer.fit`.",
            category=PossibleUserWarning,
        )
    if trainer.splits_batches:
        check_can_split(trainer.strategy, module)
    if not module.automatic_optimization:
        _check_manual(trainer, name)


def _check_manual(trainer: Trainer, name: str) -> None:
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val > 0:
        raise MisconfigurationException(
            f"`Trainer(gradient_clip_val={trainer.gradient_clip_val})` has no effect on `{name}`, which optimizes by"
            " hand. Call `self.clip_gradients(optimizer, gradient_clip_val=...)` in `training_step` before the"
            " optimizer's step, or use automatic optimization."
        )
    if trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"`Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches})` has no effect on `{name}`, which"
            " optimizes by hand. Step the optimizer only on every n-th `batch_idx` of `training_step`, or use"
            " automatic optimization."
        )


def _check_predict(trainer: Trainer, module: LightningModule) -> None:
    name = type(module).__name__
    if module.predict_step is None:
        raise MisconfigurationException(f"`Trainer.predict()` needs `{name}.predict_step`, but it is None. Define it.")
    if not is_overridden("predict_step", module, LightningModule) and not is_overridden(
        "forward", module, LightningModule
    ):
        raise MisconfigurationException(
            f"`Trainer.predict()` needs `{name}.predict_step` or `{name}.forward`, and neither is defined. Define one:"
            " `def predict_step(self, batch, batch_idx): return prediction`."
        )
    _check_loader(trainer, module, "predict", "predict")


def _check_loader(trainer: Trainer, module: LightningModule, word: str, fn: str) -> None:
    if trainer.sources.is_defined(word):
        return
    argument = "train_dataloaders" if fn == "fit" else "dataloaders"
    raise MisconfigurationException(
        f"`Trainer.{fn}()` has no data: pass `{argument}` or `datamodule`, or define"
        f" `{type(module).__name__}.{word}_dataloader`."
    )


def _check_removed_hooks(module: LightningModule) -> None:
    for hook, (successor, step) in _REMOVED.items():
        if callable(getattr(module, hook, None)):
            raise NotImplementedError(
                f"`{type(module).__name__}.{hook}` is not called any more (it was removed in Lightning 2.0). Use"
                f" `{successor}`, and keep the outputs you need in a list of your own in `{step}`."
            )


def _check_configure_model(module: LightningModule) -> None:
    if is_overridden("configure_sharded_model", module, LightningModule):
        if is_overridden("configure_model", module, LightningModule):
            raise RuntimeError(
                f"`{type(module).__name__}` defines both `configure_model` and the deprecated"
                " `configure_sharded_model`."
                " Keep only `configure_model`."
            )
        rank_zero_deprecation(
            f"`{type(module).__name__}.configure_sharded_model` is deprecated; rename it to `configure_model`."
        )


def check_callbacks(callbacks: list[Callback]) -> None:
    """Check that callbacks are callbacks, and that their states can be told apart in a checkpoint.

    Raises:
        TypeError: One is no callback.
        RuntimeError: Two share a state key.
    """
    seen: dict[str, Callback] = {}
    for callback in callbacks:
        if not isinstance(callback, Callback):
            if isinstance(callback, type):
                name = callback.__name__
                raise TypeError(
                    f"`Trainer(callbacks=...)` got the class `{name}`. Make an object of it: `{name}(...)`."
                )
            raise TypeError(
                f"`Trainer(callbacks=...)` got a {type(callback).__name__}: {callback!r}. Pass one `Callback`, or a"
                " list of them."
            )
        if not is_overridden("state_dict", callback, Callback):
            continue
        if callback.state_key in seen:
            raise RuntimeError(
                f"Two callbacks of the class `{type(callback).__name__}` have the same state key"
                f" {callback.state_key!r}. In a checkpoint one would overwrite the other. Give them different"
                " settings, override the property `state_key` in a subclass, or remove one."
            )
        seen[callback.state_key] = callback
