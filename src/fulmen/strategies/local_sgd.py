"""Post-local SGD: ranks step on their own gradients and average their weights now and then."""

from __future__ import annotations

from typing import Any

from torch.optim import LBFGS, Optimizer

from fulmen.strategies.optimizer_state import is_sharded

__all__ = ["average_after_steps"]


def average_after_steps(optimizer: Optimizer, state: Any, *, period: int, group: Any) -> None:
    """Average the weights of an optimizer over all ranks after every so many of its steps.

    Args:
        optimizer: The optimizer; a hook is added to it.
        state: The `PostLocalSGDState` of the communication hook: before its `start_localSGD_iter`-th step gradients are
            averaged by the wrapper, so weights need not be.
        period: How many steps from one average to the next.
        group: The ranks.

    Raises:
        ValueError: The optimizer can't be averaged.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    if not isinstance(state, PostLocalSGDState):
        raise ValueError(
            f"`DDPStrategy(model_averaging_period={period})` needs a `PostLocalSGDState` as `ddp_comm_state`, but it is"
            f" a `{type(state).__name__}`. Make one, and pass `post_localSGD_hook` as `ddp_comm_hook`."
        )
    if is_sharded(optimizer) or isinstance(optimizer, LBFGS):
        raise ValueError(
            f"The weights of a `{type(optimizer).__name__}` can't be averaged, as its ranks must not step on their own."
            " Choose another optimizer, or leave `model_averaging_period` out."
        )
    averager = PeriodicModelAverager(period=period, warmup_steps=state.start_localSGD_iter, process_group=group)

    def average(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [
            parameter for entry in stepped.param_groups for parameter in entry["params"] if parameter.grad is not None
        ]
        if parameters:
            averager.average_parameters(iter(parameters))

    optimizer.register_step_post_hook(average)
