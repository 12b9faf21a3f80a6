"""What a Trainer calls on a strategy, in terms of the verbs of `strategy.py`.

Set-up: connect -> setup_environment -> setup (convert, move, wrap, optimizers)
Step:   batch_to_device -> training_step -> backward -> optimizer_step
End:    teardown
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.strategies.optimizer_state import move_optimizer_state
from fulmen.utilities.files import is_sharded_folder

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.types import _PATH, LRSchedulerConfig

__all__ = ["TrainerSide"]


class TrainerSide:
    """The half of `Strategy` that knows of one module, its optimizers, and a run. Not used by itself."""

    lr_scheduler_configs: list[LRSchedulerConfig]
    """The learning-rate schedulers of the run."""

    if TYPE_CHECKING:  # the verbs that are used here; `Strategy` defines them

        @property
        def root_device(self) -> torch.device: ...  # noqa: D102
        @property
        def is_global_zero(self) -> bool: ...  # noqa: D102
        @property
        def accelerator(self) -> Accelerator: ...  # noqa: D102
        @property
        def precision_plugin(self) -> Precision: ...  # noqa: D102
        @property
        def checkpoint_io(self) -> CheckpointIO: ...  # noqa: D102
        def module_to_device(self, module: nn.Module) -> None: ...  # noqa: D102
        def setup_module(self, module: nn.Module) -> nn.Module: ...  # noqa: D102
        def no_backward_sync(  # noqa: D102
            self, module: nn.Module, enabled: bool = True
        ) -> AbstractContextManager[Any]: ...
        def run_backward(  # noqa: D102
            self, tensor: Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any
        ) -> None: ...
        def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any: ...  # noqa: D102
        def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]: ...  # noqa: D102
        def load_module_state_dict(  # noqa: D102
            self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True
        ) -> None: ...
        def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]: ...  # noqa: D102
        def load_optimizer_state(self, optimizer: Optimizer, state: Any) -> None: ...  # noqa: D102

    def __init__(self) -> None:
        self._lightning_module: Any = None
        self._model: Any = None
        self._optimizers: list[Optimizer] = []
        self.lr_scheduler_configs = []

    # ---- the module and its optimizers

    def connect(self, model: nn.Module) -> None:
        """Take the user's module; first call of each run.

        Args:
            model: The module, not wrapped.
        """
        self._lightning_module = model
        self._model = model

    @property
    def lightning_module(self) -> Any:
        """The user's module, not wrapped; `None` before `connect`."""
        return self._lightning_module

    @property
    def model(self) -> Any:
        """The module as it is trained, wrapped if the strategy wraps it; `None` before `connect`."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the run, empty except in fit."""
        return self._optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers

    # ---- set-up

    def setup_environment(self) -> None:
        """Make the device of this process ready."""
        self.accelerator.setup_device(self.root_device)

    def setup(self, trainer: Any) -> None:
        """Prepare the module: convert, move, wrap; in fit make the optimizers.

        Args:
            trainer: The running Trainer.
        """
        self.accelerator.setup(trainer)
        self._model = self.precision_plugin.convert_module(self._model)
        self.model_to_device()
        self.prepare_model(trainer)
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        for optimizer in self._optimizers:
            move_optimizer_state(optimizer, self.root_device)

    def prepare_model(self, trainer: Any) -> None:
        """Wrap the module, on its device, for the run.

        Args:
            trainer: The running Trainer.
        """
        self._model = self.setup_module(self._model)

    def setup_optimizers(self, trainer: Any) -> None:
        """Take the optimizers and schedulers that the user configured.

        Args:
            trainer: The running Trainer; its `configured_optimizers()` returns both.
        """
        self.optimizers, self.lr_scheduler_configs = trainer.configured_optimizers()

    def setup_precision_plugin(self) -> None:
        """Let the precision replace module, optimizers or schedulers."""
        self.model, self.optimizers, self.lr_scheduler_configs = self.precision_plugin.connect(
            self.model, self.optimizers, self.lr_scheduler_configs
        )

    def model_to_device(self) -> None:
        """Move the module to the device of this process."""
        self.module_to_device(self._model)

    def model_sharded_context(self) -> AbstractContextManager[Any]:
        """Return a context in which `configure_model` makes layers in their shards; nothing happens on one device."""
        return nullcontext()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether weights are loaded into the wrapped module, i.e. after `setup`, rather than before."""
        return False

    @property
    def has_dtensors(self) -> bool:
        """Whether a rank may have only parts of the weights, as `DTensor`s."""
        return False

    def average_accumulated(self) -> bool:
        """Average over ranks what was accumulated within `block_backward_sync`, without another backward pass.

        Returns:
            Whether it is done; where gradients are whole, the loop does it.
        """
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the Trainer loads the states of the optimizers; otherwise the strategy does."""
        return True

    @property
    def allows_inference_mode(self) -> bool:
        """Whether validate, test and predict may use `torch.inference_mode`; otherwise they use `torch.no_grad`."""
        return True

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Whether the strategy accumulates gradients itself."""
        return False

    @property
    def takes_one_optimizer(self) -> bool:
        """Whether the strategy trains with one optimizer at most, by hand, too, and refuses several itself."""
        return False

    # ---- step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `training_step`, through the wrapper if there is one."""
        return self._lightning_module.training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `validation_step`, through the wrapper if there is one."""
        return self._lightning_module.validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `test_step`, through the wrapper if there is one."""
        return self._lightning_module.test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `predict_step`, through the wrapper if there is one."""
        return self._lightning_module.predict_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward pass.

        Args:
            closure_loss: The loss, not scaled.
            optimizer: The optimizer whose step this is for.
            args: Further arguments of the module's `backward`.
            kwargs: Further arguments of the module's `backward`.

        Returns:
            The loss as the precision returns it (scaled, if it scales).
        """
        self.pre_backward(closure_loss)
        module = self._lightning_module
        closure_loss = self.precision_plugin.pre_backward(closure_loss, module)
        self.run_backward(closure_loss, module, *args, optimizer=optimizer, **kwargs)
        closure_loss = self.precision_plugin.post_backward(closure_loss, module)
        self.post_backward(closure_loss)
        return closure_loss

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Called before each backward pass; nothing by default.

        Args:
            closure_loss: The loss, not scaled.
        """

    def post_backward(self, closure_loss: Tensor) -> None:
        """Called after each backward pass; nothing by default.

        Args:
            closure_loss: The loss as the precision returned it.
        """

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """Return a context whose backward passes leave gradients unsynchronized, for accumulation."""
        return self.no_backward_sync(self._model)

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce a value over all processes; see `Strategy.all_reduce`.

        Args:
            tensor: The value of this process.
            group: The processes; all by default.
            reduce_op: "mean", "sum" or an operator of `torch.distributed`.

        Returns:
            The reduced value; on one device the value itself.
        """
        return self.all_reduce(tensor, group, reduce_op)

    # ---- checkpoints

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint, on the first process.

        Args:
            checkpoint: What to write.
            filepath: Where to.
            storage_options: For the `CheckpointIO`.
        """
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            checkpoint_path: Where from.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to the `CheckpointIO`.

        Returns:
            Its content, in host memory; that of a folder of shards, too.
        """
        if self.root_device.type == "cuda":
            torch.cuda.empty_cache()  # the content is copied to the device later, beside what is there
        # implementations written for older versions do not take the argument
        kwargs = {} if weights_only is None else {"weights_only": weights_only}
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, **kwargs)
        if is_sharded_folder(checkpoint_path):
            from fulmen.plugins.io.distributed_io import ShardedCheckpoint

            if isinstance(checkpoint, ShardedCheckpoint):
                return checkpoint.read_whole()
        return checkpoint

    def remove_checkpoint(self, filepath: _PATH) -> None:
        """Delete a checkpoint, on the first process.

        Args:
            filepath: Where it is.
        """
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights of the user's module, under their own names."""
        return self.get_module_state_dict(self._lightning_module)

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Load the weights of a checkpoint into the user's module.

        Args:
            checkpoint: Has the weights under "state_dict".
            strict: Names must be the same on both sides.
        """
        self.load_module_state_dict(self._lightning_module, checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer for a checkpoint.

        Args:
            optimizer: One of `optimizers`.
        """
        return self.get_optimizer_state(optimizer)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Load the states of a checkpoint into the optimizers.

        Args:
            checkpoint: Has the states in a list under "optimizer_states".

        Raises:
            ValueError: There are more or fewer states than optimizers.
        """
        for optimizer, state in self._paired_with_states(checkpoint):
            self.load_optimizer_state(optimizer, state)
            move_optimizer_state(optimizer, self.root_device)

    def _paired_with_states(self, checkpoint: dict[str, Any]) -> list[tuple[Optimizer, Any]]:
        states = checkpoint["optimizer_states"]
        if len(states) != len(self._optimizers):
            raise ValueError(
                f"The checkpoint has states of {len(states)} optimizers, but `configure_optimizers` returned"
                f" {len(self._optimizers)}; which belongs to which is unknown."
                " Return as many, or load only the weights with `load_from_checkpoint`."
            )
        return list(zip(self._optimizers, states, strict=True))

    def whole_states(self) -> dict[str, Any]:
        """Return weights and states of the optimizers, whole on rank 0, for a process without the others.

        All ranks must call it.
        """
        optimizers = [self.optimizer_state(optimizer) for optimizer in self._optimizers]
        return {"state_dict": self.lightning_module_state_dict(), "optimizers": optimizers}

    def gathered(self, tree: Any) -> Any:
        """Return a collection with its tensors whole on rank 0; all ranks must call it.

        Args:
            tree: Tensors nested in collections; here they are whole already.
        """
        return tree

    # ---- moments of a run

    def on_train_start(self) -> None:
        """Called when training begins; nothing by default."""

    def on_train_end(self) -> None:
        """Called when training ends; nothing by default."""

    def on_validation_start(self) -> None:
        """Called when validation begins; nothing by default."""

    def on_validation_end(self) -> None:
        """Called when validation ends; nothing by default."""

    def on_test_start(self) -> None:
        """Called when testing begins; nothing by default."""

    def on_test_end(self) -> None:
        """Called when testing ends; nothing by default."""

    def on_predict_start(self) -> None:
        """Called when predicting begins; nothing by default."""

    def on_predict_end(self) -> None:
        """Called when predicting ends; nothing by default."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Called before each training batch; nothing by default.

        Args:
            batch: The batch, on the device.
            batch_idx: Its index within the epoch.
        """

    def post_training_step(self) -> None:
        """Called after each `training_step`, before the backward pass; nothing by default."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when the run ends by an exception; nothing by default.

        Args:
            exception: The exception.
        """

    # ---- end

    def teardown(self) -> None:
        """Bring module and optimizers back to host memory and end what the parts hold open."""
        try:
            if self.root_device.type != "cpu":
                for optimizer in self._optimizers:
                    move_optimizer_state(optimizer, torch.device("cpu"))
                if self._lightning_module is not None:
                    self._lightning_module.cpu()
            self.precision_plugin.teardown()
            self.accelerator.teardown()
        finally:
            self.checkpoint_io.teardown()  # waits for checkpoints that are being written
