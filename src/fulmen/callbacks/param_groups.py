"""Parameter groups: layers with learning rates of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from fulmen.utilities.options import check_number

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fulmen.utilities.types import LRSchedulerConfig

__all__ = ["discriminative_learning_rates", "layer_groups", "lead_schedulers"]

_Groups: TypeAlias = "Sequence[str | Sequence[str]]"
_RATES = ("initial_lr", "max_lr", "min_lr", "swa_lr")  # what schedulers keep in a group beside "lr"


def discriminative_learning_rates(
    module: nn.Module, groups: _Groups, *, lr: float, decay: float = 2.6, **options: Any
) -> list[dict[str, Any]]:
    """Make parameter groups whose learning rate falls from the head to the input (ULMFiT, fastai).

    Args:
        module: The module.
        groups: Names of submodules from the input to the head, each one or a list of several that go together. All
            parameters of the module must be in one of them.
        lr: The learning rate of the last group.
        decay: Factor between neighbors: group k from the head has `lr / decay**k`.
        options: Further entries for each group, e.g. `weight_decay=0.01`.

    Returns:
        Groups for any optimizer of torch, that of the head first; frozen parameters are included, so that they can be
        unfrozen later.

    Raises:
        ValueError: A name is unknown, parameters are left over or in two groups, or a number is out of range.

    Example::

        def configure_optimizers(self):
            groups = discriminative_learning_rates(self, ["stem", "body", "head"], lr=1e-3)
            return torch.optim.AdamW(groups)
    """
    check_number("discriminative_learning_rates", "lr", lr, "the learning rate of the head.", above=0)
    why = "it divides learning rates from layer to layer. The paper has 2.6."
    check_number("discriminative_learning_rates", "decay", decay, why, above=0)
    named = [("+".join([name] if isinstance(name, str) else name), each)
             for name, each in zip(groups, layer_groups(module, groups), strict=True)]  # fmt: skip
    of_group = [(name, _parameters_of(modules)) for name, modules in reversed(named)]
    _check_partition(module, [parameters for _, parameters in of_group])
    return [
        {"params": parameters, "lr": lr / decay**depth, "name": name, **options}
        for depth, (name, parameters) in enumerate(of_group)
    ]


def layer_groups(module: nn.Module, groups: _Groups) -> list[list[nn.Module]]:
    """Look submodules up by name.

    Args:
        module: The module.
        groups: Names, each one or a list of several.

    Raises:
        ValueError: A name is unknown.
    """
    known = dict(module.named_modules())
    names = [[each] if isinstance(each, str) else list(each) for each in groups]
    if unknown := [name for group in names for name in group if name not in known]:
        children = [name for name, _ in module.named_children()]
        raise ValueError(
            f"`{type(module).__name__}` has no submodules {unknown}, so they can't be layers of a group. Its children"
            f" are {children}; those of a child are called like `child.0`."
        )
    return [[known[name] for name in group] for group in names]


def lead_schedulers(configs: list[LRSchedulerConfig], optimizer: Optimizer, num_before: int) -> None:
    """Let schedulers go on with new groups of their optimizer, in proportion to the first group.

    Args:
        configs: The schedulers of the run.
        optimizer: The optimizer.
        num_before: How many groups it had when the schedulers saw it last.
    """
    groups = optimizer.param_groups
    if len(groups) == num_before:
        return
    first = groups[0]
    for group in groups[num_before:]:
        ratio = group["lr"] / first["lr"] if first["lr"] else 0.0
        for key in first.keys() - group.keys():
            group[key] = first[key] * ratio if key in _RATES else first[key]
    for config in configs:
        for scheduler in _with_parts(config.scheduler):
            if getattr(scheduler, "optimizer", None) is optimizer:
                _extend_lists(scheduler, groups)


def _with_parts(scheduler: Any) -> list[Any]:
    """Return a scheduler and those that it is made of, e.g. a `SequentialLR`."""
    return [scheduler, *(part for each in getattr(scheduler, "_schedulers", ()) for part in _with_parts(each))]


def _extend_lists(scheduler: Any, groups: list[dict[str, Any]]) -> None:
    for name in ("base_lrs", "max_lrs", "min_lrs", "lr_lambdas"):
        values = getattr(scheduler, name, None)
        if not isinstance(values, list) or not values:
            continue
        for group in groups[len(values) :]:
            ratio = group.get("initial_lr", group["lr"]) / (groups[0].get("initial_lr", groups[0]["lr"]) or 1.0)
            values.append(values[0] * ratio if name in ("base_lrs", "max_lrs") else values[0])


def _parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(parameter for each in modules for parameter in each.parameters()))


def _check_partition(module: nn.Module, groups: list[list[nn.Parameter]]) -> None:
    seen = [parameter for group in groups for parameter in group]
    if len(set(seen)) < len(seen):
        raise ValueError(
            "`discriminative_learning_rates` got groups that share parameters, so their learning rate is not clear."
            " Name each layer once, and not together with a module that contains it."
        )
    if missing := [name for name, parameter in module.named_parameters() if parameter not in set(seen)]:
        raise ValueError(
            f"`discriminative_learning_rates` got groups without the parameters {missing}, which would not be trained."
            " Add their modules to a group."
        )
