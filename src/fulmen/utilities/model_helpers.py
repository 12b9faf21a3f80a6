"""Questions about the methods and the layers of a module."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fulmen.utilities.lazy import require

__all__ = ["batch_norms", "get_torchvision_model", "is_overridden"]


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of a module by their names.

    Args:
        module: The module.
    """
    return {name: each for name, each in module.named_modules() if isinstance(each, _BatchNorm)}


def get_torchvision_model(model_name: str, **kwargs: Any) -> nn.Module:
    """Build a model of torchvision by its name.

    Args:
        model_name: Name as in `torchvision.models`, e.g. "resnet18".
        kwargs: Arguments of that model, e.g. `weights=...`.

    Returns:
        The model.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    models = require("torchvision.models", extra=None, for_="get_torchvision_model")
    model: nn.Module = models.get_model(model_name, **kwargs)
    return model


def is_overridden(method_name: str, instance: object | None = None, parent: type | None = None) -> bool:
    """Tell whether an object brings its own version of a method.

    A method counts as overridden if the code that runs differs from that of `parent`. `functools.wraps`,
    `functools.partial` and a `Mock(wraps=...)` around the parent's method change nothing; a function set on the
    instance counts.

    Args:
        method_name: Name of the method.
        instance: The object; `None`, or one without the method, has nothing overridden.
        parent: The class whose version is the original; default the outermost class of `fulmen.core` among the bases of
            `instance` that has the method.

    Returns:
        True if the object has its own version.

    Raises:
        ValueError: The parent has no such method, or no parent is given and none can be found.
    """
    method = getattr(instance, method_name, None)
    if instance is None or method is None:
        return False
    parent = _original_class(method_name, instance) if parent is None else parent
    original = getattr(parent, method_name, None)
    if original is None:
        raise ValueError(
            f"`{parent.__name__}` has no method `{method_name}`, so an override of it cannot be recognized."
            " Pass as `parent` the class that defines it."
        )
    code = _code(method)
    return code is not None and code is not _code(original)


def _original_class(method_name: str, instance: object) -> type:
    for cls in reversed(type(instance).__mro__):
        if cls.__module__.startswith("fulmen.core.") and hasattr(cls, method_name):
            return cls
    raise ValueError(
        f"`{type(instance).__name__}` has no base class with a method `{method_name}` that could be overridden."
        " Pass the class that defines it as `parent`."
    )


def _code(function: Any) -> object | None:
    """The code object under all wrappers; the callable itself if it has none; `None` for a mock of nothing."""
    mock = sys.modules.get("unittest.mock")
    while True:
        if mock is not None and isinstance(function, mock.NonCallableMock):
            function = function._mock_wraps  # the mock's only record of what it stands for
        elif isinstance(function, functools.partial):
            function = function.func
        elif "__wrapped__" in getattr(function, "__dict__", ()):
            function = function.__wrapped__
        else:
            code: object = getattr(function, "__code__", function)
            return code
