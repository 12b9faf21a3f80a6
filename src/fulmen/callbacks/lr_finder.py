"""Find a learning rate as a fit begins, and train with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fulmen.core.callback import Callback
from fulmen.tuner.lr_finder import (
    LRFinder,
    LRSearch,
    apply_learning_rate,
    find_learning_rate,
    learning_rate_holder,
)
from fulmen.tuner.settings import check_name, holders, set_everywhere, value_of
from fulmen.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["LearningRateFinder"]


class LearningRateFinder(Callback):
    """Search for a learning rate as the fit begins, and train with what it suggests, as `Tuner.lr_find` does.

    The search leaves no trace but the learning rate: `configure_optimizers` is called again with it, so the fit equals
    one of a module that was made with this learning rate. A fit that goes on from a checkpoint has its learning rates
    and does not search again. To search at other times, call `lr_find` in `on_train_epoch_start`; the rates of all
    parameter groups, and the base rates of schedulers, are multiplied by new / old then.

    Args:
        min_lr: The first learning rate.
        max_lr: The last.
        num_training_steps: Number of optimizer steps of the search.
        mode: `"exponential"`: a constant factor between steps; `"linear"`: a constant difference.
        early_stop_threshold: Stop when the smoothed loss is this many times the best; None never.
        update_attr: Use the suggestion: set the attribute and the running optimizer.
        attr_name: Name of the attribute of the module, datamodule or their `hparams` that holds the learning rate;
            empty: `lr` or `learning_rate`.

    Attributes:
        optimal_lr: The result of the last search; its `suggestion()` is the learning rate.

    Raises:
        MisconfigurationException: An unknown `mode`.
        ValueError: A number out of range.

    Example::

        class AtMilestones(LearningRateFinder):
            def __init__(self, milestones, **kwargs):
                super().__init__(**kwargs)
                self.milestones = milestones

            def on_fit_start(self, *args):
                pass

            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch in self.milestones:
                    self.lr_find(trainer, pl_module)
    """

    SUPPORTED_MODES: ClassVar[tuple[str, ...]] = ("linear", "exponential")
    is_tuner = True
    tunes = "learning rate"

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        self._search = LRSearch(min_lr, max_lr, num_training_steps, mode, early_stop_threshold)  # type: ignore[arg-type]  # it checks
        check_name("attr_name", attr_name)
        self._update_attr = update_attr
        self._attr_name = attr_name
        self._applied: tuple[str, float] | None = None
        self.optimal_lr: LRFinder | None = None

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search now, in `on_fit_start`, `on_train_start` or `on_train_epoch_start`, and use the suggestion.

        Args:
            trainer: The running Trainer.
            pl_module: Its module.
        """
        name = learning_rate_holder(pl_module, trainer.datamodule, self._attr_name) if self._update_attr else ""
        found = holders(pl_module, trainer.datamodule, name) if name else []
        before = value_of(found, name) if name else None
        is_new_fit = trainer.scope.hook == "on_fit_start" and trainer.global_step == 0
        self.optimal_lr = find_learning_rate(trainer, pl_module, self._search, before)
        suggestion = self.optimal_lr.suggestion() if name else None
        if suggestion is None:
            return
        set_everywhere(found, name, suggestion)
        apply_learning_rate(trainer, before, suggestion, is_new_fit=is_new_fit)
        self._applied = (name, suggestion)
        rank_zero_info(f"The learning rate (`{name}`) is {suggestion:.6g} from now on.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, unless the fit goes on from a checkpoint."""
        if trainer.fast_dev_run:
            return
        if trainer.ckpt_path is not None:
            rank_zero_info(
                "`LearningRateFinder` does not search: the fit goes on with the checkpoint's learning rates."
            )
            return
        self.lr_find(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the attribute the learning rate that was found before the checkpoint was written."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and state["applied"] and trainer.state.fn == "fit":
            name, lr = state["applied"]
            set_everywhere(holders(pl_module, trainer.datamodule, name), name, lr)

    def state_dict(self) -> dict[str, Any]:
        """Return the result of the search."""
        if self.optimal_lr is None:
            return {}
        return {"finder": self.optimal_lr.state_dict(), "applied": list(self._applied or ())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.optimal_lr = LRFinder.from_state_dict(state_dict["finder"])
        applied = state_dict["applied"]
        self._applied = (applied[0], applied[1]) if applied else None
