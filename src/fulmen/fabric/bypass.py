"""Methods of a module that would run its layers past the strategy's wrapper."""

from __future__ import annotations

import threading
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["GuardedMethod"]


class GuardedMethod:
    """A method of a wrapped module that may do anything but run the module or its layers.

    That would leave out what the wrapper does around `forward`, e.g. the synchronization of gradients.

    Args:
        method: The method.
        module: The module that it belongs to.
    """

    __slots__ = ("__wrapped__", "_module")

    def __init__(self, method: MethodType, module: nn.Module) -> None:
        self.__wrapped__ = method
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method.

        Raises:
            RuntimeError: It ran a layer.
        """
        layers = {id(layer) for layer in self._module.modules()}
        caller = threading.get_ident()

        def refuse(layer: nn.Module, inputs: Any) -> None:
            if id(layer) in layers and threading.get_ident() == caller:
                raise RuntimeError(self._message())

        handle = register_module_forward_pre_hook(refuse)
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            handle.remove()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def _message(self) -> str:
        name, kind = self.__wrapped__.__name__, type(self._module).__name__
        return (
            f"You are calling the method `{kind}.{name}()` from outside the model, and it runs layers past the wrapper"
            " of the selected strategy, so gradients would not be synchronized. Mark it as a forward method once, after"
            f" `fabric.setup()`: `model.mark_forward_method({name!r})`."
        )
