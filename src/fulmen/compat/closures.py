"""Closures and results as `lightning.pytorch.loops.optimization` has them, for programs that make their own.

The loops of fulmen need none: `fulmen.loops.optimization` calls forward, backward and the optimizer directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import WarningCache

__all__ = ["AbstractClosure", "Closure", "ClosureResult", "ManualResult", "OutputResult"]


class OutputResult(ABC):
    """What a training step gave."""

    @abstractmethod
    def asdict(self) -> dict[str, Any]:
        """Return it as the hooks get it."""


Result = TypeVar("Result", bound=OutputResult)


def _split(output: Any, *, loss_is_needed: bool) -> tuple[Tensor | None, dict[str, Any]]:
    """Return the loss in what `training_step` returned, and the rest."""
    if isinstance(output, Mapping):
        if loss_is_needed and output.get("loss") is None:
            raise MisconfigurationException(
                f"`training_step` returned a dict with the keys {sorted(map(str, output))}, but the optimizer needs the"
                " loss. Add it under the key 'loss', or return None to skip the batch."
            )
        return output.get("loss"), {key: value for key, value in output.items() if key != "loss"}
    if output is None or isinstance(output, Tensor):
        return output, {}
    raise MisconfigurationException(
        f"`training_step` returned a {type(output).__name__}, from which no loss can be read. Return a tensor, a dict"
        " with the key 'loss', or None to skip the batch."
    )


@dataclass
class ClosureResult(OutputResult):
    """Result of a step in automatic optimization.

    Args:
        closure_loss: The loss that is differentiated.
        extra: What else the step returned.

    Attributes:
        loss: The loss without its graph.
    """

    closure_loss: Tensor | None
    loss: Tensor | None = field(init=False, default=None)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.closure_loss is not None:
            self.loss = self.closure_loss.detach().clone()

    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> ClosureResult:
        """Read what `training_step` returned.

        Args:
            training_step_output: A tensor, a dict with the key `"loss"`, or `None`.
            normalize: What the loss is divided by: the batches of an accumulation window.

        Raises:
            MisconfigurationException: There is no loss in it.
        """
        loss, extra = _split(training_step_output, loss_is_needed=True)
        return cls(None if loss is None else loss / normalize, extra)

    def asdict(self) -> dict[str, Any]:
        """Return the loss and what else there is."""
        return {"loss": self.loss, **self.extra}


@dataclass
class ManualResult(OutputResult):
    """Result of a step in manual optimization.

    Args:
        extra: What the step returned.
    """

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_training_step_output(cls, training_step_output: Any) -> ManualResult:
        """Read what `training_step` returned; the loss loses its graph.

        Args:
            training_step_output: A tensor, a dict, or `None`.

        Raises:
            MisconfigurationException: It is something else.
        """
        loss, extra = _split(training_step_output, loss_is_needed=False)
        return cls(extra if loss is None else {"loss": loss.detach(), **extra})

    def asdict(self) -> dict[str, Any]:
        """Return what the step returned."""
        return self.extra


class AbstractClosure(ABC, Generic[Result]):
    """What an optimizer calls to get the loss; it keeps the result until that is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._result: Result | None = None

    @abstractmethod
    def closure(self, *args: Any, **kwargs: Any) -> Result:
        """Compute the loss and the gradients."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Call `closure`, keep its result, and return the loss."""

    def consume_result(self) -> Result:
        """Return the result of the last call, once.

        Raises:
            MisconfigurationException: There was no call since.
        """
        if self._result is None:
            raise MisconfigurationException(
                "The closure was not called, so there is no result: an optimizer whose `step` takes a closure has to"
                " call it. Call `optimizer.step(closure)` first."
            )
        result, self._result = self._result, None
        return result


class Closure(AbstractClosure[ClosureResult]):
    """Runs a step, clears the gradients, and differentiates the loss.

    Args:
        step_fn: The step; its result has the loss.
        backward_fn: Differentiates a loss.
        zero_grad_fn: Clears the gradients; called after the step.
    """

    warning_cache = WarningCache()

    def __init__(
        self,
        step_fn: Callable[[], ClosureResult],
        backward_fn: Callable[[Tensor], None] | None = None,
        zero_grad_fn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._step_fn = step_fn
        self._backward_fn = backward_fn
        self._zero_grad_fn = zero_grad_fn

    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:
        """Run the step, and the backward pass if there is a loss."""
        result = self._step_fn()
        if result.closure_loss is None:
            self.warning_cache.warn("`training_step` returned None: the batch is skipped.")
        if self._zero_grad_fn is not None:
            self._zero_grad_fn()
        if self._backward_fn is not None and result.closure_loss is not None:
            self._backward_fn(result.closure_loss)
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Call `closure`, keep its result, and return the loss."""
        self._result = self.closure(*args, **kwargs)
        return self._result.loss
