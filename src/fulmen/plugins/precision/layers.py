"""Which layers of a module a precision may exchange for its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from torch import nn

from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["hand_over", "layers_of_kind", "names_of", "unmatched_names_warned"]

_Layer = TypeVar("_Layer", bound=nn.Module)


def layers_of_kind(
    module: nn.Module, kind: type[_Layer], ignore_modules: Collection[str], *, may_share: bool = False
) -> Iterator[tuple[str, _Layer]]:
    """Iterate over the layers that can be exchanged without a change of what the module means.

    Left out are subclasses (their `forward` may be another, or read the weight), layers inside the modules named, and
    layers whose parameters another module uses as well, e.g. an output layer that shares the embedding's weight.

    Args:
        module: The user's module.
        kind: The class, e.g. `nn.Linear`.
        ignore_modules: Names to leave out: "lm_head" means each module of that name and all inside it, wherever it
            is; "decoder.lm_head" only the one in `decoder`.
        may_share: Do not leave out layers that share parameters: for those that take the same parameters on.

    Returns:
        Names and layers, each layer once.
    """
    num_owners = Counter(id(parameter) for owner in module.modules() for parameter in owner.parameters(recurse=False))
    for name, layer in list(module.named_modules()):
        if type(layer) is not kind or _is_named(name, ignore_modules):
            continue
        if may_share or all(num_owners[id(parameter)] == 1 for parameter in layer.parameters(recurse=False)):
            yield name, layer


def hand_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give a new layer the parameters, hooks and mode of the one whose place it takes.

    The parameters stay the same objects: an optimizer that has them goes on to train the right ones.

    Args:
        old: The layer of the user's module.
        new: A layer with parameters of the same names.

    Returns:
        The new layer.
    """
    for name, parameter in old.named_parameters(recurse=False):
        if getattr(new, name) is not parameter:
            setattr(new, name, parameter)
    for name, hooks in vars(old).items():
        if "hooks" in name and isinstance(hooks, dict):
            vars(new)[name].update(hooks)
    vars(new)["_is_full_backward_hook"] = vars(old)["_is_full_backward_hook"]  # of which kind those of backward are
    return new.train(old.training)


def names_of(ignore_modules: Iterable[str] | str | None) -> frozenset[str]:
    """Return the names as a set; a single text is one name.

    Args:
        ignore_modules: What the user passed.

    Returns:
        The names.
    """
    return frozenset({ignore_modules} if isinstance(ignore_modules, str) else ignore_modules or ())


def unmatched_names_warned(module: nn.Module, ignore_modules: Collection[str], *, setting: str) -> None:
    """Warn about names that no submodule has: mostly a slip of the pen.

    Args:
        module: The user's module.
        ignore_modules: The names.
        setting: What the user wrote, e.g. "Float8Precision(ignore_modules=...)".
    """
    names = [name for name, _ in module.named_modules()]
    unmatched = [wanted for wanted in ignore_modules if not any(_is_named(name, (wanted,)) for name in names)]
    if unmatched:
        rank_zero_warn(
            f"`{setting}` names {', '.join(map(repr, sorted(unmatched)))}, but `{type(module).__name__}` has no such"
            " submodule, so nothing is left out for it. Look for the right name in `model.named_modules()`."
        )


def _is_named(name: str, wanted: Collection[str]) -> bool:
    return any(f".{part}." in f".{name}." for part in wanted)
