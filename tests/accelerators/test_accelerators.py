"""The kinds of hardware, and their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fulmen.accelerators import (
    ACCELERATOR_REGISTRY,
    Accelerator,
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    find_usable_cuda_devices,
)
from fulmen.accelerators.cuda import get_nvidia_gpu_stats
from fulmen.accelerators.mps import get_device_stats
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class SpareAccelerator(CPUAccelerator):
    """Hardware of a user."""

    def __init__(self, speed: int = 1) -> None:
        self.speed = speed

    @staticmethod
    def name() -> str:
        return "spare"


@pytest.fixture
def spare_name():
    AcceleratorRegistry.register("spare", SpareAccelerator, description="a test", speed=3)
    yield "spare"
    AcceleratorRegistry.remove("spare")


def test_cpu_is_always_there():
    assert CPUAccelerator.is_available()
    assert CPUAccelerator.auto_device_count() == 1
    assert CPUAccelerator.get_parallel_devices(2) == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    ("accelerator", "device"),
    [(CPUAccelerator(), "cuda:0"), (CUDAAccelerator(), "cpu"), (MPSAccelerator(), "cpu")],
    ids=["cpu", "cuda", "mps"],
)
def test_a_device_of_another_kind_is_refused(accelerator, device):
    with pytest.raises(MisconfigurationException, match=f"given the device `{device}`"):
        accelerator.setup_device(torch.device(device))


def test_cpu_reports_load_or_says_what_is_missing():
    if not is_installed("psutil"):
        with pytest.raises(ModuleNotFoundError, match="psutil"):
            CPUAccelerator().get_device_stats("cpu")
        return

    stats = CPUAccelerator().get_device_stats("cpu")

    assert stats.keys() == {"cpu_vm_percent", "cpu_percent", "cpu_swap_percent"}


def test_accelerator_without_statistics_says_so():
    class Silent(CPUAccelerator):
        get_device_stats = Accelerator.get_device_stats

    with pytest.raises(NotImplementedError, match="Silent"):
        Silent().get_device_stats("cpu")


def test_registry_knows_the_built_in_accelerators():
    assert AcceleratorRegistry is ACCELERATOR_REGISTRY
    assert {"cpu", "cuda", "mps"} <= AcceleratorRegistry.available_accelerators()
    assert isinstance(AcceleratorRegistry.get("cpu"), CPUAccelerator)


def test_registered_accelerator_gets_its_arguments(spare_name):
    accelerator = AcceleratorRegistry.get(spare_name)

    assert (type(accelerator), accelerator.speed) == (SpareAccelerator, 3)
    assert AcceleratorRegistry[spare_name]["accelerator"] is SpareAccelerator


def test_unknown_name_raises_unless_a_default_is_given():
    assert AcceleratorRegistry.get("nothing", 4) == 4
    with pytest.raises(KeyError, match="nothing"):
        AcceleratorRegistry.get("nothing")


def test_a_name_is_not_taken_twice(spare_name):
    with pytest.raises(MisconfigurationException, match="taken"):
        AcceleratorRegistry.register(spare_name, SpareAccelerator)


def test_disable_mps_hides_the_gpu_of_a_mac(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert MPSAccelerator.is_available()

    monkeypatch.setenv("DISABLE_MPS", "1")

    assert not MPSAccelerator.is_available()


def test_mps_has_one_device():
    assert MPSAccelerator.get_parallel_devices(MPSAccelerator.parse_devices(1)) == [torch.device("mps", 0)]
    with pytest.raises(MisconfigurationException, match="do not exist"):
        MPSAccelerator.parse_devices(2)


def test_cuda_devices_are_those_that_are_visible(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert CUDAAccelerator.is_available()
    assert CUDAAccelerator.auto_device_count() == 2
    assert CUDAAccelerator.parse_devices(-1) == [0, 1]
    assert CUDAAccelerator.get_parallel_devices([1]) == [torch.device("cuda", 1)]


def test_cuda_device_order_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")

    CUDAAccelerator.set_nvidia_flags(local_rank=0)

    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_find_usable_cuda_devices_skips_busy_ones(monkeypatch):
    def allocate(*size, device):
        if device.index == 0:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "zeros", allocate)

    assert find_usable_cuda_devices(1) == [1]
    assert find_usable_cuda_devices() == [1, 2]
    assert find_usable_cuda_devices(0) == []
    with pytest.raises(RuntimeError, match="to be free"):
        find_usable_cuda_devices(3)
    with pytest.raises(ValueError, match="more GPUs than the 3"):
        find_usable_cuda_devices(4)


def test_find_usable_cuda_devices_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    with pytest.raises(ValueError, match="0 that are visible"):
        find_usable_cuda_devices()


def install_nvidia_smi(folder: Path, script: str, monkeypatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_nvidia_gpu_stats_are_asked_of_the_visible_gpu(tmp_path, monkeypatch):
    install_nvidia_smi(tmp_path, f'echo "$@" > {tmp_path}/asked; echo "10, 200, 300, 5, [N/A], 40, N/A"', monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")

    stats = get_nvidia_gpu_stats(torch.device("cuda", 1))

    assert stats == {
        "utilization.gpu (%)": 10.0,
        "memory.used (MB)": 200.0,
        "memory.free (MB)": 300.0,
        "utilization.memory (%)": 5.0,
        "fan.speed (%)": 0.0,
        "temperature.gpu (\N{DEGREE SIGN}C)": 40.0,
        "temperature.memory (\N{DEGREE SIGN}C)": 0.0,
    }
    assert "--id=5" in (tmp_path / "asked").read_text().split()


def test_nvidia_gpu_stats_say_what_is_wrong(tmp_path, monkeypatch):
    install_nvidia_smi(tmp_path, "echo 'No devices were found'; exit 6", monkeypatch)
    with pytest.raises(RuntimeError, match="No devices were found"):
        get_nvidia_gpu_stats(0)

    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="not on the search path"):
        get_nvidia_gpu_stats("cuda:0")


@pytest.mark.gpu
@needs_gpu
def test_nvidia_gpu_stats_are_those_of_the_machine():
    stats = get_nvidia_gpu_stats(torch.device("cuda"))

    assert stats["memory.used (MB)"] + stats["memory.free (MB)"] > 1000
    assert 0 < stats["temperature.gpu (\N{DEGREE SIGN}C)"] < 120


def test_mps_reports_load_or_says_what_is_missing():
    if not is_installed("psutil"):
        with pytest.raises(ModuleNotFoundError, match="psutil"):
            get_device_stats()
        return

    assert get_device_stats().keys() == {"M1_vm_percent", "M1_percent", "M1_swap_percent"}


@pytest.mark.gpu
@needs_gpu
def test_cuda_accelerator_sets_the_current_device():
    accelerator = CUDAAccelerator()

    accelerator.setup_device(torch.device("cuda", torch.cuda.device_count() - 1))
    current = torch.cuda.current_device()
    accelerator.setup_device(torch.device("cuda"))
    accelerator.teardown()

    assert current == torch.cuda.device_count() - 1
    assert "allocated_bytes.all.current" in accelerator.get_device_stats(torch.device("cuda", current))
    assert find_usable_cuda_devices(1) == [0]
