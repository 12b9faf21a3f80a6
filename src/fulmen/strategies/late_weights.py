"""Memory and values for modules that were made on the meta device, a layer at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LateWeights", "fill_whole_module"]


class LateWeights:
    """Fills modules whose tensors have a shape but no memory yet, and knows which have got no values.

    A layer is filled by its `reset_parameters`, as in its constructor. In the order of `module.modules()` this draws
    the random numbers that making the module on one device draws, if each layer draws in its constructor and nothing is
    drawn between.

    Args:
        module: The module whose layers are filled.
        device: Where to.
        init: Fills the tensors of one layer in place of its `reset_parameters`; gets the layer.
    """

    def __init__(self, module: nn.Module, device: torch.device, init: Callable[[nn.Module], Any] | None = None) -> None:
        self._device = device
        self._init = init
        places = Counter(id(each) for layer in module.modules() for _, each in _own_tensors(layer))
        self._shared = {number for number, count in places.items() if count > 1}
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # of shared ones, by id of that without memory, kept alive
        self._unfilled: dict[str, str] = {}

    def fill(self, layer: nn.Module, name: str) -> None:
        """Give the tensors of one layer, not those of its sublayers, memory and values.

        Args:
            layer: The layer; nothing happens if its tensors have memory.
            name: Its name in the module.
        """
        empty = [each for each in (*layer._parameters.values(), *layer._buffers.values()) if _is_empty(each)]
        if not empty:
            return
        known = [(key, each) for key, each in _own_tensors(layer) if id(each) in self._made or not _is_empty(each)]
        for tensors in (layer._parameters, layer._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and _is_empty(tensor):
                    tensors[key] = self._with_memory(tensor)  # type: ignore[assignment]  # of the kind it was
        if len(known) == len(list(_own_tensors(layer))):
            return  # all of it belongs to another layer, too, or has values
        kept = [(layer_tensor, layer_tensor.detach().clone()) for layer_tensor in self._current(layer, known)]
        self._give_values(layer, name, new={key for key, _ in _own_tensors(layer)} - {key for key, _ in known})
        with torch.no_grad():
            for tensor, values in kept:
                tensor.copy_(values)

    def _with_memory(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._made:
            return self._made[id(tensor)][1]
        made = torch.empty_like(tensor, device=self._device)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            made.__dict__.update({**tensor.__dict__, **made.__dict__})  # an imagined one has its device there
        if id(tensor) in self._shared:
            self._made[id(tensor)] = tensor, made
        return made

    def forget_shared(self) -> None:
        """Let go of whole tensors, once all layers are filled."""
        self._made.clear()

    def _current(self, layer: nn.Module, known: Iterable[tuple[str, Tensor]]) -> list[Tensor]:
        now = dict(_own_tensors(layer))
        return [now[key] for key, _ in known]

    def _give_values(self, layer: nn.Module, name: str, new: set[str]) -> None:
        if self._init is not None:
            self._init(layer)
        elif callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
        else:
            kind = type(layer).__name__
            self._unfilled.update({f"{name}.{key}" if name else key: kind for key in new})

    # ---- values that never came

    def note_loaded(self, names: Iterable[str] | Mapping[str, Any]) -> None:
        """Take note of tensors that got values otherwise, e.g. from a checkpoint.

        Args:
            names: Their names in the module.
        """
        for name in names:
            self._unfilled.pop(name, None)

    @property
    def has_unfilled(self) -> bool:
        """Whether tensors are left that hold whatever was in the memory."""
        return bool(self._unfilled)

    def refuse_unfilled(self) -> None:
        """Check that all tensors have values.

        Raises:
            RuntimeError: Some do not.
        """
        if not self._unfilled:
            return
        kinds = ", ".join(f"`{kind}`" for kind in sorted(set(self._unfilled.values())))
        raise RuntimeError(
            f"The module was made on the meta device, and {sorted(self._unfilled)} have no values: {kinds} has no"
            " method `reset_parameters` that could fill them. Write one that fills its own parameters and buffers (and"
            " call it in `__init__`), load a checkpoint that has them before the first step, or make the module outside"
            " of `init_module(empty_init=True)`."
        )


def fill_whole_module(module: nn.Module, device: torch.device, loaded: Iterable[str] = ()) -> None:
    """Give all layers that were made on the meta device memory and values, where the module is not divided.

    Args:
        module: The module; nothing happens if all of it has memory.
        device: Where to.
        loaded: Names of tensors that get values from a checkpoint afterwards.

    Raises:
        RuntimeError: A layer cannot fill itself, and nothing is loaded into it.
    """
    if not any(each.is_meta for each in (*module.parameters(), *module.buffers())):
        return
    late = LateWeights(module, device)
    for name, layer in module.named_modules():
        late.fill(layer, name)
    late.forget_shared()
    late.note_loaded(loaded)
    late.refuse_unfilled()


def _is_empty(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_meta


def _own_tensors(layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for tensors in (layer._parameters, layer._buffers):
        for key, tensor in tensors.items():
            if tensor is not None:
                yield key, tensor
