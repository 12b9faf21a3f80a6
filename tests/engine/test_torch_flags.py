"""torch's switches."""

from __future__ import annotations

import os

import pytest
import torch

from fulmen.engine.torch_flags import set_torch_flags


@pytest.fixture(autouse=True)
def _restore_flags(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def test_nothing_asked_nothing_changed():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True

    set_torch_flags()

    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(("deterministic", "warn_only"), [(True, False), ("warn", True)])
def test_deterministic_sets_all_three_switches(deterministic, warn_only):
    torch.backends.cudnn.benchmark = True

    set_torch_flags(deterministic=deterministic)

    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_false_switches_off():
    set_torch_flags(deterministic=True)

    set_torch_flags(deterministic=False, benchmark=True)

    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_deterministic_with_benchmark_warns():
    with pytest.warns(UserWarning, match="contradict"):
        set_torch_flags(deterministic=True, benchmark=True)


def test_unknown_value_is_refused():
    with pytest.raises(ValueError, match="deterministic='always'"):
        set_torch_flags(deterministic="always")  # type: ignore[arg-type]  # that is the point
