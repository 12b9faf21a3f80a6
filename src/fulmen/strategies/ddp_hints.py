"""What to do about errors of `DistributedDataParallel`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

__all__ = ["add_hint"]

_UNFINISHED = "Expected to have finished reduction in the prior iteration"
_TWICE = "Expected to mark a variable ready only once"
_INDICES = re.compile(r"did not receive grad for rank \d+: ([\d ]+)")
_MARK = "HINT (fulmen):"

_UNUSED_PARAMETERS = (
    "{mark} parameters of the module had no part in the loss{names}. If that is intended, choose"
    " `strategy='ddp_find_unused_parameters_true'` or `DDPStrategy(find_unused_parameters=True)`; if they are never"
    " trained, set their `requires_grad` to False, or remove them."
)
_READY_TWICE = (
    "{mark} a parameter got its gradient twice in one step{names}. Parts that are used several times under activation"
    " checkpointing need `checkpoint(..., use_reentrant=False)` or `DDPStrategy(static_graph=True)`; in manual"
    " optimization, run one backward pass per call of `self.manual_backward`."
)


def add_hint(error: BaseException, wrappers: Iterable[nn.Module]) -> None:
    """Add to an error of torch what its text means here; other errors stay as they are.

    Args:
        error: The error; its text is changed.
        wrappers: The modules in `DistributedDataParallel` that it may come from.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or _MARK in text:
        return
    if _UNFINISHED in text:
        error.args = (f"{text}\n{_UNUSED_PARAMETERS.format(mark=_MARK, names=_names(text, wrappers))}",)
    elif _TWICE in text:
        error.args = (f"{text}\n{_READY_TWICE.format(mark=_MARK, names='')}",)


def _names(text: str, wrappers: Iterable[nn.Module]) -> str:
    """Names of the parameters whose numbers torch prints; torch counts those that need gradients."""
    found = _INDICES.search(text)
    modules = list(wrappers)
    if found is None or len(modules) != 1:
        return ""
    ignored = getattr(modules[0], "parameters_to_ignore", ())
    counted = [
        name
        for name, parameter in modules[0].module.named_parameters()  # type: ignore[union-attr]  # a module
        if parameter.requires_grad and name not in ignored
    ]
    indices = [int(index) for index in found.group(1).split()]
    names = [counted[index] for index in indices if index < len(counted)]
    return f" on this rank: {', '.join(names)}"
