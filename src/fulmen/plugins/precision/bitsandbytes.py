"""8- and 4-bit weights, by the package bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal

import torch
from torch import nn

from fulmen.plugins.precision.contexts import DefaultDtype, convert_floats
from fulmen.plugins.precision.layers import layers_of_kind, names_of, unmatched_names_warned
from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.lazy import require

__all__ = ["BitsandbytesPrecision"]

_MODES = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class BitsandbytesPrecision(Precision):
    """Linear layers with weights of 8 or 4 bit: for inference with little memory, or under adapters that are trained.

    Each `nn.Linear` becomes a layer of `bitsandbytes`, in place: the module objects stay. A weight is quantized when it
    reaches its device, or where it is made if that is inside `module_init_context` (in `configure_model`, or
    `Fabric.init_module`), one layer at a time; so the whole model never needs to fit in memory unquantized. Quantized
    weights are frozen, except with "int8-training". All other parameters, buffers and inputs get the type `dtype`.

    A checkpoint holds the quantized weights and what is needed to read them. It can be loaded into a model of the same
    kind of quantization; weights that are not quantized can be loaded too, and are quantized on the way.

    Subclasses of `nn.Linear` and layers whose weight another module uses as well stay as they are. The package computes
    on NVIDIA, AMD and Intel GPUs, and (from version 0.46 on) on CPUs.

    Args:
        mode: "nf4" (4 bit, levels as weights are distributed), "fp4" (4-bit floating point), either with "-dq" (the
            scaling factors are quantized as well: about 0.4 bit less per weight), "int8" (8 bit, large activations in
            16), or "int8-training" (weights stay in `dtype` and are trained, products are computed in 8 bit).
        dtype: Type of everything else and of the computation: float16, bfloat16 or float32. Default: float16 for the
            8-bit modes, in which the products are scaled in that type; else bfloat16, or float16 on GPUs without it.
        ignore_modules: Names of submodules whose layers stay as they are, e.g. `{"lm_head"}`; a name without a dot
            matches at every depth. With names, `module_init_context` only sets the type, since a layer does not know
            its name while it is made; quantization then waits for the whole module.

    Raises:
        ModuleNotFoundError: `bitsandbytes` is not installed.
        ValueError: The mode or the type is not known.

    Example::

        trainer = Trainer(plugins=BitsandbytesPrecision("nf4-dq", ignore_modules={"lm_head"}))
    """

    changes_state_dict = True

    def __init__(
        self,
        mode: Literal["nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training"],
        dtype: torch.dtype | None = None,
        ignore_modules: Iterable[str] | None = None,
    ) -> None:
        require("bitsandbytes", extra="bitsandbytes", for_="BitsandbytesPrecision")
        if mode not in _MODES:
            raise ValueError(
                f"`BitsandbytesPrecision(mode={mode!r})` is not known. Choose one of {', '.join(map(repr, _MODES))}."
            )
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(
                f"`BitsandbytesPrecision(dtype={dtype})` cannot be: quantized layers compute in 16 or 32 bit."
                f" Choose one of {', '.join(map(str, _DTYPES))}."
            )
        self.precision = f"bitsandbytes-{mode}"
        self.mode = mode
        self.dtype = dtype or _default_dtype(mode)
        self.ignore_modules = set(names_of(ignore_modules))
        self._context = DefaultDtype(self.dtype)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Make the linear layers quantized ones, and convert all else to `dtype`, in place.

        Args:
            module: The user's module.

        Returns:
            The same module.

        Raises:
            TypeError: It has no linear layer that could be quantized.
        """
        from fulmen.plugins.precision.quantized import is_quantized_layer, make_quantized, quantize

        unmatched_names_warned(module, self.ignore_modules, setting="BitsandbytesPrecision(ignore_modules=...)")
        for _, linear in layers_of_kind(module, nn.Linear, self.ignore_modules):
            make_quantized(linear, self.mode, self.dtype)
        quantized: list[Any] = [layer for layer in module.modules() if is_quantized_layer(layer)]
        if not quantized:
            raise TypeError(
                f"`BitsandbytesPrecision(mode={self.mode!r})` finds nothing to quantize in `{type(module).__name__}`:"
                " it has no `nn.Linear` of its own that is not named in `ignore_modules`. Use another precision,"
                " such as 'bf16-true'."
            )
        converted = _converted(module, self.dtype)
        for layer in quantized:
            if layer.weight.device.type != "cpu":  # on the CPU it waits: it may be about to move to a faster device
                quantize(layer)
        return converted

    def convert_input(self, data: Any) -> Any:
        """Convert the floating point tensors of a batch to `dtype`."""
        return convert_floats(data, self.dtype)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type `dtype`; always the same object."""
        return self._context

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new linear layers are quantized at once, and all else has the type `dtype`."""
        return _Both(self._context, nullcontext() if self.ignore_modules else _linears_quantized(self.mode, self.dtype))

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Return a context in which new float tensors have the type `dtype`."""
        return self._context


@contextmanager
def _linears_quantized(mode: str, dtype: torch.dtype) -> Iterator[None]:
    """Quantize each `nn.Linear` at the end of its `__init__`, under whatever name the class was imported."""
    from fulmen.plugins.precision.quantized import make_quantized, quantize

    original = nn.Linear.__init__

    @wraps(original)
    def quantizing(layer: nn.Linear, *args: Any, **kwargs: Any) -> None:
        original(layer, *args, **kwargs)
        if type(layer) is nn.Linear:
            make_quantized(layer, mode, dtype)
            quantize(layer)

    nn.Linear.__init__ = quantizing  # type: ignore[assignment, method-assign]  # for the time of the block
    try:
        yield
    finally:
        nn.Linear.__init__ = original  # type: ignore[method-assign]


class _Both:
    """Two contexts as one, the first outside."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> None:
        self._outer = outer
        self._inner = inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            self._inner.__exit__(*error)
        finally:
            self._outer.__exit__(*error)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # not `module.to(dtype)`, which takes the imaginary part from complex parameters
    if dtype is torch.float32:
        return module.float()
    return module.half() if dtype is torch.float16 else module.bfloat16()


def _default_dtype(mode: str) -> torch.dtype:
    if mode.startswith("int8") or (torch.cuda.is_available() and not torch.cuda.is_bf16_supported()):
        return torch.float16
    return torch.bfloat16
