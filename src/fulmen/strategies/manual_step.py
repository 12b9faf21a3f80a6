"""Manual optimization in `DistributedDataParallel`, whose order it does not know.

The wrapper expects: forward, then its own preparation, then one backward pass. With manual optimization the backward
passes happen inside `training_step`, thus inside forward. So the preparation is done before each of them here, and not
after `training_step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulmen.strategies.route import Redirection
from fulmen.utilities.tree import apply_to_collection

__all__ = ["ManualStep", "prepare_for_backward"]


class ManualStep(Redirection):
    """Context for one `training_step` of manual optimization.

    Args:
        module: The user's module.
        wrapper: What wraps it.
    """

    __slots__ = ("_wrapper",)

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        super().__init__(module, module.training_step)  # type: ignore[arg-type]  # a method
        self._wrapper = wrapper.__dict__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `training_step`; what the wrapper does after it is to expect no backward pass."""
        self.restore()
        outputs = self.function(*args, **kwargs)
        self._wrapper["require_backward_grad_sync"] = False
        return outputs

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        # without the second one, the next forward would not send buffers
        self._wrapper["require_backward_grad_sync"] = self._wrapper["require_forward_param_sync"] = True


def prepare_for_backward(model: DistributedDataParallel, output: Any) -> None:
    """Make a wrapper ready for a backward pass that begins at `output`.

    Args:
        model: The wrapper.
        output: The loss, or a collection with it.
    """
    if not (torch.is_grad_enabled() and model.require_backward_grad_sync):
        return
    model.require_forward_param_sync = True
    tensors: list[Tensor] = []
    if model.find_unused_parameters and not model.static_graph:
        apply_to_collection(output, Tensor, tensors.append)
    model.reducer._rebuild_buckets()  # the wrapper's forward does it, too late for a second pass in the first step
    model.reducer.prepare_for_backward(tensors)  # finds what has no part in them, if it is told the tensors
