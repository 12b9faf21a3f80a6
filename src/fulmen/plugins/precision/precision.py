"""The number format of a run: 32 bit, and what the other formats change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.utilities.checkpoint_hooks import CheckpointHooks
from fulmen.utilities.enums import GradClipAlgorithmType
from fulmen.utilities.sharded_gradients import clip_gradients_by_norm, clip_gradients_by_value

__all__ = ["Precision"]

_STEP_METHODS = (
    "convert_input",
    "convert_output",
    "forward_context",
    "train_step_context",
    "val_step_context",
    "test_step_context",
    "predict_step_context",
    "pre_backward",
    "backward",
    "post_backward",
    "unscale_gradients",
    "optimizer_step",
)
_NO_CONTEXT = nullcontext()


class Precision(CheckpointHooks):
    """32-bit precision: nothing is converted, and each method does what a plain loop does.

    Other formats subclass it and override what differs. Order within a training step::

        convert_input -> [train_step_context: the user's training_step] -> pre_backward -> backward -> post_backward
        -> unscale_gradients -> clip_gradients -> optimizer_step

    No method calls a hook. A context may be asked for anew at each step, or kept if `is_plain`.
    """

    precision: str = "32-true"
    """The name under which `Trainer(precision=...)` knows it."""

    changes_state_dict: bool = False
    """Whether `convert_module` adds or reshapes entries, so that a checkpoint can be loaded only after it."""

    interchangeable_with: tuple[str, ...] = ()
    """Names of other classes whose state in a checkpoint this one takes as its own."""

    @property
    def is_plain(self) -> bool:
        """Whether the methods of a step are the plain ones, so that a loop may leave them out."""
        kind = type(self)
        return not any(
            name in self.__dict__ or getattr(kind, name) is not getattr(Precision, name) for name in _STEP_METHODS
        )

    # ---- before the first step

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert parameters and buffers; called once per run, before the module moves to its device.

        Args:
            module: The user's module.

        Returns:
            The module to use.
        """
        return module

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Replace parts once everything is set up.

        Args:
            model: The module, wrapped and on its device.
            optimizers: The optimizers.
            lr_schedulers: The configurations of the schedulers.

        Returns:
            The three, replaced or not.
        """
        return model, optimizers, lr_schedulers

    def after_sharding(self, module: nn.Module) -> None:
        """Adapt how weights are gathered; called when `fully_shard` has cut a module.

        Args:
            module: The module; in place.
        """

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which a new module gets its parameters in this format at once."""
        return _NO_CONTEXT

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors get the format of the inputs."""
        return _NO_CONTEXT

    # ---- forward

    def convert_input(self, data: Any) -> Any:
        """Convert a batch to the type that `forward` expects.

        Args:
            data: The batch.

        Returns:
            The batch with its floating point tensors converted.
        """
        return data

    def convert_output(self, data: Any) -> Any:
        """Convert what `forward` returned to torch's default type.

        Args:
            data: The output.

        Returns:
            The output with its floating point tensors converted.
        """
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of `forward` and of the step methods."""
        return _NO_CONTEXT

    def train_step_context(self) -> AbstractContextManager[Any]:
        """Return the context of `training_step`."""
        return self.forward_context()

    def val_step_context(self) -> AbstractContextManager[Any]:
        """Return the context of `validation_step`."""
        return self.forward_context()

    def test_step_context(self) -> AbstractContextManager[Any]:
        """Return the context of `test_step`."""
        return self.forward_context()

    def predict_step_context(self) -> AbstractContextManager[Any]:
        """Return the context of `predict_step`."""
        return self.forward_context()

    # ---- backward

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Prepare the loss for the backward pass, e.g. scale it.

        Args:
            tensor: The loss.
            module: The user's module.

        Returns:
            The tensor to start the backward pass from.
        """
        return tensor

    def backward(self, tensor: Tensor, model: Any, optimizer: Any = None, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass: by the module's own `backward` if it has one.

        Args:
            tensor: What `pre_backward` returned.
            model: The user's module.
            optimizer: The optimizer whose step this is for; not used here.
            args: Further arguments of `backward`.
            kwargs: Further arguments of `backward`.
        """
        if hasattr(model, "backward"):
            model.backward(tensor, *args, **kwargs)
        else:
            tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # of torch

    def post_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """Called after the backward pass.

        Args:
            tensor: What `pre_backward` returned.
            module: The user's module.

        Returns:
            The loss.
        """
        return tensor

    # ---- optimizer

    def main_params(self, optimizer: Optimizer) -> Iterable[nn.Parameter]:
        """Iterate over the parameters of an optimizer.

        Args:
            optimizer: The optimizer.

        Returns:
            The parameters that it updates.
        """
        for group in optimizer.param_groups:
            yield from group["params"]

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size, before anybody looks at them.

        Args:
            optimizer: The optimizer whose gradients are meant.
        """

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """Clip the gradients of an optimizer.

        Args:
            optimizer: The optimizer.
            clip_val: The bound; 0 or less: no clipping.
            gradient_clip_algorithm: Bound the total 2-norm ("norm") or each entry ("value").
        """
        if clip_val <= 0:
            return
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            self.clip_grad_by_value(optimizer, clip_val)
        else:
            self.clip_grad_by_norm(optimizer, clip_val)

    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clamp each entry of the gradients to [-clip_val, clip_val]."""
        clip_gradients_by_value(self.main_params(optimizer), clip_val)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Scale the gradients so that their total 2-norm is at most `clip_val`."""
        clip_gradients_by_norm(self.main_params(optimizer), clip_val)

    def optimizer_step(
        self, optimizer: Any, model: Any = None, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Update the parameters.

        Args:
            optimizer: The optimizer, not wrapped.
            model: The user's module; not used here.
            closure: Computes gradients; without it they are there already.
            kwargs: Further arguments of the optimizer's `step`.

        Returns:
            What the optimizer's `step` returned.
        """
        if closure is None:
            return optimizer.step(**kwargs)
        return optimizer.step(closure=closure, **kwargs)

    # ---- checkpoints, end

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, e.g. the state of the gradient scaler."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in an earlier run."""

    def teardown(self) -> None:
        """Give back at the end of a run what is no longer needed; nothing by default."""
