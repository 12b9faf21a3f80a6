"""What is done to an engine of DeepSpeed from outside, beyond its documented methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulmen.strategies.deepspeed_config import explain_refusal
from fulmen.utilities.variables import variables_set

if TYPE_CHECKING:
    from fulmen.strategies.parallel import ParallelStrategy

__all__ = [
    "begin_manual_backward",
    "gradients_scaled",
    "plain_optimizer",
    "rank_in_environment",
    "refusals_explained",
    "release_engine",
    "remove_module_hooks",
    "use_names_of_torch",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


# what DeepSpeed calls its collectives through, and the names that torch has for them since 2.13
_COLLECTIVES = {"all_gather_function": "all_gather_single", "reduce_scatter_function": "reduce_scatter_single"}


def use_names_of_torch(package: ModuleType) -> None:
    """Let DeepSpeed call collectives by the names that torch has today; torch warns of the older ones at each call.

    Args:
        package: DeepSpeed, whose `init_distributed` was called.
    """
    backend = package.comm.comm.cdb
    for attribute, name in _COLLECTIVES.items():
        function = getattr(torch.distributed, name, None)
        if function is not None and hasattr(backend, attribute):
            setattr(backend, attribute, function)


@contextmanager
def refusals_explained(package: ModuleType, config: Mapping[str, Any]) -> Iterator[None]:
    """Context in which what DeepSpeed refuses in its configuration is said in words.

    Args:
        package: DeepSpeed.
        config: The configuration.

    Raises:
        ValueError: It is refused.
    """
    try:
        yield
    except ValueError as error:
        if not type(error).__module__.startswith("pydantic"):
            raise
        kinds = package.runtime.config_utils.DeepSpeedConfigModel.__subclasses__()
        raise explain_refusal(error, config, {kind.__name__: kind.model_fields for kind in kinds}) from error


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


def plain_optimizer(optimizer: Any) -> Any:
    """Return torch's optimizer of an engine that was released, in host memory; to be looked at, not to step.

    Args:
        optimizer: That of the engine, which may be wrapped.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data = parameter.data.cpu()
            parameter.grad = None
    return optimizer


def remove_module_hooks(model: nn.Module) -> None:
    """Remove all hooks from a module and those in it, whoever registered them.

    Args:
        model: The module.
    """
    for module in model.modules():
        for name in _HOOKS:
            getattr(module, name).clear()
