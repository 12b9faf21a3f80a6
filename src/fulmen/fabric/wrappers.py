"""What `Fabric.setup` returns: the user's objects, with the work of strategy and precision in their calls.

Where there is no such work, a call goes to the user's object at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from fulmen.fabric.bypass import GuardedMethod
from fulmen.fabric.loaders import _FabricDataLoader
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.route import call
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.compile import is_compiled
from fulmen.utilities.optimizer_step import clear_gradients, clears_plainly, quick_step

if TYPE_CHECKING:
    from fulmen.fabric.gate import BackwardGate

__all__ = ["is_wrapped", "unwrap_module", "unwrap_optimizer", "unwrapped", "wrap_optimizer", "wrapped_module"]

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class _FabricModule(nn.Module):
    """A module whose calls go through strategy and precision; in everything else it is the user's module.

    Attributes are read from the user's module and written to it, parameters and `state_dict` have its names.

    Args:
        forward_module: What to call: the user's module, wrapped by the strategy, compiled if it was.
        strategy: Whose precision converts inputs and outputs.
        original_module: The user's module; `forward_module` by default.
        strategy_module: What the strategy made of the user's module; `forward_module` by default.
        gate: Watches for backward passes that the strategy does not know of.
    """

    def __init__(
        self,
        forward_module: nn.Module,
        strategy: Strategy,
        original_module: nn.Module | None = None,
        strategy_module: nn.Module | None = None,
        gate: BackwardGate | None = None,
    ) -> None:
        own = self.__dict__
        own["_original_module"] = forward_module if original_module is None else original_module
        own["_strategy_module"] = forward_module if strategy_module is None else strategy_module
        was_training = own["_original_module"].training
        super().__init__()
        own["_original_module"].training = was_training
        self._modules["_forward_module"] = forward_module
        own["_parts"] = _Parts(strategy, gate)
        own["_forward_methods"] = set(_STEPS)
        if own["_parts"].is_plain:
            own["forward"] = forward_module  # no work to do: no frame in between

    # ---- calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with inputs and output converted, in the context of the precision."""
        return self._parts.run(self._modules["_forward_module"], *args, **kwargs)

    def mark_forward_method(self, method: MethodType | str) -> None:
        """Let a method go through the strategy's wrapper, as `forward` does.

        Args:
            method: The method of the user's module, or its name.

        Raises:
            TypeError: It is neither a method nor a name.
            AttributeError: The module has no such method.
        """
        if not isinstance(method, (MethodType, str)):
            raise TypeError(f"Expected a method or a string, but got: {type(method).__name__}")
        name = method if isinstance(method, str) else method.__name__
        if name == "forward":
            raise ValueError("You cannot mark the forward method itself as a forward method: it is one already.")
        if not isinstance(getattr(self._original_module, name, None), MethodType):
            raise AttributeError(
                f"You marked '{name}' as a forward method, but `{type(self._original_module).__name__}.{name}` does not"
                " exist or is not a method. Check the name."
            )
        self._forward_methods.add(name)

    def _routed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        forward_module = self.__dict__["_modules"]["_forward_module"]
        if forward_module is not self._original_module:
            method = partial(call, forward_module, self._original_module, name)
        return method if self._parts.is_plain else partial(self._parts.run, method)

    # ---- the user's module

    @property
    def module(self) -> nn.Module:
        """The user's module."""
        original: nn.Module = self._original_module
        return original

    @property
    def training(self) -> bool:
        """Whether the user's module is in training mode."""
        return bool(self._original_module.training)

    @training.setter
    def training(self, mode: bool) -> None:
        self._original_module.training = mode

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer; of the run, if there is none."""
        tensor = next(_tensors(self._original_module), None)
        device: torch.device = self._parts.strategy.root_device if tensor is None else tensor.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating point parameter or buffer; torch's default type, if there is none."""
        floats = (tensor.dtype for tensor in _tensors(self._original_module) if tensor.is_floating_point())
        return next(floats, torch.get_default_dtype())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """Return the state of the user's module."""
        state: dict[str, Any] = self._original_module.state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state into the user's module."""
        return self._original_module.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the parameters under the names that they have in the user's module."""
        yield from self._original_module.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over the buffers under the names that they have in the user's module."""
        yield from self._original_module.named_buffers(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name == "_forward_module":
            return own["_modules"][name]
        if "_parts" not in own:  # being copied or unpickled
            raise AttributeError(name)
        original = own["_original_module"]
        value = getattr(original, name)
        if not isinstance(value, MethodType):
            return value
        if name in own["_forward_methods"]:
            return self._routed(name, value)
        if own["_strategy_module"] is not original and not hasattr(nn.Module, name):
            return GuardedMethod(value, original)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self._original_module, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self._original_module, name)


class _Parts:
    """What a wrapped module needs of its Fabric; shared by copies of the module."""

    __slots__ = ("gate", "is_plain", "precision", "strategy")

    def __init__(self, strategy: Strategy, gate: BackwardGate | None) -> None:
        self.strategy = strategy
        self.precision = strategy.precision_plugin
        self.gate = gate
        self.is_plain = not (
            _changes_forward(self.precision) or (gate is not None and gate.is_needed)
        )  # settled before the first step

    def __deepcopy__(self, memo: dict[int, Any]) -> _Parts:
        return self

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with converted inputs and output, in the context of the precision."""
        precision = self.precision
        args, kwargs = precision.convert_input((args, kwargs))
        with precision.forward_context():
            output = function(*args, **kwargs)
        output = precision.convert_output(output)
        if self.gate is not None and self.gate.is_needed:
            self.gate.watch(output)
        return output


def _changes_forward(precision: Precision) -> bool:
    kind = type(precision)
    names = ("convert_input", "convert_output", "forward_context")
    return any(name in vars(precision) or getattr(kind, name) is not getattr(Precision, name) for name in names)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class _FabricOptimizer:
    """An optimizer whose `step` goes through strategy and precision; it shares all attributes with the user's.

    It is an instance of the user's optimizer class too, and both objects have one `__dict__`. What is its own lies in
    slots, so that nothing must be kept the same in two places.
    """

    __slots__ = ("_after", "_clears_plainly", "_optimizer", "_own_step", "_parts", "_run")

    _after: list[Callable[..., Any]]
    _clears_plainly: bool
    _optimizer: Any
    _own_step: Any
    _parts: tuple[Strategy, list[Any]]
    _run: Callable[..., Any] | None

    @staticmethod
    def wrap(optimizer: Any, strategy: Strategy, callbacks: list[Any]) -> Any:
        """Return a wrapper around an optimizer.

        Args:
            optimizer: The optimizer.
            strategy: Steps it.
            callbacks: Those that have `on_after_optimizer_step` are called after each step.
        """
        kind = type(optimizer)
        # what the user's optimizer does at its end must not happen at the end of the wrapper
        members: dict[str, Any] = {"__del__": _end_of_wrapper} if hasattr(kind, "__del__") else {}
        members["step"] = _Step()
        wrapper: Any = object.__new__(type(f"Fabric{kind.__name__}", (_FabricOptimizer, kind), members))
        object.__setattr__(wrapper, "__dict__", optimizer.__dict__)
        wrapper._optimizer = optimizer
        wrapper._own_step = None
        wrapper._parts = strategy, callbacks
        wrapper._after = [c.on_after_optimizer_step for c in callbacks if hasattr(c, "on_after_optimizer_step")]
        wrapper._run = quick_step(optimizer) if _steps_plainly(strategy) else None
        wrapper._clears_plainly = clears_plainly(optimizer)
        return wrapper

    @property
    def optimizer(self) -> Any:
        """The user's optimizer."""
        return self._optimizer

    def _step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update the parameters.

        Args:
            closure: Computes the loss and its gradients; optional.
            kwargs: Further arguments of the user's optimizer.

        Returns:
            What the optimizer's `step` returned.
        """
        if closure is None and self._run is not None and not kwargs:
            output = self._run()
        else:
            if closure is not None:
                kwargs["closure"] = closure
            output = self._parts[0].optimizer_step(self._optimizer, **kwargs)
        if self._after:
            for callback in self._after:
                callback(strategy=self._parts[0], optimizer=self._optimizer)
        return output

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        if set_to_none and self._clears_plainly:
            clear_gradients(self._optimizer)
        else:
            self._optimizer.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        """Return the state of the user's optimizer."""
        return self._parts[0].get_optimizer_state(self._optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the user's optimizer."""
        self._optimizer.load_state_dict(state_dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return _FabricOptimizer.wrap, (self._optimizer, *self._parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _FabricOptimizer.wrap(deepcopy(self._optimizer, memo), *self._parts)


class _Step:
    """`step` of a wrapped optimizer. A scheduler replaces it on the wrapper; the user's optimizer must not see that."""

    hooked = True  # torch wraps the `step` of each class it meets, unless it bears this mark

    def __get__(self, wrapper: Any, kind: type) -> Any:
        if wrapper is None:
            return self
        return wrapper._own_step or wrapper._step

    def __set__(self, wrapper: Any, step: Any) -> None:
        wrapper._own_step = step

    def __delete__(self, wrapper: Any) -> None:
        wrapper._own_step = None


def _end_of_wrapper(wrapper: _FabricOptimizer) -> None:
    """Stand in for the `__del__` of an optimizer, which is called for that one itself."""


def _steps_plainly(strategy: Strategy) -> bool:
    precision = strategy.precision_plugin
    return (
        type(strategy).optimizer_step is Strategy.optimizer_step
        and type(precision).optimizer_step is Precision.optimizer_step
        and "optimizer_step" not in {*vars(strategy), *vars(precision)}
    )


# ---- there and back


def is_wrapped(obj: object) -> bool:
    """Tell whether an object came out of `Fabric.setup` or one of its kin.

    Args:
        obj: A module, optimizer or dataloader; a module may be compiled since.
    """
    return isinstance(_uncompiled(obj), (_FabricModule, _FabricOptimizer, _FabricDataLoader))


def wrapped_module(obj: object) -> _FabricModule | None:
    """Return the wrapped module that something is, also if it was compiled since; `None` if it is none.

    Args:
        obj: Anything.
    """
    obj = _uncompiled(obj)
    return obj if isinstance(obj, _FabricModule) else None


def _uncompiled(obj: Any) -> Any:
    return obj._orig_mod if is_compiled(obj) else obj


def unwrap_module(module: Any) -> Any:
    """Return what the strategy made of a module; a module that is not wrapped is returned as it is.

    Args:
        module: The module.
    """
    wrapped = wrapped_module(module)
    return module if wrapped is None else wrapped._strategy_module


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the user's optimizer.

    Args:
        optimizer: The optimizer, wrapped or not.
    """
    return optimizer.optimizer if isinstance(optimizer, _FabricOptimizer) else optimizer


def unwrapped(obj: Any) -> Any:
    """Return what a strategy saves and loads in place of a wrapped object.

    Args:
        obj: Anything.
    """
    if isinstance(obj, _FabricDataLoader):
        return obj.dataloader
    return unwrap_optimizer(unwrap_module(obj))


def wrap_optimizer(optimizer: Optimizer, strategy: Strategy, callbacks: list[Any]) -> Any:
    """Return a wrapper around an optimizer; see `_FabricOptimizer`."""
    return _FabricOptimizer.wrap(optimizer, strategy, callbacks)
