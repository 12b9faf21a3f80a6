from __future__ import annotations

import pytest
import torch

from fulmen.utilities.available_flops import get_available_flops

CUDA = torch.device("cuda", 0)


def named(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: chip)


@pytest.mark.parametrize(
    ("chip", "dtype", "flops"),
    [
        ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312e12),
        ("NVIDIA A10", torch.float16, 125e12),
        ("NVIDIA H100 80GB HBM3", torch.int8, 1978.9e12),
        ("NVIDIA H100 PCIe", torch.float64, 25.6e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("Tesla V100-SXM2-16GB", torch.float16, 125e12),
        ("Tesla T4", torch.float32, 8.1e12),
        ("NVIDIA GH200 480GB", torch.bfloat16, 989.4e12),
        ("NVIDIA H20", torch.bfloat16, 148e12),
        ("NVIDIA GB200", torch.bfloat16, 2500e12),
        ("NVIDIA A10G", torch.float32, 35e12),
        ("NVIDIA RTX 6000 Ada Generation", torch.float16, 364.2e12),
        ("NVIDIA GeForce RTX 5090", torch.bfloat16, 209.5e12),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4e12),
    ],
)
def test_the_longest_name_that_fits_counts(chip, dtype, flops, monkeypatch):
    named(chip, monkeypatch)

    assert get_available_flops(CUDA, dtype) == int(flops)


def test_float32_counts_as_tf32_where_that_is_allowed(monkeypatch):
    named("NVIDIA A100-SXM4-40GB", monkeypatch)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    exact = get_available_flops(CUDA, torch.float32)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    rounded = get_available_flops(CUDA, torch.float32)
    named("Tesla T4", monkeypatch)

    assert (exact, rounded) == (19_500_000_000_000, 156_000_000_000_000)
    assert get_available_flops(CUDA, torch.float32) == 8_100_000_000_000


@pytest.mark.parametrize("chip", ["NVIDIA GeForce GTX 1080", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100X"])
def test_an_unknown_chip_warns(chip, monkeypatch):
    named(chip, monkeypatch)

    with pytest.warns(UserWarning, match="not known here"):
        assert get_available_flops(CUDA, torch.float16) is None


def test_a_type_without_a_fast_unit_warns(monkeypatch):
    named("Tesla T4", monkeypatch)

    with pytest.warns(UserWarning, match="with torch.bfloat16"):
        assert get_available_flops(CUDA, torch.bfloat16) is None


def test_a_cpu_has_no_number():
    assert get_available_flops(torch.device("cpu"), torch.float32) is None


def test_part_of_a_chip_is_not_taken_for_the_whole(monkeypatch):
    named("NVIDIA A100-SXM4-40GB MIG 1g.5gb", monkeypatch)

    with pytest.warns(UserWarning, match="not known here"):
        assert get_available_flops(CUDA, torch.float16) is None
