"""ProgressBar: what every progress bar knows about the run, without any drawing."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["ProgressBar", "get_standard_metrics"]

_VERSION_TEXT_LENGTH = 4  # of a version given as text, e.g. a run id, the bar shows the end


class ProgressBar(Callback):
    """Base of all progress bars; derive from it to show progress in your own way.

    It offers totals, descriptions and metrics to read; the hooks of `Callback` say when to draw. A Trainer has at most
    one progress bar.

    Example::

        class Lines(ProgressBar):
            def disable(self):
                self.silent = True

            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                print(f"batch {batch_idx} of {self.total_train_batches}")
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._current_eval_dataloader_idx: int | None = None

    # ---- the run

    @property
    def trainer(self) -> Trainer:
        """The Trainer that this bar shows.

        Raises:
            TypeError: No run has begun yet.
        """
        if self._trainer is None:
            raise TypeError(
                f"`{type(self).__name__}.trainer` is not known yet: it is set when a run begins."
                " Read it from inside a hook, or after `setup()`."
            )
        return self._trainer

    @property
    def sanity_check_description(self) -> str:
        """What the bar says while validation is tried before training."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """What the bar says before the first training epoch."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """What the bar says during validation."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """What the bar says during testing."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """What the bar says during prediction."""
        return "Predicting"

    # ---- totals; infinite where a loader has no length

    @property
    def total_train_batches(self) -> int | float:
        """Training batches of an epoch."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches(self) -> int | float:
        """Validation batches of all loaders together; 0 in an epoch of a fit that does not validate."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return sum(_as_list(trainer.num_sanity_val_batches))
        every = trainer.check_val_every_n_epoch
        fitting = trainer.state.fn == "fit"
        if fitting and every is not None and (trainer.current_epoch + 1) % every != 0:
            return 0
        return sum(_as_list(trainer.num_val_batches))

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Validation batches of the loader in use, of the sanity check while that is on."""
        trainer = self.trainer
        return self._of_current_loader(
            trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Test batches of the loader in use."""
        return self._of_current_loader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Prediction batches of the loader in use."""
        return self._of_current_loader(self.trainer.num_predict_batches)

    def _of_current_loader(self, counts: list[int | float] | int | float) -> int | float:
        loader_idx = self._current_eval_dataloader_idx
        return _as_list(counts)[loader_idx if loader_idx is not None else 0]

    # ---- which loader is in use

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Tell whether this loader is another than at the last call, and remember it.

        Args:
            dataloader_idx: Index of the loader of the present batch.
        """
        changed = self._current_eval_dataloader_idx != dataloader_idx
        self._current_eval_dataloader_idx = dataloader_idx
        return changed

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget the loader in use, as an evaluation begins."""
        self._current_eval_dataloader_idx = None

    # ---- what a bar may do

    def disable(self) -> None:
        """Show nothing from now on; called by `setup` on every process but the first.

        Raises:
            NotImplementedError: A progress bar of your own must define it.
        """
        raise NotImplementedError(_must_define(self, "disable"))

    def enable(self) -> None:
        """Undo `disable`.

        Raises:
            NotImplementedError: A progress bar of your own must define it.
        """
        raise NotImplementedError(_must_define(self, "enable"))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without disturbing the bar; `trainer.print` and `module.print` come here.

        Args:
            args: What to print.
            kwargs: As of the built-in `print`.
        """
        builtins.print(*args, **kwargs)  # noqa: T201 - printing is what it is for

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the Trainer, and be silent on every process but the first."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what the bar shows beside the counts; override it to add, drop or format values.

        Args:
            trainer: The Trainer.
            pl_module: The module; not used here.

        Returns:
            `v_num` (version of the logger, if there is one), then everything logged with `prog_bar=True`.

        Example::

            def get_metrics(self, trainer, pl_module):
                metrics = super().get_metrics(trainer, pl_module)
                metrics.pop("v_num", None)
                return metrics
        """
        standard = get_standard_metrics(trainer)
        logged = trainer.progress_bar_metrics
        twice = sorted(standard.keys() & logged.keys())
        if twice:
            rank_zero_warn(
                f"The progress bar shows {', '.join(map(repr, twice))} by itself, and `self.log(..., prog_bar=True)`"
                " uses the same name. The logged value is shown; log it under another name to see both."
            )
        return {**standard, **logged}


def get_standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """Return what a bar shows without any logging: the version of the logger as `v_num`.

    Args:
        trainer: The Trainer.

    Returns:
        `{"v_num": ...}`, a text cut to its last four characters; empty without a logger or version.
    """
    version = trainer.loggers[0].version if trainer.loggers else None
    if version is None or version == "":  # a logger without versions, or the stand-in during `fast_dev_run`
        return {}
    return {"v_num": version[-_VERSION_TEXT_LENGTH:] if isinstance(version, str) else version}


def _as_list(counts: list[int | float] | int | float) -> list[int | float]:
    return list(counts) if isinstance(counts, list | tuple) else [counts]


def _must_define(bar: ProgressBar, method: str) -> str:
    name = type(bar).__name__
    return (
        f"`{name}.{method}()` is not defined: only the class knows how to switch its output on and off."
        f" Define `{method}` in `{name}`."
    )
