"""From a module that `torch.compile` returned back to the user's own, with its steps compiled or not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import nn

__all__ = ["from_compiled", "holds_compiled", "is_compiled", "to_uncompiled"]

_COMPILED_METHODS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
_EAGER_METHODS = ("log", "log_dict")  # the compiler would trace the bookkeeping, once per metric, and warn about it


def from_compiled(model: nn.Module | Callable[..., Any]) -> nn.Module:
    """Return the LightningModule inside a compiled one, with `forward` and the steps compiled in its place.

    Args:
        model: What `torch.compile(lightning_module)` returned.

    Returns:
        The LightningModule, whose methods now run compiled. `to_uncompiled` undoes it.

    Raises:
        ValueError: The model is not compiled, or it is not a LightningModule.
    """
    if not is_compiled(model):
        raise ValueError(
            f"`model` is required to be a `OptimizedModule`, but it is a `{type(model).__name__}`."
            " Pass what `torch.compile(model)` returned."
        )
    module = _inner(model)
    if not _has_steps(module):
        raise ValueError(
            f"`model` is expected to be a compiled LightningModule, but the compiled module is a"
            f" `{type(module).__name__}`. Compile the LightningModule, or only its parts inside it."
        )
    if getattr(module, "_compiler_ctx", None) is not None:
        _restore(module)
    context = _context(model)
    originals = {f"original_{name}": getattr(module, name) for name in _COMPILED_METHODS}
    kept = {"compiler": "dynamo", "dynamo_ctx": context, **originals}
    module._compiler_ctx = kept  # type: ignore[assignment]  # torch expects tensors and modules only
    for name in _COMPILED_METHODS:
        setattr(module, name, context(originals[f"original_{name}"]))
    for name in _EAGER_METHODS:
        if hasattr(type(module), name) and name not in vars(module):
            eager = torch.compiler.disable(getattr(module, name))  # type: ignore[no-untyped-call]
            setattr(module, name, eager)
    return module


def to_uncompiled(model: nn.Module | Callable[..., Any]) -> nn.Module:
    """Return the LightningModule with the methods its author wrote.

    Args:
        model: What `torch.compile` or `from_compiled` returned.

    Returns:
        The LightningModule, not compiled.

    Raises:
        ValueError: The model is not compiled.
        TypeError: The compiled module is not a LightningModule.
    """
    if is_compiled(model):
        module = _inner(model)
        if not _has_steps(module):
            raise TypeError(
                f"The compiled module should be a LightningModule, but it is a `{type(module).__name__}`."
                " Take its `_orig_mod`."
            )
        if getattr(module, "_compiler_ctx", None) is not None:
            _restore(module)
        return module
    if not _has_steps(model):
        raise ValueError(
            f"`model` must either be an instance of OptimizedModule or LightningModule, but it is a"
            f" `{type(model).__name__}`. Pass what `torch.compile` or `from_compiled` returned."
        )
    if getattr(model, "_compiler_ctx", None) is None:
        raise ValueError(
            "`model` is required to be a compiled LightningModule, but this one is not compiled, so there is nothing to"
            " undo. Leave the call out."
        )
    _restore(model)
    return model


def is_compiled(model: object) -> bool:
    """Tell whether a module is what `torch.compile` returned, without importing the compiler."""
    dynamo = sys.modules.get("torch._dynamo")  # not loaded: nothing is compiled
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def holds_compiled(module: nn.Module) -> bool:
    """Tell whether a module, any of its layers or its steps are compiled, by `torch.compile` or `module.compile()`."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(is_compiled(each) or each._compiled_call_impl is not None for each in module.modules())


def _inner(model: Any) -> Any:
    return model._orig_mod


def _context(model: Any) -> Any:
    return model.dynamo_ctx


def _has_steps(module: object) -> TypeGuard[nn.Module]:
    return isinstance(module, nn.Module) and all(
        hasattr(module, name) for name in (*_COMPILED_METHODS, "configure_optimizers")
    )


def _restore(module: Any) -> None:
    originals = module._compiler_ctx
    for name in _COMPILED_METHODS:
        original = originals[f"original_{name}"]
        if getattr(original, "__self__", None) is module:
            delattr(module, name)  # the method of the class shows again
        else:
            setattr(module, name, original)
    for name in _EAGER_METHODS:
        if hasattr(vars(module).get(name), "_torchdynamo_disable"):
            delattr(module, name)
    module._compiler_ctx = None
