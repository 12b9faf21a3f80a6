"""Find the largest batch size that fits into memory as a run begins, and use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fulmen.core.callback import Callback
from fulmen.tuner.batch_size import BatchSizeSearch, check_batch_size_search, find_batch_size, reload_data
from fulmen.tuner.settings import holders, set_everywhere
from fulmen.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["BatchSizeFinder"]


class BatchSizeFinder(Callback):
    """Search for a batch size as a run begins, and go on with it, as `Tuner.scale_batch_size` does.

    It searches in fit, validate, test and predict. The search leaves no trace but the batch size. A fit that goes on
    from a checkpoint has its batch size and does not search again. To search at other times, call `scale_batch_size` in
    `on_train_epoch_start`.

    Args:
        mode: `"power"` ends at the last power that fits; `"binsearch"` narrows it down.
        steps_per_trial: Number of steps with each size.
        init_val: The first size.
        max_trials: The most sizes to try.
        batch_arg_name: Name of the attribute of module, datamodule or their `hparams` that the dataloader hooks use.
        margin: `"binsearch"` takes off this part of the largest size that fits.
        max_val: The largest size to try.

    Attributes:
        optimal_batch_size: The result; `init_val` before.

    Raises:
        MisconfigurationException: An unknown `mode`; at set-up, nobody has the attribute, or loaders were passed.
        ValueError: A number out of range.

    Example::

        trainer = Trainer(callbacks=BatchSizeFinder(mode="binsearch"))
        trainer.fit(model)
    """

    SUPPORTED_MODES: ClassVar[tuple[str, ...]] = ("power", "binsearch")
    is_tuner = True
    tunes = "batch size"

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        self._search = BatchSizeSearch(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)  # type: ignore[arg-type]  # it checks
        self._has_found = False
        self.optimal_batch_size: int | None = init_val

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Check that the batch size can be set and takes effect."""
        if not trainer.fast_dev_run:
            check_batch_size_search(trainer, pl_module, self._search)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search now, as a fit, an epoch or an evaluation starts, and go on with the result.

        Args:
            trainer: The running Trainer.
            pl_module: Its module.
        """
        is_new_fit = trainer.scope.hook == "on_fit_start" and trainer.global_step == 0
        self.optimal_batch_size = find_batch_size(trainer, pl_module, self._search)
        self._has_found = True
        reload_data(trainer, is_new_fit=is_new_fit)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, unless the fit goes on from a checkpoint."""
        if trainer.fast_dev_run:
            return
        if trainer.ckpt_path is not None:
            rank_zero_info("`BatchSizeFinder` does not search: the fit goes on with the checkpoint's batch size.")
            return
        self.scale_batch_size(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, if this is `Trainer.validate`."""
        if trainer.state.fn == "validate" and not trainer.fast_dev_run:
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search."""
        if not trainer.fast_dev_run:
            self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search."""
        if not trainer.fast_dev_run:
            self.scale_batch_size(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the attribute the batch size that was found before the checkpoint was written."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == "fit":
            name = self._search.batch_arg_name
            set_everywhere(holders(pl_module, trainer.datamodule, name), name, state["optimal_batch_size"])

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"optimal_batch_size": self.optimal_batch_size} if self._has_found else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.optimal_batch_size = state_dict["optimal_batch_size"]
        self._has_found = True
