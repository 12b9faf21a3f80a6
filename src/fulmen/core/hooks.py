"""The methods a user may override, as documented no-ops; `core/events.py` says when each is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.utilities.checkpoint_hooks import CheckpointHooks as CheckpointHooks
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.tree import move_data_to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["CheckpointHooks", "DataHooks", "ModelHooks"]


class ModelHooks:
    """Moments of a run at which a module may act."""

    def on_fit_start(self) -> None:
        """Called at the very beginning of `fit`, after model and optimizers are set up."""

    def on_fit_end(self) -> None:
        """Called at the very end of `fit`."""

    def on_train_start(self) -> None:
        """Called once before the first training epoch, after the sanity check."""

    def on_train_end(self) -> None:
        """Called once after the last training epoch."""

    def on_validation_start(self) -> None:
        """Called at the beginning of every validation run."""

    def on_validation_end(self) -> None:
        """Called at the end of every validation run."""

    def on_test_start(self) -> None:
        """Called at the beginning of testing."""

    def on_test_end(self) -> None:
        """Called at the end of testing."""

    def on_predict_start(self) -> None:
        """Called at the beginning of predicting."""

    def on_predict_end(self) -> None:
        """Called at the end of predicting."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before a training batch; return -1 to skip the rest of the epoch.

        Args:
            batch: The batch, already on the device.
            batch_idx: Its index within the epoch.
        """

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after a training batch.

        Args:
            outputs: `{"loss": detached loss, ...}` with the other keys that `training_step` returned.
            batch: The batch.
            batch_idx: Its index within the epoch.
        """

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a validation batch."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a validation batch with what `validation_step` returned."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a test batch."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a test batch with what `test_step` returned."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a prediction batch."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a prediction batch with what `predict_step` returned."""

    def on_validation_model_zero_grad(self) -> None:
        """Called in `fit` before validation to free the gradients' memory; calls `zero_grad` by default."""
        self.zero_grad()  # type: ignore[attr-defined]  # nn.Module's

    def on_validation_model_eval(self) -> None:
        """Put the model into evaluation mode before validation."""
        self.trainer.model.eval()  # type: ignore[attr-defined]  # the module's

    def on_validation_model_train(self) -> None:
        """Put the model back into training mode; by default every submodule gets the mode it had."""
        self.trainer.model.train()  # type: ignore[attr-defined]

    def on_test_model_eval(self) -> None:
        """Put the model into evaluation mode before testing."""
        self.trainer.model.eval()  # type: ignore[attr-defined]

    def on_test_model_train(self) -> None:
        """Put the model back after testing; by default every submodule gets the mode it had."""
        self.trainer.model.train()  # type: ignore[attr-defined]

    def on_predict_model_eval(self) -> None:
        """Put the model into evaluation mode before predicting."""
        self.trainer.model.eval()  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        """Called before the first batch of a training epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after the last batch (and validation) of a training epoch."""

    def on_validation_epoch_start(self) -> None:
        """Called before the first batch of a validation run."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last batch of a validation run."""

    def on_test_epoch_start(self) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """Called after the last test batch."""

    def on_predict_epoch_start(self) -> None:
        """Called before the first prediction batch."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last prediction batch."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called after `training_step`, before the gradients are cleared."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before `backward` with the loss that is about to be differentiated."""

    def on_after_backward(self) -> None:
        """Called after `backward`; gradients are not clipped yet, and still scaled under fp16."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called before the optimizer's arithmetic, with unscaled gradients, before clipping."""

    def configure_sharded_model(self) -> None:
        """Deprecated name of `configure_model`."""

    def configure_model(self) -> None:
        """Create layers here to have them made on the right device and in the right precision.

        Called for every run, so it must do nothing when the layers are there already.
        """


class DataHooks:
    """Where batches come from and how they get to the device."""

    # on the class, as `nn.Module.__init__` does not call those of its siblings
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def prepare_data(self) -> None:
        """Download and write data; called in one process (per node), so set no state here."""

    def setup(self, stage: str) -> None:
        """Build datasets or layers, in every process.

        Args:
            stage: `"fit"`, `"validate"`, `"test"` or `"predict"`.
        """

    def teardown(self, stage: str) -> None:
        """Undo `setup`; called at the end of every run, also after an error."""

    def train_dataloader(self) -> Any:
        """Return the training loader: any iterable, or a (nested) collection of them."""
        raise _missing(self, "train_dataloader", "fit")

    def val_dataloader(self) -> Any:
        """Return one or several validation loaders."""
        raise _missing(self, "val_dataloader", "validate")

    def test_dataloader(self) -> Any:
        """Return one or several test loaders."""
        raise _missing(self, "test_dataloader", "test")

    def predict_dataloader(self) -> Any:
        """Return one or several prediction loaders."""
        raise _missing(self, "predict_dataloader", "predict")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it is moved to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; needed only for types that have no `.to` and are no collection."""
        return move_data_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch after it was moved to the device, e.g. augment it there."""
        return batch


def _missing(owner: object, hook: str, run: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"`{type(owner).__name__}.{hook}()` is called but not implemented."
        f" Define it, or pass the loader: `trainer.{run}(model, {'train_' if run == 'fit' else ''}dataloaders=...)`."
    )
