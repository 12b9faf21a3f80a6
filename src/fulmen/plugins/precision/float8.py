"""Linear layers computed in 8-bit floating point, by torchao."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulmen.plugins.precision.contexts import ReusableAutocast, convert_floats
from fulmen.plugins.precision.float8_gathering import gather_in_float8
from fulmen.plugins.precision.layers import hand_over, layers_of_kind, names_of, unmatched_names_warned
from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["Float8Precision"]

_DIVISOR = 16  # of both sides of a weight: what the 8-bit products of the hardware can do


class Float8Precision(Precision):
    """Matrix products of `nn.Linear` in float8, everything else in bfloat16 (`precision="fp8-mixed"`).

    Weights, gradients and optimizer states keep their type (32 bit unless you made the model in another), so a
    checkpoint is one of a run in 32 bit: it can be continued with any other precision. Inputs, weights and gradients of
    the linear layers are scaled and rounded to 8 bit just before each product; all other operations run under
    `torch.autocast(dtype=torch.bfloat16)`. Use it with large layers and `torch.compile`, which merges the scaling into
    the neighboring operations; else the scaling costs more time than the products save.

    Layers whose `in_features` or `out_features` is not a multiple of 16 stay as they are, as do subclasses of
    `nn.Linear`. With `FSDPStrategy` and one factor per tensor, weights are gathered in float8, which sends a quarter of
    the bytes and changes no result.

    Needs the package `torchao` and a GPU with float8: NVIDIA Ada, Hopper or newer, AMD MI300 or newer.

    Args:
        recipe: How values are scaled: "tensorwise" (one factor per tensor; fastest), "rowwise" (one per row; closer to
            bfloat16), "rowwise_with_gw_hp" (as before, and gradients of weights in bfloat16; closest), or a
            `torchao.float8.Float8LinearConfig`; the `enable_fsdp_float8_all_gather` of that says whether FSDP gathers
            weights in float8.
        ignore_modules: Names of submodules whose layers stay as they are, e.g. `{"lm_head"}`; a name without a dot
            matches at every depth.
        emulate: Round to 8 bit but multiply in the higher precision. Slow; shows on any device, also a CPU, what float8
            does to the results.

    Raises:
        ModuleNotFoundError: `torchao` is not installed.
        ValueError: The recipe is not known.

    Example::

        trainer = Trainer(accelerator="gpu", plugins=Float8Precision("rowwise", ignore_modules={"lm_head"}))
    """

    precision = "fp8-mixed"

    def __init__(
        self, recipe: Any = "tensorwise", *, ignore_modules: Iterable[str] | None = None, emulate: bool = False
    ) -> None:
        self.recipe = recipe
        self.ignore_modules = names_of(ignore_modules)
        config = self._make_config(emulate)
        self.gathers_in_float8 = bool(config.enable_fsdp_float8_all_gather) or recipe == "tensorwise"
        if config.enable_fsdp_float8_all_gather:  # `after_sharding` does it, and leaves parameters what they are
            config = dataclasses.replace(config, enable_fsdp_float8_all_gather=False)
        self.config = config
        self.emulate = bool(self.config.emulate)
        self._module: nn.Module | None = None
        self._context: ReusableAutocast | None = None

    @property
    def _torchao(self) -> Any:  # a module can't be sent to other processes
        return require("torchao.float8", extra="float8", for_="precision='fp8-mixed'")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Exchange the linear layers that float8 can compute; parameters stay the same objects.

        Args:
            module: The user's module.

        Returns:
            The module; another one only if it is a linear layer itself.

        Raises:
            MisconfigurationException: There is no GPU, and float8 is not emulated.
        """
        if not self.emulate and not torch.cuda.is_available():
            raise MisconfigurationException(_no_float8("this machine has no GPU that torch can use"))
        unmatched_names_warned(module, self.ignore_modules, setting="Float8Precision(ignore_modules=...)")
        linears = layers_of_kind(module, nn.Linear, self.ignore_modules, may_share=True)
        suited = {layer: name for name, layer in linears if _has_suited_shape(layer)}
        converted: Any = module
        if suited:
            converted = self._torchao.convert_to_float8_training(
                module, module_filter_fn=lambda layer, _: layer in suited, config=self.config
            )
            for layer, name in suited.items():
                made = hand_over(layer, converted.get_submodule(name))
                if self.emulate:
                    made.register_forward_pre_hook(_cast_as_autocast)
        elif not self._is_converted(module):
            rank_zero_warn(
                f"`precision='fp8-mixed'` finds no layer to compute in float8 in `{type(module).__name__}`: none is an"
                f" `nn.Linear` with `in_features` and `out_features` divisible by {_DIVISOR}. All is computed as with"
                " 'bf16-mixed'; choose that, or make the layers larger."
            )
        self._module, self._context = converted, None
        return converted  # type: ignore[no-any-return]  # torchao has no types

    def after_sharding(self, module: nn.Module) -> None:
        """Have weights gathered in float8, if their scaling allows for it.

        Args:
            module: The module; in place.
        """
        if self.gathers_in_float8:
            gather_in_float8(module)

    def convert_output(self, data: Any) -> Any:
        """Convert the floating point tensors of an output to torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the autocast context for the device of the module; always the same object from the first step on.

        Raises:
            MisconfigurationException: That device has no float8, and it is not emulated.
        """
        if self._context is None:
            device = _device_of(self._module)
            if not self.emulate:
                _check_hardware(device)
            self._context = ReusableAutocast(device.type, torch.bfloat16, cache_enabled=False)
        return self._context

    def _make_config(self, emulate: bool) -> Any:
        kind = self._torchao.Float8LinearConfig
        if isinstance(self.recipe, kind):
            return dataclasses.replace(self.recipe, emulate=True) if emulate else self.recipe
        names = [name.value for name in self._torchao.Float8LinearRecipeName]
        if self.recipe not in names:
            raise ValueError(
                f"`Float8Precision(recipe={self.recipe!r})` is not known. Choose one of {', '.join(map(repr, names))},"
                " or pass a `torchao.float8.Float8LinearConfig`."
            )
        # padded: the number of rows of a batch need not be a multiple of 16
        return dataclasses.replace(kind.from_recipe_name(self.recipe), emulate=emulate, pad_inner_dim=True)

    def _is_converted(self, module: nn.Module) -> bool:
        linear = require("torchao.float8.float8_linear", extra="float8", for_="precision='fp8-mixed'").Float8Linear
        return any(isinstance(layer, linear) for layer in module.modules())


def _has_suited_shape(layer: nn.Linear) -> bool:
    return layer.in_features % _DIVISOR == 0 and layer.out_features % _DIVISOR == 0


def _cast_as_autocast(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The layers of torchao follow autocast on GPUs only; an emulation elsewhere shall see the same types."""
    device = args[0].device.type
    if torch.is_autocast_enabled(device):
        return (args[0].to(torch.get_autocast_dtype(device)), *args[1:])
    return args


def _device_of(module: nn.Module | None) -> torch.device:
    parameter = None if module is None else next(module.parameters(), None)
    if parameter is not None:
        return parameter.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_hardware(device: torch.device) -> None:
    if device.type != "cuda":
        raise MisconfigurationException(_no_float8(f"the module is on {str(device)!r}"))
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        has_float8 = properties.gcnArchName.startswith(("gfx94", "gfx95", "gfx12"))
    else:
        has_float8 = (properties.major, properties.minor) >= (8, 9)
    if not has_float8:
        raise MisconfigurationException(_no_float8(f"{properties.name!r} has no float8"))


def _no_float8(reason: str) -> str:
    return (
        f"`precision='fp8-mixed'` needs a GPU that multiplies in float8 (NVIDIA Ada, Hopper or newer, AMD MI300), but"
        f" {reason}. Choose `precision='bf16-mixed'`; to try what float8 does to the results, pass"
        " `plugins=Float8Precision(emulate=True)`."
    )
