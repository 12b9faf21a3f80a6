"""What is done to an engine of DeepSpeed from outside, beyond its documented methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fulmen.utilities.variables import variables_set

if TYPE_CHECKING:
    from fulmen.strategies.parallel import ParallelStrategy

__all__ = [
    "begin_manual_backward",
    "gradients_scaled",
    "rank_in_environment",
    "release_engine",
    "remove_module_hooks",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def rank_in_environment(strategy: ParallelStrategy) -> Iterator[None]:
    """The variables that DeepSpeed reads the rank of this process from; they are as before afterwards.

    Args:
        strategy: Knows the rank.
    """
    environment = strategy.cluster_environment
    assert environment is not None  # noqa: S101 - the process group was joined by it
    place: dict[str, str | int | None] = {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": environment.main_port,
        "RANK": strategy.global_rank,
        "WORLD_SIZE": strategy.world_size,
        "LOCAL_RANK": strategy.local_rank,
    }
    with variables_set(place):
        yield


def begin_manual_backward(engine: Any, loss: Tensor) -> None:
    """Do what the engine's `forward` does for the backward pass of its output, where the loss did not come from it.

    Args:
        engine: The engine.
        loss: What is about to be differentiated.
    """
    clear = getattr(engine.optimizer, "clear_backward_seen_flag", None)  # stages 1 to 3 count passes by it
    if clear is not None:
        clear()

    def begin(_: Tensor) -> None:
        engine._backward_prologue()  # there is no public name for it

    loss.register_hook(begin)  # type: ignore[no-untyped-call]  # of torch


@contextmanager
def gradients_scaled(engine: Any, factor: float) -> Iterator[None]:
    """Context in which a step of the engine takes gradients times a factor, before it clips them.

    Args:
        engine: The engine.
        factor: The factor.
    """
    if factor == 1.0:
        yield
    elif engine.zero_optimization_stage() == 0:
        for parameter in engine.module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        yield
    else:  # gradients are divided by the scale of the loss, wherever they are
        scaler = engine.optimizer.loss_scaler
        scaler.cur_scale /= factor
        try:
            yield
        finally:
            scaler.cur_scale *= factor


def release_engine(engine: Any) -> None:
    """Remove everything that an engine has hung into its module.

    Args:
        engine: The engine; not to be used any more.
    """
    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()


def remove_module_hooks(model: nn.Module) -> None:
    """Remove all hooks from a module and those in it, whoever registered them.

    Args:
        model: The module.
    """
    for module in model.modules():
        for name in _HOOKS:
            getattr(module, name).clear()
