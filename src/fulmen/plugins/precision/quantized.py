"""Linear layers with quantized weights: those of bitsandbytes, with what they lack for use inside a run.

The package's own layers cannot load what they saved, take weights of another type for quantized ones, and leave
statistics behind when a model moves between devices. The classes here do it right; they are made on first use, since
the package is optional. A layer becomes one in place, by its class, and so stays the same object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.utilities.lazy import require

__all__ = ["is_quantized_layer", "make_quantized", "quantize"]

_OUTLIER = 6.0  # columns of activations with larger values are computed in 16 bit; as LLM.int8() recommends


def make_quantized(layer: nn.Linear, mode: str, dtype: torch.dtype) -> None:
    """Turn a linear layer into one whose weight is quantized by `quantize`, or when it moves to a device.

    Args:
        layer: An `nn.Linear`.
        mode: A mode of `BitsandbytesPrecision`.
        dtype: Type in which is computed.
    """
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    if mode.startswith("int8"):
        trains = mode == "int8-training"
        name = "TrainableLinear8bit" if trains else "Linear8bit"
        template = _bnb().nn.Linear8bitLt(*sizes, has_fp16_weights=trains, threshold=_OUTLIER, device="meta")
    else:
        name = "Linear4bit"
        quant_type, _, double = mode.partition("-")
        template = _bnb().nn.Linear4bit(
            *sizes, compute_dtype=dtype, compress_statistics=bool(double), quant_type=quant_type, device="meta"
        )
    for attribute, value in vars(template).items():  # what the package keeps besides what every module has
        vars(layer).setdefault(attribute, value)
    layer.__class__ = _class(name)
    layer.take_weight(layer.weight, like=template.weight)  # type: ignore[operator]  # of the new class


def quantize(layer: Any) -> None:
    """Quantize the weight of such a layer now, where it is; nothing if it is already, or on the meta device.

    Args:
        layer: A layer that went through `make_quantized`.
    """
    if not layer.weight.is_meta and not layer.is_quantized():
        layer.quantize()


def is_quantized_layer(module: nn.Module) -> bool:
    """Tell whether a module went through `make_quantized`.

    Args:
        module: Any module.

    Returns:
        True if it is such a layer.
    """
    return isinstance(module, tuple(own for own, _ in _OWN.values()))


class _FourBit(nn.Linear):
    """What `Linear4bit` of the package lacks."""

    weight: Any

    def take_weight(self, weight: Tensor, *, like: Any) -> None:
        # Not packed for AVX512 at the first evaluation: weights so packed cannot be trained on or moved.
        self.support_avx512bf16_for_cpu = False
        self.quant_state = None
        new = _bnb().nn.Params4bit(
            weight.detach(),
            requires_grad=False,
            compress_statistics=like.compress_statistics,
            quant_type=like.quant_type,
            quant_storage=like.quant_storage,
            module=self,
        )
        _put(self, new)

    def is_quantized(self) -> bool:
        return bool(self.weight.bnb_quantized)

    def quantize(self) -> None:
        self.weight = self.weight.to(self.weight.device)

    def take_quantized(self, weight: Tensor, statistics: dict[str, Tensor], device: torch.device) -> str | None:
        own = {name: value.clone() for name, value in statistics.items()}
        loaded = _bnb().nn.Params4bit.from_prequantized(weight.clone(), own, device=device, module=self)
        _put(self, loaded)
        return _shape_error(self, loaded.quant_state.shape)

    def forward(self, x: Tensor) -> Tensor:
        quantize(self)
        return super().forward(x)

    def reset_parameters(self) -> None:
        _reset(self)

    def dtype_of_weight(self) -> Any:
        return self.compute_dtype  # set by the package's layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        old = self.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch
        if not isinstance(self.weight, _bnb().nn.Params4bit):  # moved to or from the meta device
            self.take_weight(self.weight, like=old)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        _load(self, "weight.", super()._load_from_state_dict, *args)


class _EightBit(nn.Linear):
    """What `Linear8bitLt` of the package lacks, with quantized weights."""

    state: Any
    weight: Any

    def take_weight(self, weight: Tensor, *, like: Any) -> None:
        self.state.CB = self.state.SCB = None
        _put(self, _bnb().nn.Int8Params(weight.detach(), requires_grad=False, has_fp16_weights=False))

    def is_quantized(self) -> bool:
        return bool(self.weight.dtype == torch.int8)

    def quantize(self) -> None:
        scaled, factors, _ = _bnb().functional.int8_vectorwise_quant(self.weight.detach().half().contiguous())
        self._keep(scaled, factors)

    def take_quantized(self, weight: Tensor, statistics: dict[str, Tensor], device: torch.device) -> str | None:
        self._keep(weight.to(device, copy=True), statistics["SCB"].to(device, copy=True))
        return _shape_error(self, self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        quantize(self)
        return super().forward(x)

    def reset_parameters(self) -> None:
        _reset(self)

    def dtype_of_weight(self) -> Any:
        return torch.float16  # the only one that the package quantizes

    def _keep(self, scaled: Tensor, factors: Tensor) -> None:
        self.state.CB = self.state.SCB = None
        new = _bnb().nn.Int8Params(scaled, requires_grad=False, has_fp16_weights=False, CB=scaled, SCB=factors)
        _put(self, new)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        factors = self.weight.SCB if self.state.SCB is None else self.state.SCB
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch
        weight = self.weight.detach()
        if weight.dtype == torch.int8:  # a conversion is not for the factors, a move is
            self._keep(weight, self.weight.SCB if factors is None else factors.to(weight.device))
        else:
            self.take_weight(weight, like=None)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        _load(self, "", super()._load_from_state_dict, *args)


class _EightBitTraining(nn.Linear):
    """`Linear8bitLt` of the package with weights that are not quantized: the parameter stays the user's own."""

    state: Any

    def take_weight(self, weight: Any, *, like: Any) -> None:
        self.weight = weight

    def is_quantized(self) -> bool:
        return True  # in each product

    def forward(self, x: Tensor) -> Tensor:
        self.state.is_training = self.training
        bias = None if self.bias is None else self.bias.to(x.dtype)
        result: Tensor = _bnb().matmul(x, self.weight, bias=bias, state=self.state)
        return result

    def _save_to_state_dict(self, *args: Any) -> None:
        nn.Module._save_to_state_dict(self, *args)

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)


def _put(layer: Any, new: Any) -> None:
    """Set the weight within the parameter that is there, so that an optimizer that has it does not keep an old one."""
    old = layer.weight
    if type(old) is not type(new) or old.is_meta != new.is_meta:
        layer.weight = new
    elif old is not new:
        old.data = new.data
        vars(old).update(vars(new))


_OWN = {
    "Linear4bit": (_FourBit, "Linear4bit"),
    "Linear8bit": (_EightBit, "Linear8bitLt"),
    "TrainableLinear8bit": (_EightBitTraining, "Linear8bitLt"),
}


@functools.cache
def _class(name: str) -> Any:
    own, of_package = _OWN[name]
    return type(name, (own, getattr(_bnb().nn, of_package)), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """Find the classes by name, for pickle."""
    if name in _OWN:
        return _class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def _bnb() -> Any:
    return require("bitsandbytes", extra="bitsandbytes", for_="BitsandbytesPrecision")


def _load(
    layer: Any,
    statistics_prefix: str,
    load_others: Callable[..., None],
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load the bias as ever, and the weight with its statistics if it is quantized; if not, quantize it."""
    name = f"{prefix}weight"
    names = _names_of_statistics(layer, prefix, statistics_prefix, state_dict)
    others = {key: value for key, value in state_dict.items() if key != name and key not in names}
    load_others(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
    if name not in state_dict:
        return
    if name in missing_keys:
        missing_keys.remove(name)
    weight: Tensor = state_dict[name].detach()
    device = weight.device if layer.weight.is_meta else layer.weight.device
    statistics = {key[len(prefix + statistics_prefix) :]: state_dict[key] for key in names}
    if weight.is_floating_point():
        error = _shape_error(layer, weight.shape)
        if error is None:
            layer.take_weight(weight.to(device, layer.dtype_of_weight(), copy=True), like=layer.weight)
            quantize(layer)
    elif not statistics:
        error = "it is quantized in another way than the layer; use the mode with which it was saved"
    else:
        error = layer.take_quantized(weight, statistics, device)
    if error is not None:
        error_msgs.append(f"cannot load {name!r}: {error}")


def _names_of_statistics(
    layer: nn.Linear, prefix: str, statistics_prefix: str, state_dict: dict[str, Any]
) -> frozenset[str]:
    if statistics_prefix:
        return frozenset(key for key in state_dict if key.startswith(prefix + statistics_prefix))
    return frozenset({f"{prefix}SCB", f"{prefix}weight_format"} & state_dict.keys())


def _shape_error(layer: nn.Linear, shape: Any) -> str | None:
    expected = (layer.out_features, layer.in_features)
    return None if tuple(shape) == expected else f"it has shape {tuple(shape)}, the layer {expected}"


def _reset(layer: Any) -> None:
    """Draw new weights as `nn.Linear` does, and quantize them again if they were."""
    was_quantized = not layer.weight.is_meta and layer.is_quantized()
    if was_quantized:
        shape, dtype = (layer.out_features, layer.in_features), layer.dtype_of_weight()
        weight = torch.empty(shape, dtype=dtype, device=layer.weight.device)
        layer.take_weight(weight, like=layer.weight)
    nn.Linear.reset_parameters(layer)
    if was_quantized:
        quantize(layer)
