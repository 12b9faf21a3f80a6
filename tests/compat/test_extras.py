"""What only programs written for Lightning need."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fulmen import LightningModule
from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cpu import CPUAccelerator
from fulmen.accelerators.registry import AcceleratorNames
from fulmen.compat import argument_types, installed
from fulmen.compat.conversions import CONVERSION_DTYPES
from fulmen.compat.double_precision import LightningDoublePrecisionModule
from fulmen.compat.finite_loss import check_finite_loss
from fulmen.compat.gpu_ids import first_gpu, parse_gpu_ids
from fulmen.compat.lazy_load import lazy_load, materialize
from fulmen.compat.registration import call_register_accelerators, load_external_callbacks
from fulmen.engine.arguments import _read_precision as read_precision
from fulmen.utilities.tree import convert_to_tensors


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.zeros(1)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["x"]).sum()  # type: ignore[no-any-return]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


@pytest.mark.parametrize("loss", [None, torch.tensor(1.0), torch.ones(2)])
def test_a_finite_loss_is_fine(loss):
    check_finite_loss(loss)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_loss_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="The loss returned in `training_step` is"):
        check_finite_loss(torch.tensor([1.0, value]))


def test_the_double_precision_wrapper_runs_everything_in_64_bit():
    with pytest.deprecated_call(match="64-true"):
        wrapper = LightningDoublePrecisionModule(Net()).double()
    batch = {"x": torch.ones(3, 2), "n": torch.ones(1, dtype=torch.int64)}

    assert wrapper.dtype == wrapper.module.dtype == torch.float64
    assert wrapper(batch["x"]).dtype == torch.float64
    assert wrapper.training_step(batch, 0).dtype == torch.float64
    assert {name: value.dtype for name, value in wrapper.predict_step(batch, 0).items()} == {
        "x": torch.float64,
        "n": torch.int64,
    }
    assert torch.get_default_dtype() == torch.float32


def test_flags_are_true_for_what_is_installed():
    flags = {name: getattr(installed, name) for name in installed.__all__}

    assert all(type(flag) is bool for flag in flags.values())
    assert flags["TORCH_GREATER_EQUAL_2_8"]  # the least that this package runs with
    assert flags["TORCH_GREATER_EQUAL_2_2"]
    assert not flags["TORCH_LESS_EQUAL_2_6"]
    assert flags["PYTHON_GREATER_EQUAL_3_10_0"]


# ---- files of weights
def test_lazily_loaded_tensors_are_those_of_the_file(tmp_path):
    path = tmp_path / "weights.pt"
    saved: dict[str, Any] = {"weight": nn.Parameter(torch.arange(3.0)), "deep": [torch.ones(2)], "steps": 5}
    torch.save(saved, path)
    loaded = lazy_load(path)
    own = materialize(loaded)

    assert loaded["steps"] == own["steps"] == 5
    assert torch.equal(loaded["deep"][0], torch.ones(2))
    assert isinstance(own["weight"], nn.Parameter)
    assert torch.equal(own["weight"], saved["weight"])
    assert own["deep"][0].data_ptr() != loaded["deep"][0].data_ptr()


def test_a_file_that_is_not_there_cannot_be_loaded_lazily(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist or is not a file"):
        lazy_load(tmp_path)


# ---- registries
def _module_with(*classes):
    module = ModuleType("some_package")
    vars(module).update({cls.__name__: cls for cls in classes}, number=3)
    return module


def test_classes_of_a_module_enter_themselves(monkeypatch):
    class Chip(CPUAccelerator):
        @classmethod
        def register_accelerators(cls, accelerator_registry):
            accelerator_registry.register("chip", cls)

    class Silent(Accelerator):
        pass

    registry = AcceleratorNames()
    monkeypatch.setitem(sys.modules, "some_package", _module_with(Chip, Silent, Accelerator))
    call_register_accelerators(registry, "some_package")

    assert list(registry) == ["chip"]


def test_callbacks_of_installed_packages_are_made(tmp_path, monkeypatch):
    folder = tmp_path / "adds_callbacks-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: adds-callbacks\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[some.group]\none = adds_callbacks:one\nmany = adds_callbacks:many\n")
    (tmp_path / "adds_callbacks.py").write_text("def one(): return 1\ndef many(): return [2, 3]\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert sorted(load_external_callbacks("some.group")) == [1, 2, 3]
    assert load_external_callbacks("no.group") == []


# ---- arguments
def test_the_table_of_conversions_is_what_is_done():
    values = [True, 3, 0.5, np.array([1.0])]

    for value, (kind, convert) in zip(values, CONVERSION_DTYPES, strict=True):
        done = convert_to_tensors(value, torch.device("cpu"))
        assert type(value) is kind
        assert convert(value).dtype == done.dtype
        assert torch.equal(convert(value), done)


@pytest.mark.parametrize("nothing", [0, "0", []])
def test_no_gpus_are_no_list(nothing):
    assert parse_gpu_ids(nothing, include_cuda=True) is None


def test_gpus_are_selected_among_the_kinds_that_are_included(monkeypatch):
    monkeypatch.setattr("fulmen.accelerators.cuda.num_cuda_devices", lambda: 4)

    assert parse_gpu_ids("1, 3", include_cuda=True) == [1, 3]
    assert first_gpu(parse_gpu_ids([2, 1], include_cuda=True)) == 2
    assert first_gpu(None) is None
    with pytest.raises(ValueError, match="no kind of GPU is included"):
        parse_gpu_ids(2)
    with pytest.raises(TypeError, match="`gpus=None` selects no devices"):
        parse_gpu_ids(None)


def test_every_precision_of_the_type_is_accepted():
    for name in get_args(argument_types.PRECISION_INPUT_STR):
        assert read_precision(name, []) == name
    for name in (*get_args(argument_types.PRECISION_INPUT_STR_ALIAS), *get_args(argument_types.PRECISION_INPUT_INT)):
        assert read_precision(name, []) == argument_types.PRECISION_ALIASES[str(name)]
