"""The largest batch size that fits into memory, found by trying: double until memory runs out, then halve the gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fulmen.tuner.settings import Place, check_name, check_one_of, holders, set_everywhere, value_of
from fulmen.tuner.trial import LIMITS, Trial
from fulmen.tuner.undo import Snapshot
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_number
from fulmen.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["BatchSizeSearch", "check_batch_size_search", "end_run", "find_batch_size", "reload_data"]

_MODES = ("power", "binsearch")
_COUNTS = {
    "steps_per_trial": "the steps with each size.",
    "init_val": "the first size to try.",
    "max_trials": "the most sizes to try.",
    "max_val": "the largest size to try.",
}
_WORDS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


@dataclass(frozen=True, slots=True)
class BatchSizeSearch:
    """Settings of a search, and the order in which sizes are tried.

    Raises:
        MisconfigurationException: An unknown `mode`.
        ValueError: A number out of range.
    """

    mode: Literal["power", "binsearch"] = "power"
    steps_per_trial: int = 3
    init_val: int = 2
    max_trials: int = 25
    batch_arg_name: str = "batch_size"
    margin: float = 0.05
    max_val: int = 8192

    def __post_init__(self) -> None:
        check_one_of("mode", self.mode, _MODES)
        for name, why in _COUNTS.items():
            check_number("", name, getattr(self, name), why, least=1, whole=True)
        why = "the part by which `mode='binsearch'` stays below the largest size that fits."
        check_number("", "margin", self.margin, why, least=0, below=1)
        check_name("batch_arg_name", self.batch_arg_name)

    def largest(self, fits: Callable[[int], bool], most: Callable[[], int]) -> int:
        """Return the largest size that was tried and fits, less the margin for `"binsearch"`.

        Args:
            fits: Tries a size.
            most: Returns the size beyond which there is no point in trying; it may be known only after a trial.

        Raises:
            RuntimeError: None of the sizes tried fits.
        """
        fitting, failing = 0, None
        size = min(self.init_val, self.max_val)
        for _ in range(self.max_trials):
            if fits(size):
                fitting = min(size, most())
            else:
                failing = size
            following = self._following(fitting, failing, most())
            if following is None:
                break
            size = following
        if not fitting:
            raise RuntimeError(
                f"No batch size fits into memory: the smallest tried is {failing}, and memory ran out."
                " Use a smaller model or sample, a lower precision, or activation checkpointing."
            )
        has_margin = self.mode == "binsearch" and failing is not None
        return max(1, math.floor(fitting * (1 - self.margin))) if has_margin else fitting

    def _following(self, fitting: int, failing: int | None, most: int) -> int | None:
        """The next size to try; None if the search is over."""
        if failing is None:
            return None if fitting >= min(most, self.max_val) else min(2 * fitting, most, self.max_val)
        if not fitting:
            return None if failing == 1 else failing // 2
        if self.mode == "power" or failing - fitting <= 1:
            return None
        return (fitting + failing) // 2


def check_batch_size_search(trainer: Trainer, module: LightningModule, search: BatchSizeSearch) -> list[Any]:
    """Check that the batch size can be set and takes effect; return who has it.

    Args:
        trainer: The running Trainer.
        module: The module.
        search: The settings.

    Raises:
        MisconfigurationException: Nobody has the attribute, the loaders are not made by a hook, or batches are divided
            to fit anyway.
    """
    name, fn = search.batch_arg_name, str(trainer.state.fn.value)  # type: ignore[union-attr]  # a run goes on
    found = holders(module, trainer.datamodule, name)
    if not found:
        raise MisconfigurationException(
            f"The search for a batch size is to set {name!r}, but neither `{type(module).__name__}` nor its `hparams`,"
            " nor the datamodule, have such an attribute. Add it and use it in the dataloaders, or name another by"
            " `batch_arg_name=...`."
        )
    word = _WORDS[fn]
    if word in trainer.sources.given:
        raise MisconfigurationException(
            f"The search for a batch size cannot change dataloaders passed to `Trainer.{fn}`: they are made already."
            f" Define `{word}_dataloader` in the module or a datamodule, with `batch_size=self.{name}`."
        )
    if trainer.splits_batches and fn == "fit":
        raise MisconfigurationException(
            "`Trainer(accumulate_grad_batches='auto')` divides a batch that does not fit, so every batch size fits and"
            " there is nothing to search for. Use one of the two."
        )
    return found


def find_batch_size(trainer: Trainer, module: LightningModule, search: BatchSizeSearch) -> int:
    """Search inside a run, and put all back to where it was but for the batch size.

    On several ranks all try the same size, and it fits if it fits on each.

    Args:
        trainer: The Trainer, at the start of a fit, of an epoch, or of an evaluation.
        module: The module.
        search: The settings.

    Returns:
        The batch size, which the attribute has now.

    Raises:
        MisconfigurationException: The search has no effect, see `check_batch_size_search`.
        RuntimeError: Not even single samples fit.
    """
    place = Place(trainer, "scale_batch_size")
    found, name = check_batch_size_search(trainer, module, search), search.batch_arg_name
    before = value_of(found, name)
    snapshot = Snapshot(trainer, module, trainer.datamodule, trainer.sources.given)
    trial = Trial(trainer, module, place, snapshot, steps=search.steps_per_trial)

    def fits(size: int) -> bool:
        if place.is_interrupted():
            place.leave_if_interrupted()
        set_everywhere(found, name, size)
        does_fit = trial.fits(size)
        rank_zero_info(f"Batch size {size} {'fits' if does_fit else 'does not fit into memory'}.")
        return does_fit

    try:
        best = search.largest(fits, trial.most)
    finally:
        set_everywhere(found, name, before)
        snapshot.restore()
    place.leave_if_interrupted()
    set_everywhere(found, name, best)
    rank_zero_info(f"The batch size is {best} from now on.")
    return best


def reload_data(trainer: Trainer, *, is_new_fit: bool) -> None:
    """Let the run load its data with the new batch size.

    Args:
        trainer: The Trainer.
        is_new_fit: Nothing was trained yet, and what was made from the length of the data is made again.
    """
    fn = str(trainer.state.fn.value)  # type: ignore[union-attr]  # a run goes on
    if fn != "fit":
        loop: Any = getattr(trainer, f"{fn}_loop")
        loop.forget_data()
        loop.load_data()
        return
    fit_loop = trainer.fit_loop
    fit_loop.val_loop.forget_data()
    if fit_loop.batches is None:
        return
    if is_new_fit:
        fit_loop.forget_data()
        trainer.strategy.setup_optimizers(trainer)  # their schedulers know how many steps there are
        trainer.strategy.setup_precision_plugin()
        return
    every, trainer.reload_dataloaders_every_n_epochs = trainer.reload_dataloaders_every_n_epochs, 1
    try:
        fit_loop.epoch_of_last_load = -1
        fit_loop.load_data()
    finally:
        trainer.reload_dataloaders_every_n_epochs = every
    fit_loop.batches.set_epoch(trainer.current_epoch)


def end_run(trainer: Trainer) -> None:
    """Let the run that was only begun for a search end before its first batch."""
    fn = str(trainer.state.fn.value)  # type: ignore[union-attr]  # a run goes on
    setattr(trainer, LIMITS[fn], 0)
    if fn != "fit":
        reload_data(trainer, is_new_fit=False)
