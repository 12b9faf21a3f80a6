"""One optimization step: automatic, direct or through a closure, and manual."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from fulmen.core.module import LightningModule
from fulmen.core.optimizer import LightningOptimizer, do_nothing_closure
from fulmen.loops.finite import LossWatch, add_place
from fulmen.loops.gradients import average_gradients
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.optimizer_step import clear_gradients, clears_plainly, quick_step
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.signature_utils import is_param_in_hook_signature

if TYPE_CHECKING:
    from fulmen.loops.progress import FitProgress
    from fulmen.metrics.publish import Scope
    from fulmen.trainer.event_table import EventTable
    from fulmen.utilities.types import STEP_OUTPUT

__all__ = ["AutomaticOptimization", "ManualOptimization", "takes_batch_idx"]


class _Optimization:
    """What both ways of optimizing share: the call of `training_step` and the reading of its output."""

    def __init__(
        self, strategy: Strategy, events: EventTable, scope: Scope, progress: FitProgress, *, wants_outputs: bool,
        told: set[str],
    ) -> None:  # fmt: skip
        module = strategy.lightning_module
        assert isinstance(module, LightningModule)  # noqa: S101 - a run has one
        self.module: LightningModule = module
        self.strategy = strategy
        self.events = events
        self.scope = scope
        self.progress = progress
        self.wants_outputs = wants_outputs
        self.told = told  # of what this fit was warned already
        self.losses = LossWatch(progress, told, rank=strategy.global_rank, world_size=strategy.world_size)
        self.last_loss: Tensor | None = None  # as it was differentiated, but not scaled
        self.takes_batch_idx = takes_batch_idx(module.training_step)
        self.precision = strategy.precision_plugin
        # the plain context is made once; others are asked for each step, as a user's may be for one use
        self.context: AbstractContextManager[Any] | None = nullcontext() if self.precision.is_plain else None
        self.training_step: Callable[..., STEP_OUTPUT] = strategy.training_step
        self.strategy_backward = is_overridden("backward", strategy, Strategy)
        self.own_backward = is_overridden("backward", module, LightningModule)
        self.pre_backward = strategy.pre_backward if is_overridden("pre_backward", strategy, Strategy) else None
        self.is_parallel = strategy.world_size > 1
        # what the loss is multiplied by: not 1 only in a last batch that is shorter on some ranks than on others
        self.weight = 1.0
        self.dispatches_backward = (
            self.strategy_backward
            or is_overridden("run_backward", strategy, Strategy)
            or self.own_backward
            or not self.precision.is_plain
        )
        if torch.is_anomaly_enabled():
            self.differentiate = partial(self._name_the_place, self.differentiate)  # type: ignore[method-assign]

    def _name_the_place(self, differentiate: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; an error of `detect_anomaly` tells in which batch it came up."""
        try:
            differentiate(*args, **kwargs)
        except RuntimeError as error:
            add_place(error, self.progress, rank=self.strategy.global_rank, world_size=self.strategy.world_size)
            raise

    def measure(self, profiled: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have the step and the backward pass measured by a profiler.

        Args:
            profiled: Takes the name of a strategy's method and a function; returns the measured function.
        """
        self.training_step = profiled("training_step", self.training_step)
        self.differentiate = profiled("backward", self.differentiate)  # type: ignore[method-assign]

    def release(self) -> None:
        """Let go of what the last batch left, which could hold its graph; called when a run has ended."""
        self.last_loss = None
        self.losses.clear()

    def compute(self, batch: Any, batch_idx: int, *, due: bool, divisor: int) -> dict[str, Any]:
        """Call `training_step` without learning from it: for what a forward pass leaves, e.g. in batch norms."""
        self.scope.hook = "training_step"
        with torch.no_grad(), self.context or self.precision.train_step_context():
            output = self.training_step(batch, batch_idx) if self.takes_batch_idx else self.training_step(batch)
        self.scope.hook = None
        return _outputs(output, _loss_of(output)) if self.wants_outputs else {}

    def differentiate(self, loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of `loss` between its hooks."""
        events, scope = self.events, self.scope
        if self.pre_backward is not None and not self.strategy_backward:
            self.pre_backward(loss)
        if self.dispatches_backward or args or kwargs:
            self._dispatch(loss, optimizer, *args, **kwargs)
        else:
            events.on_before_backward(loss)
            scope.hook = "backward"
            if not loss.requires_grad or loss.ndim:
                loss = _differentiable(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        scope.hook = None
        events.on_after_backward()

    def _dispatch(self, loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> None:
        """Backward where the strategy, the precision or the module has a say in it."""
        if self.strategy_backward:
            self.events.on_before_backward(loss)
            self.scope.hook = "backward"
            self.strategy.backward(loss, optimizer, *args, **kwargs)
            return
        if not (self.own_backward or args or "gradient" in kwargs):
            loss = _differentiable(loss)
        loss = self.precision.pre_backward(loss, self.module)
        self.events.on_before_backward(loss)
        self.scope.hook = "backward"
        self.strategy.run_backward(loss, self.module, *args, optimizer=optimizer, **kwargs)
        self.precision.post_backward(loss, self.module)


class AutomaticOptimization(_Optimization):
    """Clears gradients, runs backward and steps the one optimizer, once per accumulation window.

    *direct* (normal): `forward_backward`, and when the window is full `before_step` and the optimizer's step.
    *closure* (the module overrides `optimizer_step`, or the optimizer or strategy calls back): the same, handed over.
    """

    def __init__(
        self,
        strategy: Strategy,
        events: EventTable,
        scope: Scope,
        progress: FitProgress,
        *,
        wants_outputs: bool,
        told: set[str],
        optimizer: LightningOptimizer | None,
        clip_val: float | None,
        clip_algorithm: str | None,
    ) -> None:
        super().__init__(strategy, events, scope, progress, wants_outputs=wants_outputs, told=told)
        module = self.module
        self.wrapped = optimizer
        self.optimizer: Optimizer | None = None if optimizer is None else optimizer.optimizer
        self.clip = (clip_val, clip_algorithm)
        self.clips = clip_val is not None or is_overridden("configure_gradient_clipping", module, LightningModule)
        self.own_zero_grad = is_overridden("optimizer_zero_grad", module, LightningModule)
        self.needs_closure = optimizer is not None and self._closure_needed()
        if self.optimizer is not None:
            if not clears_plainly(self.optimizer):
                self.own_zero_grad = True
            self.torch_step = quick_step(self.optimizer)
        self.outputs: dict[str, Any] = {}
        # ---- the accumulation window
        self.window_batches = 0  # batches seen in it
        self.window_losses = 0  # batches whose loss was differentiated in it
        self.divisor = 1  # what each loss of it is divided by

    def measure(self, profiled: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have the optimizer's step measured, too; see `_Optimization.measure`."""
        super().measure(profiled)
        if self.needs_closure:
            self._step_through_closure = profiled("optimizer_step", self._step_through_closure)  # type: ignore[method-assign]
        elif self.optimizer is not None:
            self.torch_step = profiled("optimizer_step", self.torch_step)

    def _closure_needed(self) -> bool:
        strategy, precision = self.strategy, self.precision
        return (
            is_overridden("optimizer_step", self.module, LightningModule)
            or is_overridden("optimizer_step", strategy, Strategy)
            or (not precision.is_plain and is_overridden("optimizer_step", precision, Precision))
            or isinstance(self.optimizer, LBFGS)
            or bool(getattr(self.optimizer, "_need_closure", False))
            or _step_demands_closure(self.optimizer)
        )

    def step(self, batch: Any, batch_idx: int, *, due: bool, divisor: int) -> dict[str, Any]:
        """Work on one batch; return the outputs for `on_train_batch_end`.

        Args:
            batch: The batch, on the device.
            batch_idx: Its index in the epoch.
            due: Whether it is the last of its window, so that the optimizer steps.
            divisor: Batches in this window, as far as known; each loss is divided by it.
        """
        if self.window_batches == 0:
            self.window_losses, self.divisor = 0, divisor
        self.window_batches += 1
        if self.needs_closure and due:
            self._step_through_closure(batch, batch_idx)
        elif self.is_parallel and not due:
            self._accumulate(batch, batch_idx)
        else:
            self.forward_backward(batch, batch_idx)
            if due and self.window_losses:
                self._step_directly()
        if due:
            self.window_batches = 0
        return self.outputs

    def _accumulate(self, batch: Any, batch_idx: int) -> None:
        """Add to the gradients of this rank; they are averaged over ranks once, with the window's last batch."""
        with self.strategy.block_backward_sync():
            self.forward_backward(batch, batch_idx)

    def finish_window(self) -> bool:
        """Step on what is accumulated when an epoch ended without saying which batch is its last; tell if there was."""
        has_gradients = self.window_batches > 0 and self.window_losses > 0
        self.window_batches = 0
        if has_gradients:
            if self.is_parallel and self.optimizer is not None:
                average_gradients(self.strategy, self.optimizer)
            self._step_directly()
        return has_gradients

    def release(self) -> None:
        """Let go of what the last batch left, which could hold its graph; called when a run has ended."""
        super().release()
        self.outputs, self.window_batches = {}, 0

    def forward_backward(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Call `training_step`, clear the gradients at a window's start, and differentiate the loss."""
        scope = self.scope
        scope.hook = "training_step"
        with self.context or self.precision.train_step_context():
            output = self.training_step(batch, batch_idx) if self.takes_batch_idx else self.training_step(batch)
        scope.hook = None
        loss = output if output.__class__ is Tensor else _loss_of(output)
        if loss is not None and self.divisor != 1:
            loss = loss / self.divisor
        if loss is not None and self.weight != 1.0:
            loss = loss * self.weight
        self.last_loss = loss
        if self.wants_outputs:
            self.outputs = _outputs(output, loss)
        if self.optimizer is not None and self.window_batches == 1:
            self._zero_grad(batch_idx)
        if loss is not None:
            self.window_losses += 1
            self.differentiate(loss, self.optimizer)
            if not loss.is_cpu:
                self.losses.note(loss)
            elif loss.numel() == 1 and not math.isfinite(loss.item()):
                self.losses.report(loss.item())
        elif self.is_parallel:
            raise RuntimeError(
                f"`training_step` returned None on batch {batch_idx} on rank {self.strategy.global_rank} of"
                f" {self.strategy.world_size}. The other ranks would wait for the gradients of this one, so a batch"
                " cannot be skipped on several processes. Return a loss of zero that depends on the weights instead:"
                " `return sum(p.sum() for p in self.parameters()) * 0.0`."
            )
        elif "None" not in self.told:
            self._warn_of_none(batch_idx)
        return loss

    def _warn_of_none(self, batch_idx: int) -> None:
        self.told.add("None")
        rank_zero_warn(
            f"`training_step` returned None on batch {batch_idx} of epoch {self.progress.epochs.current.completed}, so"
            " nothing is learned from this batch. If that was not on purpose, end `training_step` with `return loss`."
        )

    def _zero_grad(self, batch_idx: int) -> None:
        optimizer, progress = self.optimizer, self.progress.zero_grads
        assert optimizer is not None  # noqa: S101 - only called with one
        progress.total.ready += 1
        progress.current.ready += 1
        self.events.on_before_zero_grad(optimizer)
        progress.total.started += 1
        progress.current.started += 1
        if self.own_zero_grad:
            self.scope.hook = "optimizer_zero_grad"
            self.module.optimizer_zero_grad(self.progress.epochs.current.completed, batch_idx, optimizer)
            self.scope.hook = None
        else:
            clear_gradients(optimizer)
        progress.total.completed += 1
        progress.current.completed += 1

    def before_step(self) -> None:
        """Make the accumulated gradients final: unscaled and clipped."""
        optimizer = self.optimizer
        if self.dispatches_backward and optimizer is not None:
            self.precision.unscale_gradients(optimizer)
        self.events.on_before_optimizer_step(optimizer)
        if self.clips:
            self.scope.hook = "configure_gradient_clipping"
            self.module.configure_gradient_clipping(optimizer, *self.clip)  # type: ignore[arg-type]
            self.scope.hook = None

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Step through the strategy; called by the user's `optimizer_step` on the wrapped optimizer."""

        def prepared() -> Any:
            result = closure()
            if self.window_losses:
                self.before_step()
            return result

        return self.strategy.optimizer_step(optimizer, prepared, self.module, **kwargs)

    def _step_directly(self) -> None:
        steps = self.progress.optimizer_steps
        if self.optimizer is None:  # configure_optimizers returned None: a step is a batch seen
            steps.increment("ready")
            steps.increment("completed")
            return
        if self.window_losses != self.divisor:
            self.strategy.scale_gradients(self.optimizer, self.divisor / self.window_losses)
        if self.needs_closure:  # only to finish a window whose last batch nobody announced
            steps.increment("ready")
            self.optimizer_step(self.optimizer, lambda: None)
            steps.increment("completed")
            return
        self.before_step()
        steps.total.ready += 1
        steps.current.ready += 1
        self.torch_step()
        steps.total.completed += 1
        steps.current.completed += 1

    def _step_through_closure(self, batch: Any, batch_idx: int) -> None:
        steps, calls = self.progress.optimizer_steps, 0
        earlier_losses = self.window_losses
        # by the loss it decides how often to call the closure, which must be alike on all ranks
        shares_loss = self.is_parallel and isinstance(self.optimizer, LBFGS)

        def closure() -> Tensor | None:
            nonlocal calls
            calls += 1
            if calls > 1 and self.divisor > 1:
                raise MisconfigurationException(
                    f"`Trainer(accumulate_grad_batches={self.divisor})` does not work with"
                    f" {type(self.optimizer).__name__}:"
                    " it evaluates the closure several times per step, but only the window's last batch is at hand."
                    " Use `accumulate_grad_batches=1`."
                )
            self.window_losses = earlier_losses
            loss = self.forward_backward(batch, batch_idx)
            if self.window_losses not in (0, self.divisor):
                self.strategy.scale_gradients(self.optimizer, self.divisor / self.window_losses)  # type: ignore[arg-type]
            if loss is None or not shares_loss:
                return None if loss is None else loss.detach()
            return self.strategy.all_reduce(loss.detach().clone(), reduce_op="mean")  # type: ignore[no-any-return]

        steps.increment("ready")
        self.scope.hook = "optimizer_step"
        self.module.optimizer_step(self.progress.epochs.current.completed, batch_idx, self.wrapped, closure)  # type: ignore[arg-type]
        self.scope.hook = None
        if calls == 0:
            raise MisconfigurationException(
                f"`{type(self.module).__name__}.optimizer_step` did not call the closure, so nothing was computed."
                " Pass it on: `optimizer.step(closure=optimizer_closure)`."
            )
        if self.window_losses:
            steps.increment("completed")


class ManualOptimization(_Optimization):
    """Only calls `training_step`; the user steps. Counts what their optimizers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_directly = self.precision.is_plain and not is_overridden("optimizer_step", self.strategy, Strategy)
        self._quick_steps: dict[int, Callable[[], Any]] = {}

    def step(self, batch: Any, batch_idx: int, *, due: bool, divisor: int) -> Any:
        """Work on one batch; return what `training_step` returned, its loss detached."""
        scope = self.scope
        scope.hook = "training_step"
        with self.context or self.precision.train_step_context():
            output = self.training_step(batch, batch_idx) if self.takes_batch_idx else self.training_step(batch)
        scope.hook = None
        if isinstance(output, Mapping):
            loss = output.get("loss")
            return {**output, "loss": loss.detach()} if isinstance(loss, Tensor) else dict(output)
        if output is None:
            return {}
        if not isinstance(output, Tensor):
            raise MisconfigurationException(
                f"With manual optimization `training_step` must return a tensor, a mapping or None, but it returned a"
                f" {type(output).__name__}."
            )
        return {"loss": output.detach().clone()}

    def measure(self, profiled: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have the optimizers' steps measured, too; see `_Optimization.measure`."""
        super().measure(profiled)
        self.optimizer_step = profiled("optimizer_step", self.optimizer_step)  # type: ignore[method-assign]

    def _quick_step(self, optimizer: Optimizer) -> Any:
        step = self._quick_steps.get(id(optimizer))
        if step is None:
            step = self._quick_steps[id(optimizer)] = quick_step(optimizer)
        return step()

    def finish_window(self) -> bool:
        """Do nothing: windows are the user's in manual optimization."""
        return False

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Step one of the user's optimizers, counted and with its hook."""
        steps, hook = self.progress.manual_steps, self.scope.hook
        if closure is do_nothing_closure and self.steps_directly and not kwargs:
            steps.total.ready += 1
            steps.current.ready += 1
            self.events.on_before_optimizer_step(optimizer)
            result = self._quick_step(optimizer)
            steps.total.completed += 1
            steps.current.completed += 1
            return result

        def prepared() -> Any:
            result = closure()
            self.precision.unscale_gradients(optimizer)
            self.events.on_before_optimizer_step(optimizer)
            return result

        steps.increment("ready")
        result = self.strategy.optimizer_step(optimizer, prepared, self.module, **kwargs)
        self.scope.hook = hook
        steps.increment("completed")
        return result

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate a loss of the user's, with the hooks around it."""
        hook = self.scope.hook
        loss = loss if self.weight == 1.0 else loss * self.weight
        self.last_loss = loss.detach()  # the user may want the graph to be gone
        self.differentiate(loss, None, *args, **kwargs)
        if not loss.is_cpu:
            self.losses.note(loss)
        elif loss.numel() == 1 and not math.isfinite(loss.item()):
            self.losses.report(loss.item())
        self.scope.hook = hook


def takes_batch_idx(step: Callable[..., Any]) -> bool:
    """Tell whether a step method wants the batch's index as second argument."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def _loss_of(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return _undivided(output)
    if output is None:
        return None
    if not isinstance(output, Mapping):
        raise MisconfigurationException(
            "`training_step` must return the loss as a tensor, a mapping with the key 'loss', or None to skip the"
            f" batch, but it returned a {type(output).__name__}: {output!r:.80}.{_hint_for_number(output)}"
        )
    if "loss" not in output:
        raise MisconfigurationException(
            f"`training_step` returned a mapping without the key 'loss': {sorted(map(str, output))}."
            " Add it, or set `self.automatic_optimization = False` and step yourself."
        )
    loss = output["loss"]
    if isinstance(loss, Tensor):
        return _undivided(loss)
    if loss is not None:
        raise MisconfigurationException(
            f"`training_step` returned 'loss' as a {type(loss).__name__}, but it must be a tensor that can be"
            f" differentiated.{_hint_for_number(loss)}"
        )
    return loss


def _undivided(loss: Tensor) -> Tensor:
    """The loss as each rank knows it, of one that was computed on divided outputs (a `DTensor`)."""
    full_tensor = getattr(loss, "full_tensor", None)
    return loss if full_tensor is None else full_tensor()


def _hint_for_number(value: Any) -> str:
    return " Return it before `.item()` or `float(...)`." if isinstance(value, (int, float)) else ""


def _outputs(output: Any, loss: Tensor | None) -> dict[str, Any]:
    if loss is None:
        return {}
    if output.__class__ is not Tensor and isinstance(output, Mapping):
        return {**output, "loss": loss.detach().clone()}
    return {"loss": loss.detach().clone()}


def _differentiable(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise MisconfigurationException(
            f"`training_step` returned a loss of shape {tuple(loss.shape)}, but only a single number can be minimised."
            " Reduce it, e.g. `loss.mean()`."
        )
    if not loss.requires_grad:
        raise MisconfigurationException(
            "`training_step` returned a loss that does not depend on any trainable parameter (`requires_grad` is"
            " False), so nothing can be learned from it. Look for `.detach()`, `.item()`, `torch.no_grad()`, or frozen"
            " parameters; return None to skip a batch."
        )
    return loss.squeeze()


def _step_demands_closure(optimizer: Optimizer | None) -> bool:
    if optimizer is None:
        return False
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
