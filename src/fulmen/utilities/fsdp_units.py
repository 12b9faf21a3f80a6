"""What `fully_shard` gathers as a whole, and what it knows of it; the names of torch's own parts are used here only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["parameter_groups", "recover_from_broken_step", "state_of_unit", "units_of"]


def units_of(module: nn.Module) -> list[Any]:
    """Return the parts of a module that `fully_shard` gathers as a whole, itself included, as `FSDPModule`s.

    Args:
        module: The module.
    """
    from torch.distributed.fsdp import FSDPModule

    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def state_of_unit(unit: Any) -> Any:
    """Return what FSDP2 knows of a unit.

    Args:
        unit: An `FSDPModule`.
    """
    return unit._get_fsdp_state()


def parameter_groups(unit: Any) -> list[Any]:
    """Return the parameters of a unit that are gathered together; mostly there is one group.

    Args:
        unit: An `FSDPModule`.
    """
    state = state_of_unit(unit)
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # older versions of torch have at most one
        groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
    return list(groups)


def recover_from_broken_step(module: nn.Module) -> None:
    """Make a module ready for a step, whatever an earlier run has left undone.

    Args:
        module: Its units may be in the middle of a step that an exception has ended.

    Raises:
        RuntimeError: They are, and this version of torch can't help it.
    """
    for unit in units_of(module):
        state = state_of_unit(unit)
        if not state._is_root:
            continue
        if hasattr(unit, "reset_iter_state"):
            unit.reset_iter_state()
        elif state._state_ctx.iter_forward_root is not None or state._state_ctx.post_backward_final_callback_queued:
            raise RuntimeError(
                f"An earlier run was ended in the middle of a step of `{type(module).__name__}`, and torch"
                f" {torch.__version__} cannot take up a sharded module after that. Make a new module and load a"
                " checkpoint, or use a newer torch."
            )
