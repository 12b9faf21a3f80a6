"""8-bit floating point by NVIDIA's Transformer Engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import nn

from fulmen.plugins.precision.contexts import DefaultDtype, ReusableAutocast, convert_floats
from fulmen.plugins.precision.layers import hand_over, layers_of_kind
from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["TransformerEnginePrecision"]

_DIVISOR = 16  # of both sides of a weight: what 8-bit products, forward and backward, can do
_NAMES = {torch.bfloat16: "transformer-engine", torch.float16: "transformer-engine-float16"}


class TransformerEnginePrecision(Precision):
    """Weights in 16 bit, linear layers computed in float8 by NVIDIA's Transformer Engine.

    Known to the Trainer as "transformer-engine" (bfloat16 weights) and "transformer-engine-float16". Needs the package
    `transformer_engine` and an NVIDIA GPU of the Ada, Hopper or a newer generation.

    Args:
        weights_dtype: Type of weights, buffers and inputs: `torch.bfloat16` or `torch.float16`.
        recipe: How values are scaled: a recipe of `transformer_engine.common.recipe`, or the arguments of its
            `DelayedScaling` as a dictionary, where "fp8_format" may be text ("HYBRID", "E4M3"). Default: the package's.
        replace_layers: Exchange `nn.Linear` and `nn.LayerNorm` by the package's layers. None: only if the module has
            none of the package's yet. Not exchanged are linear layers with a side that is no multiple of 16, layer
            norms without weight or bias, subclasses, and layers that share parameters with others. The package's
            layers are no subclasses of torch's, and have an extra entry `_extra_state` in a checkpoint. Their inputs
            must have a number of rows (of all dimensions but the last) that is a multiple of 8.
        fallback_compute_dtype: Type in which all other operations compute, by autocast; default `weights_dtype`.

    Raises:
        ModuleNotFoundError: `transformer_engine` is not installed.
        ValueError: `weights_dtype` is another type.
    """

    precision = "transformer-engine"
    changes_state_dict = True

    def __init__(
        self,
        *,
        weights_dtype: torch.dtype,
        recipe: Mapping[str, Any] | Any | None = None,
        replace_layers: bool | None = None,
        fallback_compute_dtype: torch.dtype | None = None,
    ) -> None:
        engine = _engine("transformer_engine.pytorch")
        if weights_dtype not in _NAMES:
            raise ValueError(
                f"`TransformerEnginePrecision(weights_dtype={weights_dtype})` cannot be: the weights have 16 bit."
                f" Choose one of {', '.join(map(str, _NAMES))}."
            )
        self.precision = _NAMES[weights_dtype]
        self.weights_dtype = weights_dtype
        self.recipe = _delayed_scaling(recipe) if isinstance(recipe, Mapping) else recipe
        self.replace_layers = replace_layers
        self.fallback_compute_dtype = fallback_compute_dtype or weights_dtype
        self._engine = engine
        self._dtype_context = DefaultDtype(weights_dtype)
        self._context = _Float8Context(engine, self.recipe, weights_dtype, self.fallback_compute_dtype)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Exchange layers, and convert floating point parameters and buffers to the type of the weights, in place."""
        has_layers_of_engine = any(
            type(layer).__module__.startswith("transformer_engine.") for layer in module.modules()
        )
        if has_layers_of_engine and self.replace_layers:
            rank_zero_warn(
                "`TransformerEnginePrecision(replace_layers=True)`: the module has layers of `transformer_engine`"
                " already, so none is exchanged. Set `replace_layers=False`, or use torch's layers only."
            )
        elif not has_layers_of_engine and self.replace_layers is not False:
            module = self._with_layers_exchanged(module)
        return module.half() if self.weights_dtype is torch.float16 else module.bfloat16()

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to the type of the weights."""
        return convert_floats(data, self.weights_dtype)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which the engine's layers compute in float8; always the same object."""
        return self._context

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new parameters have the type of the weights; layers are exchanged later."""
        return self._dtype_context

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type of the weights."""
        return self._dtype_context

    def _with_layers_exchanged(self, module: nn.Module) -> nn.Module:
        exchanged: dict[nn.Module, nn.Module] = {}
        for _, linear in layers_of_kind(module, nn.Linear, ()):
            if linear.in_features % _DIVISOR == 0 and linear.out_features % _DIVISOR == 0:
                exchanged[linear] = self._linear(linear)
        for _, norm in layers_of_kind(module, nn.LayerNorm, ()):
            # without type information at run time: `elementwise_affine=False` and `bias=False` leave None here
            if all(parameter is not None for parameter in (norm.weight, norm.bias)) and len(norm.normalized_shape) == 1:
                exchanged[norm] = self._layer_norm(norm)
        for owner in list(module.modules()):
            for name, child in owner.named_children():
                if child in exchanged:
                    setattr(owner, name, exchanged[child])
        return exchanged.get(module, module)

    def _linear(self, linear: nn.Linear) -> nn.Module:
        made = self._engine.Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            params_dtype=self.weights_dtype,
            device=linear.weight.device,
        )
        return hand_over(linear, made)

    def _layer_norm(self, norm: nn.LayerNorm) -> nn.Module:
        made = self._engine.LayerNorm(norm.normalized_shape[0], eps=norm.eps, device=norm.weight.device)
        return hand_over(norm, made)


class _Float8Context:
    """Default type, autocast and the engine's own context; may be entered again and inside itself."""

    __slots__ = ("_contexts", "_entered", "_float8")

    def __init__(self, engine: ModuleType, recipe: Any, weights_dtype: torch.dtype, compute_dtype: torch.dtype) -> None:
        self._contexts = (
            DefaultDtype(weights_dtype),
            ReusableAutocast("cuda", compute_dtype, cache_enabled=False),
        )
        # the engine's context is good for one use; newer versions have a new name for it
        self._float8: Callable[[], AbstractContextManager[Any]] = (
            partial(engine.autocast, enabled=True, recipe=recipe)
            if hasattr(engine, "autocast")
            else partial(engine.fp8_autocast, enabled=True, fp8_recipe=recipe)
        )
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        """Switch float8 on."""
        with ExitStack() as stack:
            for context in (*self._contexts, self._float8()):
                stack.enter_context(context)
            self._entered.append(stack.pop_all())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the previous state back."""
        self._entered.pop().__exit__(kind, error, traceback)


def _delayed_scaling(settings: Mapping[str, Any]) -> Any:
    recipes = _engine("transformer_engine.common.recipe")
    settings = dict(settings)
    number_format = settings.get("fp8_format")
    if isinstance(number_format, str):
        settings["fp8_format"] = getattr(recipes.Format, number_format)
    return recipes.DelayedScaling(**settings)


def _engine(module: str) -> ModuleType:
    return require(module, extra="transformer-engine", for_="TransformerEnginePrecision")
