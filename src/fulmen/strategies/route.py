"""Call any method of a module through what wraps it.

Wrappers like `DistributedDataParallel` do their work around `forward`, but users also train through other methods, like
`training_step`. For the time of a call, the module's `forward` is therefore that method::

    wrapper(batch) -> ... the wrapper's work ... -> module.forward, which now is -> module.training_step(batch)

As soon as the method begins, `forward` is the user's again: `self(x)` in `training_step` does what it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fulmen.utilities.compile import is_compiled

__all__ = ["Redirection", "call", "unwrapped"]

_ABSENT: Any = object()


class Redirection:
    """Context in which a module's `forward` is another function, until it is called the first time.

    Contexts can be nested, also from inside the function. Whatever is raised, `forward` is restored.

    Args:
        module: The module inside the wrapper.
        function: What to call in place of its `forward`.

    Example::

        with Redirection(module, module.training_step):
            loss = ddp(batch, batch_idx)
    """

    __slots__ = ("attributes", "before", "function")

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.attributes = module.__dict__  # nn.Module.__setattr__ costs more than all the rest
        self.function = function
        self.before: Any = _ABSENT

    def __enter__(self) -> None:
        self.before = self.attributes.get("forward", _ABSENT)  # there if it is compiled, or the user replaced it
        self.attributes["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Restore `forward` and call the function."""
        self.restore()
        return self.function(*args, **kwargs)

    def __exit__(self, *_: object) -> None:
        if self.attributes.get("forward") is self:  # the wrapper failed before it came to the module
            self.restore()

    def restore(self) -> None:
        """Give the module its own `forward` back."""
        if self.before is _ABSENT:
            self.attributes.pop("forward")  # `del` is not known to the compiler of torch 2.8
        else:
            self.attributes["forward"] = self.before


def call(wrapper: nn.Module, original: nn.Module, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of a module through its wrapper.

    Args:
        wrapper: What wraps the module; without a wrapper the module itself.
        original: The module.
        method: Name of the method, dotted for one of a submodule ("encoder.encode"), or a function to call.
        args: Arguments of the method.
        kwargs: Arguments of the method.

    Returns:
        What the wrapper made of the method's result.

    Raises:
        TypeError: A function, or the method of a submodule, is to run on the replicas of `DataParallel`.
    """
    if method == "forward":
        return wrapper(*args, **kwargs)
    if isinstance(wrapper, DataParallel):
        return _call_on_replicas(wrapper, original, method, *args, **kwargs)
    function = attrgetter(method)(original) if isinstance(method, str) else method
    if wrapper is original:
        return function(*args, **kwargs)
    with Redirection(original, function):
        return wrapper(*args, **kwargs)


def unwrapped(module: nn.Module) -> Any:
    """Return the user's module inside wrappers of torch.

    Args:
        module: The module, wrapped or not, compiled or not.
    """
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            module = module.module
        elif is_compiled(module):
            module = module._orig_mod  # type: ignore[assignment]  # where torch keeps it
        else:
            return module


def _call_on_replicas(
    wrapper: nn.Module, original: nn.Module, method: str | Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """As `call`, where copies of the module run the method, each on its own weights: the class is changed, not one."""
    if not isinstance(method, str) or "." in method:
        raise TypeError(
            f"`strategy='dp'` runs copies of the module, so {method!r} can't be called through it: only a method of the"
            " module itself has a copy to work on. Add such a method, or choose `strategy='ddp'`."
        )
    own_class = type(original)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        object.__setattr__(self, "__class__", own_class)
        return getattr(self, method)(*args, **kwargs)

    redirected = type(own_class.__name__, (own_class,), {"forward": forward})
    object.__setattr__(original, "__class__", redirected)
    try:
        return wrapper(*args, **kwargs)
    finally:
        object.__setattr__(original, "__class__", own_class)
