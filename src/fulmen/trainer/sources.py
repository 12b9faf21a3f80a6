"""Where dataloaders come from: arguments, then the datamodule, then the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fulmen.core.datamodule import LightningDataModule
from fulmen.core.hooks import DataHooks
from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.rebuild import recording_dataloader_arguments
from fulmen.data.worker_watch import name_loader
from fulmen.engine.loaders import (
    combine,
    eval_num_batches,
    num_batches,
    prepare_eval_loaders,
    prepare_train_loaders,
    warn_if_logging_is_sparse,
)
from fulmen.trainer.event_table import owner_label
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["Sources"]

_ARGUMENT_OF_FIT = {"train": "train_dataloaders", "val": "val_dataloaders"}


class Sources:
    """Finds, checks and prepares the loaders of a run.

    Args:
        trainer: The Trainer whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._given: dict[str, Any] = {}
        self.datamodule: LightningDataModule | None = None

    def attach(self, *, datamodule: LightningDataModule | None, **given: Any) -> None:
        """Take the loaders of a call, by the words `train`, `val`, `test`, `predict`.

        Raises:
            MisconfigurationException: Both loaders and a datamodule are given.
            TypeError: The datamodule is none.
        """
        fn = self._trainer.state.fn.value  # type: ignore[union-attr]  # a method was called
        if datamodule is not None and not isinstance(datamodule, LightningDataModule):
            raise TypeError(f"`Trainer.{fn}(datamodule=...)` got {_no_datamodule(datamodule)}")
        given = {word: loader for word, loader in given.items() if loader is not None}
        if datamodule is not None and given:
            names = ", ".join(f"`{self._argument(word)}`" for word in given)
            raise MisconfigurationException(
                f"`Trainer.{fn}` got {names} and `datamodule`, but not both can be used: it would not be clear where"
                " the data come from. Leave out one of them."
            )
        self._given = given
        self.datamodule = datamodule

    @property
    def given(self) -> dict[str, Any]:
        """The loaders of the call, by the words `train`, `val`, `test`, `predict`."""
        return self._given

    def replace_given(self, change: Callable[[Any], Any]) -> None:
        """Use what a function makes of the loaders of the call instead of them."""
        self._given = {word: change(loader) for word, loader in self._given.items()}

    def is_defined(self, word: str) -> bool:
        """Tell whether there is a loader for `train`, `val`, `test` or `predict`."""
        return word in self._given or self._owner(word) is not None

    def train_loader(self) -> tuple[CombinedLoader, int | float]:
        """Return the prepared training loader and the batches of an epoch."""
        trainer = self._trainer
        combined = self._combined("train", "max_size_cycle")
        if combined.mode == "sequential":
            raise ValueError(
                "Training on a `CombinedLoader(mode='sequential')` is not possible. Use 'min_size', 'max_size' or"
                " 'max_size_cycle'; or concatenate the datasets."
            )
        prepare_train_loaders(
            combined,
            overfit=trainer.overfit_batches > 0,
            allow_zero_length=self._allows_zero_length(),
            **self._processes(),
        )
        self._process(combined, "train")
        limit = num_batches(combined, trainer.limit_train_batches, name="limit_train_batches")
        if trainer.loggers and not trainer.fast_dev_run:
            warn_if_logging_is_sparse(limit, trainer.log_every_n_steps)
        return combined, limit

    def eval_loaders(self, word: str) -> tuple[CombinedLoader, list[int | float]]:
        """Return the prepared loaders for `val`, `test` or `predict`, and the batches of each."""
        trainer = self._trainer
        limit = getattr(trainer, f"limit_{word}_batches")
        if limit == 0 or not self.is_defined(word):
            return CombinedLoader([], "sequential"), []
        combined = self._combined(word, "sequential")
        if word == "predict" and combined.mode != "sequential":
            raise ValueError(
                f"`Trainer.predict` needs a `CombinedLoader(mode='sequential')`, but got mode={combined.mode!r}."
            )
        overfit = word == "val" and trainer.overfit_batches > 0
        prepare_eval_loaders(combined, stage=word, overfit=overfit, **self._processes())
        self._process(combined, word)
        return combined, eval_num_batches(combined, limit, name=f"limit_{word}_batches")

    def _combined(self, word: str, mode: str) -> CombinedLoader:
        loaders, origin = self._request(word)
        return combine(loaders, mode=mode, origin=origin)

    def _request(self, word: str) -> tuple[Any, str]:
        if word in self._given:
            fn = self._trainer.state.fn.value  # type: ignore[union-attr]  # a method was called
            return self._given[word], f"Trainer.{fn}({self._argument(word)}=...)"
        hook = f"{word}_dataloader"
        owner = self._owner(word) or self._trainer.lightning_module
        scope = self._trainer.scope
        scope.hook = hook
        with recording_dataloader_arguments(), self._trainer.profile(f"{owner_label(owner)}.{hook}"):
            loaders = getattr(owner, hook)()
        scope.hook = None
        return loaders, f"{type(owner).__name__}.{hook}()"

    def _argument(self, word: str) -> str:
        return _ARGUMENT_OF_FIT[word] if self._trainer.state.fn == "fit" else "dataloaders"

    def _owner(self, word: str) -> Any:
        for owner in (self.datamodule, self._trainer.lightning_module):
            if owner is not None and is_overridden(f"{word}_dataloader", owner, DataHooks):
                return owner
        return None

    def _processes(self) -> dict[str, Any]:
        """The arguments that tell among whom loaders are divided."""
        strategy = self._trainer.strategy
        return {
            "ranks": strategy,
            "shard": self._trainer.use_distributed_sampler,
            "local_world_size": getattr(strategy, "num_processes", 1),  # one device has one process
        }

    def _allows_zero_length(self) -> bool:
        owners = (self.datamodule, self._trainer.lightning_module)
        return any(getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False) for owner in owners)

    def _process(self, combined: CombinedLoader, word: str) -> None:
        process = self._trainer.strategy.process_dataloader
        combined.flattened = [process(loader) for loader in combined.flattened]
        for number, loader in enumerate(combined.flattened):
            name_loader(loader, f"{word} dataloader" + ("" if combined.is_single else f" {number}"))


def _no_datamodule(given: Any) -> str:
    if isinstance(given, type):
        return f"the class `{given.__name__}`. Make an object of it: `{given.__name__}(...)`."
    return f"a {type(given).__name__}: {given!r}. Pass a `LightningDataModule`; loaders are arguments of their own."
