"""`Tuner`: the searches as methods, which leave Trainer and model as they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.tuner.batch_size import BatchSizeSearch, end_run, find_batch_size
from fulmen.tuner.lr_finder import LRFinder, LRSearch, find_learning_rate, learning_rate_holder
from fulmen.tuner.settings import check_name, holders, set_everywhere, value_of
from fulmen.tuner.undo import Snapshot, own_parts
from fulmen.utilities.compile import from_compiled, is_compiled
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer
    from fulmen.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS

__all__ = ["Tuner"]

_METHODS = ("fit", "validate", "test", "predict")


class Tuner:
    """Finds settings by trying them.

    Model, optimizers, random numbers, loaders, callbacks, loggers and the Trainer are left as they were: a fit
    afterwards equals, to the bit, one without the search and with the same settings. The Trainer's callbacks and
    loggers take no part; where a callback changes the model, e.g. freezes layers, use `LearningRateFinder` or
    `BatchSizeFinder`, which search inside the fit.

    Args:
        trainer: The Trainer to search with.

    Example::

        tuner = Tuner(trainer)
        tuner.scale_batch_size(model, mode="binsearch")
        tuner.lr_find(model)
        trainer.fit(model)
    """

    def __init__(self, trainer: Trainer) -> None:
        if not hasattr(trainer, "fit_loop"):
            raise TypeError(f"`Tuner({trainer!r})` searches by running a Trainer. Pass one: `Tuner(Trainer(...))`.")
        self._trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: TRAIN_DATALOADERS | LightningDataModule | None = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        dataloaders: EVAL_DATALOADERS | None = None,
        datamodule: LightningDataModule | None = None,
        method: Literal["fit", "validate", "test", "predict"] = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Raise the learning rate from step to step, and see where the loss falls fastest.

        With several parameter groups each keeps its ratio to the others. The group whose learning rate is that of the
        attribute has the rates of the result; the one with the largest if there is none.

        Args:
            model: The module.
            train_dataloaders: As for `Trainer.fit`.
            val_dataloaders: As for `Trainer.fit`; not used.
            dataloaders: Must be None: the search trains.
            datamodule: As for `Trainer.fit`.
            method: Must be `"fit"`.
            min_lr: The first learning rate.
            max_lr: The last.
            num_training: Number of optimizer steps.
            mode: `"exponential"`: a constant factor between steps; `"linear"`: a constant difference.
            early_stop_threshold: Stop when the smoothed loss is this many times the best; None never.
            update_attr: Give the suggestion to the attributes that hold the learning rate.
            attr_name: Name of that attribute of the module, datamodule or their `hparams`; empty: `lr` or
                `learning_rate`.

        Returns:
            The points that were tried, with `suggestion()` and `plot()`; None under `fast_dev_run`.

        Raises:
            MisconfigurationException: Another `method`, an unknown `mode`, or not exactly one optimizer.
            AttributeError: Nobody has the attribute.
            ValueError: A number out of range, or there is a `LearningRateFinder` among the callbacks.
        """
        if method != "fit":
            raise MisconfigurationException(
                f"`lr_find(method={method!r})` has no learning rate to find: only `method='fit'` trains."
            )
        _check_loaders(method, train_dataloaders, val_dataloaders, dataloaders)
        search = LRSearch(min_lr, max_lr, num_training, mode, early_stop_threshold)  # type: ignore[arg-type]  # it checks
        check_name("attr_name", attr_name)
        if self._is_skipped("learning rate", "lr_find"):
            return None
        train_dataloaders, datamodule = _datamodule_first(train_dataloaders, datamodule)
        module = _plain(model)
        name = learning_rate_holder(module, datamodule, attr_name) if update_attr else None
        found = [] if name is None else holders(module, datamodule, name)
        reference = value_of(found, name) if name else None

        def find(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
            return find_learning_rate(trainer, module, search, reference).state_dict()

        fit = partial(self._trainer.fit, model, train_dataloaders, val_dataloaders, datamodule)
        finder = LRFinder.from_state_dict(self._searched(fit, find, module, datamodule, train_dataloaders))
        suggestion = finder.suggestion() if name else None
        if name and suggestion is not None:
            set_everywhere(found, name, suggestion)
            rank_zero_info(f"The learning rate (`{name}`) is {suggestion:.6g} from now on.")
        return finder

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: TRAIN_DATALOADERS | LightningDataModule | None = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        dataloaders: EVAL_DATALOADERS | LightningDataModule | None = None,
        datamodule: LightningDataModule | None = None,
        method: Literal["fit", "validate", "test", "predict"] = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size with which a few steps fit into memory, and set it.

        Sizes are doubled until memory runs out, or the size of the data or `max_val` is reached. On several ranks it is
        the size of each rank's batch; all ranks try the same, and it fits if it fits on all of them.

        Args:
            model: The module.
            train_dataloaders: Only a datamodule is possible: loaders must be made by hooks, for each size anew.
            val_dataloaders: Must be None.
            dataloaders: Only a datamodule is possible, for another `method` than `"fit"`.
            datamodule: Makes the loaders.
            method: What is to fit: `"fit"`, `"validate"`, `"test"` or `"predict"`.
            mode: `"power"` ends at the last power that fits; `"binsearch"` narrows it down.
            steps_per_trial: Number of steps with each size.
            init_val: The first size.
            max_trials: The most sizes to try.
            batch_arg_name: Name of the attribute of module, datamodule or their `hparams` that the hooks use.
            margin: `"binsearch"` takes off this part of the largest size that fits.
            max_val: The largest size to try.

        Returns:
            The batch size, which the attribute has now; None under `fast_dev_run`.

        Raises:
            MisconfigurationException: Nobody has the attribute, loaders were passed, or an unknown `mode`.
            ValueError: An unknown `method`, a number out of range, or there is a `BatchSizeFinder` among the callbacks.
            RuntimeError: Not even single samples fit.
        """
        if method not in _METHODS:
            raise ValueError(f"`scale_batch_size(method={method!r})` is not known. Use one of {list(_METHODS)}.")
        train_dataloaders, datamodule = _datamodule_first(train_dataloaders, datamodule)
        dataloaders, datamodule = _datamodule_first(dataloaders, datamodule)
        _check_loaders(method, train_dataloaders, val_dataloaders, dataloaders)
        search = BatchSizeSearch(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)  # type: ignore[arg-type]  # it checks
        if self._is_skipped("batch size", "scale_batch_size"):
            return None
        module = _plain(model)

        def find(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
            return {"batch_size": find_batch_size(trainer, module, search)}

        runs: dict[str, Callable[[], Any]] = {
            "fit": partial(self._trainer.fit, model, train_dataloaders, val_dataloaders, datamodule),
            "validate": partial(self._trainer.validate, model, dataloaders, datamodule=datamodule, verbose=False),
            "test": partial(self._trainer.test, model, dataloaders, datamodule=datamodule, verbose=False),
            "predict": partial(self._trainer.predict, model, dataloaders, datamodule=datamodule),
        }
        best: int = self._searched(runs[method], find, module, datamodule, None)["batch_size"]
        set_everywhere(holders(module, datamodule, batch_arg_name), batch_arg_name, best)
        return best

    def _is_skipped(self, what: str, name: str) -> bool:
        trainer = self._trainer
        if any(getattr(callback, "tunes", None) == what for callback in trainer.callbacks):
            raise ValueError(
                f"The Trainer has a callback that finds the {what} in each fit, and `{name}` would do it a second time."
                " Use one of the two."
            )
        if trainer.fast_dev_run:
            rank_zero_warn(f"`{name}` is skipped, as `Trainer(fast_dev_run=True)` only tries if the code runs.")
        return bool(trainer.fast_dev_run)

    def _searched(
        self, run: Callable[[], Any], find: Callable[..., dict[str, Any]], module: Any, datamodule: Any, given: Any
    ) -> dict[str, Any]:
        """Begin a run, search in it before its first batch, and put all back; return what was found."""
        trainer, strategy = self._trainer, self._trainer.strategy
        snapshot = Snapshot(trainer, module, datamodule, given)
        optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
        callback = _SearchInRun(find)
        try:
            with own_parts(trainer):
                trainer.callbacks = [callback]
                trainer.num_sanity_val_steps = 0
                run()
        finally:
            strategy.optimizers, strategy.lr_scheduler_configs = optimizers, schedulers
            snapshot.restore()
        return callback.found


class _SearchInRun(Callback):
    """Searches as a run begins, and ends it."""

    is_tuner = True

    def __init__(self, find: Callable[..., dict[str, Any]]) -> None:
        self._find = find
        self.found: dict[str, Any] = {}

    def _search(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = self._find(trainer, pl_module)
        end_run(trainer)

    on_fit_start = on_test_start = on_predict_start = _search

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._search(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return self.found  # comes back from other processes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = state_dict


def _plain(model: Any) -> Any:
    if is_compiled(model):
        model = from_compiled(model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"A search needs a `LightningModule`, but got {type(model).__name__}: {model!r}. Pass the model first."
        )
    return model


def _datamodule_first(loaders: Any, datamodule: Any) -> tuple[Any, Any]:
    """A datamodule may stand in the place of the loaders."""
    if isinstance(loaders, LightningDataModule):
        if datamodule is not None:
            raise MisconfigurationException("Two datamodules were passed: one in the place of the loaders. Pass one.")
        return None, loaders
    return loaders, datamodule


def _check_loaders(method: str, train: Any, val: Any, others: Any) -> None:
    if method == "fit" and others is not None:
        raise MisconfigurationException(
            "`dataloaders` is for `method='validate'`, `'test'` and `'predict'`; with `method='fit'` pass"
            " `train_dataloaders` and `val_dataloaders`."
        )
    if method != "fit" and (train is not None or val is not None):
        raise MisconfigurationException(
            f"`train_dataloaders` and `val_dataloaders` are for `method='fit'`; with `method={method!r}` pass"
            " `dataloaders`."
        )
