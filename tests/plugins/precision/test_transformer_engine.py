"""The exchange of layers, with a stand-in of the shape of NVIDIA's package."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.plugins.precision import TransformerEnginePrecision


class Settings:
    def __init__(self, **settings):
        self.settings = settings


class EngineLinear(nn.Module):
    bias: Any

    def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda"):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device)) if bias else None)

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class EngineLayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, device="cuda"):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(normalized_shape, device=device))
        self.bias = nn.Parameter(torch.empty(normalized_shape, device=device))

    def forward(self, x):
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@pytest.fixture(params=["autocast", "fp8_autocast"])
def engine(request, monkeypatch):
    """Newer versions of the package call their context `autocast`, older ones `fp8_autocast`."""
    package = ModuleType("transformer_engine.pytorch")
    package.entered = []  # type: ignore[attr-defined]  # the stand-in's own record

    @contextmanager
    def context(**settings):
        package.entered.append(settings)
        yield
        package.entered.pop()

    for kind in (EngineLinear, EngineLayerNorm):
        monkeypatch.setattr(kind, "__module__", "transformer_engine.pytorch.module")
    vars(package).update({"Linear": EngineLinear, "LayerNorm": EngineLayerNorm, request.param: context})
    recipes = ModuleType("transformer_engine.common.recipe")
    vars(recipes).update({"DelayedScaling": Settings, "Format": type("Format", (), {"HYBRID": "the hybrid format"})})
    for name in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, recipes.__name__, recipes)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return package


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 16), nn.LayerNorm(16, eps=1e-3), nn.Linear(16, 3), nn.LayerNorm(3, elementwise_affine=False)
    )


def kinds(module):
    return [type(layer).__name__ for layer in module]


def test_layers_of_suited_shape_are_exchanged_and_keep_their_parameters(engine):
    model = make()
    parameters = dict(model.named_parameters())
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))

    converted: Any = TransformerEnginePrecision(weights_dtype=torch.bfloat16).convert_module(model)

    assert kinds(converted) == ["EngineLinear", "EngineLayerNorm", "Linear", "LayerNorm"]
    assert all(parameters[name] is parameter for name, parameter in converted.named_parameters())
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
    assert converted[1].eps == 1e-3
    converted(torch.ones(8, 32, dtype=torch.bfloat16))
    assert calls == [1]


def test_a_module_that_is_a_linear_layer_itself_is_exchanged(engine):
    converted = TransformerEnginePrecision(weights_dtype=torch.float16).convert_module(nn.Linear(16, 16, bias=False))

    assert type(converted) is EngineLinear
    assert converted.bias is None


def test_nothing_is_exchanged_if_not_wanted_or_done_already(engine):
    own = nn.Sequential(EngineLinear(16, 16, device="cpu"), nn.Linear(16, 16))

    kept: Any = TransformerEnginePrecision(weights_dtype=torch.bfloat16, replace_layers=False).convert_module(make())
    as_it_was = TransformerEnginePrecision(weights_dtype=torch.bfloat16).convert_module(own)

    assert kinds(kept) == ["Linear", "LayerNorm", "Linear", "LayerNorm"]
    assert kept[0].weight.dtype == torch.bfloat16
    assert kinds(as_it_was) == ["EngineLinear", "Linear"]
    with pytest.warns(UserWarning, match="so none is exchanged"):
        TransformerEnginePrecision(weights_dtype=torch.bfloat16, replace_layers=True).convert_module(own)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # autocast for the GPU that is not there
def test_steps_run_in_the_context_of_the_engine_also_nested(engine):
    recipe = object()
    precision = TransformerEnginePrecision(
        weights_dtype=torch.bfloat16, recipe=recipe, fallback_compute_dtype=torch.float16
    )
    context = precision.train_step_context()

    for _ in range(2):
        with context, context:
            assert [set(settings.values()) for settings in engine.entered] == [{True, recipe}] * 2
            assert torch.get_default_dtype() == torch.bfloat16
            assert torch.get_autocast_dtype("cuda") == torch.float16

    assert precision.val_step_context() is context
    assert engine.entered == []
    assert torch.get_default_dtype() == torch.float32


def test_a_recipe_may_be_a_dictionary_which_stays_as_it_is(engine):
    settings: dict[str, Any] = {"fp8_format": "HYBRID", "amax_history_len": 4}

    precision = TransformerEnginePrecision(weights_dtype=torch.bfloat16, recipe=settings)

    recipe: Any = precision.recipe
    assert recipe.settings == {"fp8_format": "the hybrid format", "amax_history_len": 4}
    assert settings["fp8_format"] == "HYBRID"


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "transformer-engine"), (torch.float16, "transformer-engine-float16")]
)
def test_inputs_and_new_tensors_have_the_type_of_the_weights(engine, dtype, name):
    precision = TransformerEnginePrecision(weights_dtype=dtype)

    converted = precision.convert_input({"x": torch.ones(1), "y": torch.ones(1, dtype=torch.int64)})

    assert precision.precision == name
    assert precision.fallback_compute_dtype == dtype
    assert (converted["x"].dtype, converted["y"].dtype) == (dtype, torch.int64)
    assert precision.convert_output(converted["x"]).dtype == torch.float32
    for context in (precision.module_init_context(), precision.tensor_init_context()):
        with context:
            assert torch.ones(1).dtype == dtype


def test_weights_of_32_bit_are_refused(engine):
    with pytest.raises(ValueError, match=r"weights_dtype=torch.float32.*torch.bfloat16, torch.float16"):
        TransformerEnginePrecision(weights_dtype=torch.float32)


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fulmen\[transformer-engine\]'"):
        TransformerEnginePrecision(weights_dtype=torch.bfloat16)
