"""TPUs, with a stand-in for `torch_xla`."""

from __future__ import annotations

import pytest
import torch

from fulmen.accelerators import AcceleratorRegistry, XLAAccelerator
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed
from tests import xla_stand_in

without_xla = pytest.mark.skipif(is_installed("torch_xla"), reason="`torch_xla` is installed")


@pytest.fixture
def tpus(monkeypatch):
    return xla_stand_in.install(monkeypatch)


@without_xla
def test_without_torch_xla_there_is_no_tpu():
    assert not XLAAccelerator.is_available()
    assert XLAAccelerator.auto_device_count() == 0


@without_xla
def test_without_torch_xla_the_extra_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"`XLAAccelerator` needs .* pip install 'fulmen\[xla\]'"):
        AcceleratorRegistry.get("tpu")


def test_torch_xla_without_tpus_is_not_available(monkeypatch):
    xla_stand_in.install(monkeypatch, chips=0)

    assert not XLAAccelerator.is_available()


@pytest.mark.usefixtures("tpus")
def test_tpus_are_counted():
    assert XLAAccelerator.is_available()
    assert XLAAccelerator.auto_device_count() == 4
    assert isinstance(AcceleratorRegistry.get("tpu"), XLAAccelerator)


@pytest.mark.usefixtures("tpus")
@pytest.mark.parametrize(
    ("devices", "parsed"),
    [(1, 1), ("1", 1), (4, 4), ("4", 4), (-1, 4), ([0], [0]), ([3], [3]), ((1,), [1]), ("2,", [2])],
)
def test_one_all_or_a_certain_device_can_be_chosen(devices, parsed):
    assert XLAAccelerator.parse_devices(devices) == parsed


@pytest.mark.usefixtures("tpus")
@pytest.mark.parametrize("devices", [0, 2, 5, -2, "2", [4], [0, 1], [], "0,1", "a", [True], "auto"])
def test_other_numbers_are_refused(devices):
    with pytest.raises(ValueError, match=r"`devices=.*` cannot be .* Pass"):
        XLAAccelerator.parse_devices(devices)


@pytest.mark.parametrize("devices", [None, 1.0, True, {1}])
def test_other_types_are_refused(devices):
    with pytest.raises(TypeError, match="for TPUs it must be an int"):
        XLAAccelerator.parse_devices(devices)


@without_xla
def test_one_device_may_be_asked_for_where_there_is_none():
    assert XLAAccelerator.parse_devices(1) == 1
    with pytest.raises(ValueError, match="cannot be chosen"):
        XLAAccelerator.parse_devices(-1)


def test_parallel_devices_are_xla_devices():
    assert XLAAccelerator.get_parallel_devices(2) == [torch.device("xla", 0), torch.device("xla", 1)]
    assert XLAAccelerator.get_parallel_devices([3]) == [torch.device("xla", 3)]


@pytest.mark.usefixtures("tpus")
def test_a_device_of_another_kind_is_refused():
    accelerator = XLAAccelerator()

    accelerator.setup_device(torch.device("xla", 0))
    with pytest.raises(MisconfigurationException, match="given the device `cpu`"):
        accelerator.setup_device(torch.device("cpu"))


@pytest.mark.usefixtures("tpus")
@pytest.mark.parametrize("device", [1, "xla:1", torch.device("xla", 1)])
def test_statistics_are_megabytes_of_memory(device):
    stats = XLAAccelerator().get_device_stats(device)

    assert stats == {"avg. free memory (MB)": 7.0, "avg. peak memory (MB)": 5.0}
