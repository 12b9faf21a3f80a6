"""Checks of what is given to `Fabric`, and how a module is made ready."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.fabric.wrappers import _FabricModule, is_wrapped
from fulmen.strategies.optimizer_state import move_optimizer_state
from fulmen.utilities.compile import is_compiled
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.types import Optimizable

if TYPE_CHECKING:
    from fulmen.fabric.gate import BackwardGate
    from fulmen.strategies.strategy import Strategy

__all__ = [
    "as_value_error",
    "check_dataloaders",
    "check_function",
    "check_optimizers",
    "check_setup",
    "set_up_module",
]


@contextmanager
def as_value_error() -> Generator[None, None, None]:
    """Raise a `ValueError` where the parts raise `MisconfigurationException`, which users of Fabric do not know."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def check_function(function: Any) -> None:
    """Check what is to be launched.

    Raises:
        TypeError: It cannot be called, or takes no argument.
    """
    if not callable(function):
        raise TypeError(
            f"`Fabric.launch({function!r})`: what is launched must be a function. Write `fabric.launch(train)`, not"
            " `fabric.launch(train())`."
        )
    if not inspect.signature(function).parameters:
        raise TypeError(
            f"`Fabric.launch({function!r})`: the function needs to take at least one argument, as it is called with"
            " the Fabric object. Write `def train(fabric): ...`."
        )


def check_setup(module: Any, optimizers: Sequence[Any]) -> None:
    """Check the arguments of `setup`.

    Raises:
        TypeError: Something is no module, or no optimizer.
        ValueError: Something was set up before.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`Fabric.setup` prepares a `torch.nn.Module`, but got a `{type(module).__name__}`."
            " Pass the module first, then its optimizers."
        )
    if is_wrapped(module):
        raise ValueError(
            "A model should be passed only once to the `setup` method, but this one was set up before."
            " Use what the first call returned."
        )
    _check_each_optimizer(optimizers, "setup")


def check_optimizers(optimizers: Sequence[Any]) -> None:
    """Check the arguments of `setup_optimizers`.

    Raises:
        TypeError: Something is no optimizer.
        ValueError: There is none, or one was set up before.
        RuntimeError: A parameter has no data yet.
    """
    if not optimizers:
        raise ValueError("`setup_optimizers` requires at least one optimizer as input, but got none. Pass it.")
    _check_each_optimizer(optimizers, "setup_optimizers")
    for optimizer in optimizers:
        if any(parameter.is_meta for group in optimizer.param_groups for parameter in group["params"]):
            raise RuntimeError(
                f"The optimizer `{type(optimizer).__name__}` has parameters on the meta device, which hold no data and"
                " are replaced when the module is set up. Create the optimizer after `fabric.setup_module()`."
            )


def _check_each_optimizer(optimizers: Sequence[Any], method: str) -> None:
    for optimizer in optimizers:
        if is_wrapped(optimizer):
            raise ValueError(
                f"An optimizer should be passed only once to the `{method}` method, but this one was set up before."
                " Use what the first call returned."
            )
        if not isinstance(optimizer, (Optimizer, Optimizable)):
            raise TypeError(
                f"`Fabric.{method}` expected an optimizer, but got a `{type(optimizer).__name__}`."
                " Pass optimizers one by one, not in a list."
            )


def check_dataloaders(dataloaders: Sequence[Any]) -> None:
    """Check the arguments of `setup_dataloaders`.

    Raises:
        TypeError: Something is no `DataLoader`.
        ValueError: There is none, or one was set up before.
    """
    if not dataloaders:
        raise ValueError("`setup_dataloaders` requires at least one dataloader as input, but got none. Pass it.")
    for dataloader in dataloaders:
        if is_wrapped(dataloader):
            raise ValueError(
                "A dataloader should be passed only once to the `setup_dataloaders` method, but this one was set up"
                " before. Use what the first call returned."
            )
        if not isinstance(dataloader, DataLoader):
            raise TypeError(
                "Only PyTorch `DataLoader`s can be given to `setup_dataloaders`, but this is a"
                f" `{type(dataloader).__name__}`. Pass loaders one by one, not in a list; iterate anything else as it"
                " is, with `fabric.to_device(batch)`."
            )


def set_up_module(
    strategy: Strategy,
    module: nn.Module,
    optimizers: Sequence[Any],
    scheduler: Any,
    *,
    gate: BackwardGate,
    move_to_device: bool,
    reapply_compile: bool,
) -> tuple[_FabricModule, list[Any], Any]:
    """Convert, move, wrap and compile a module.

    Args:
        strategy: Wraps it.
        module: The module.
        optimizers: Its optimizers.
        scheduler: For strategies that step it.
        gate: Watches its backward passes.
        move_to_device: Move module and optimizer states.
        reapply_compile: Compile what the strategy made of the module, not what was compiled before.

    Returns:
        The wrapped module, what the strategy made of optimizers and scheduler.
    """
    compile_again: Callable[[nn.Module], nn.Module] | None = None
    original: nn.Module = module._orig_mod if is_compiled(module) else module  # type: ignore[assignment]  # of torch
    if is_compiled(module) and reapply_compile:
        compile_again, module = module.dynamo_ctx, original  # type: ignore[assignment]  # of torch
    module = strategy.precision_plugin.convert_module(module)
    original = original if is_compiled(module) else module
    if move_to_device:
        _move(strategy, module, optimizers)
    stepped = list(optimizers)
    if optimizers:
        module, stepped, scheduler = strategy.setup_module_and_optimizers(module, stepped, scheduler)
    else:
        module = strategy.setup_module(module)
    forward_module = module if compile_again is None else compile_again(module)
    wrapped = _FabricModule(forward_module, strategy, original, module, gate)
    return wrapped, stepped, scheduler


def _move(strategy: Strategy, module: nn.Module, optimizers: Sequence[Any]) -> None:
    devices = sorted({str(parameter.device) for parameter in module.parameters()})
    if len(devices) > 1:
        rank_zero_warn(
            f"The model passed to `Fabric.setup()` has parameters on several devices: {devices}. All of them move to"
            f" `{strategy.root_device}`. Pass `move_to_device=False` to leave them where they are.",
            stacklevel=6,
        )
    strategy.module_to_device(module)
    for optimizer in optimizers:
        if isinstance(optimizer, Optimizer):
            move_optimizer_state(optimizer, strategy.root_device)
