"""Reading `devices=`."""

from __future__ import annotations

import pytest

from fulmen.accelerators.devices import parse_cpu_processes, parse_gpu_devices
from fulmen.utilities.exceptions import MisconfigurationException


@pytest.mark.parametrize(("devices", "expected"), [(1, 1), ("1", 1), (3, 3), (" 2 ", 2)])
def test_cpu_takes_a_positive_number(devices, expected):
    assert parse_cpu_processes(devices) == expected


@pytest.mark.parametrize("devices", [0, -1, "-1", "abc", "1,2", [0], (0, 1), 1.5, None, True])
def test_cpu_refuses_everything_else(devices):
    with pytest.raises(TypeError, match="number of processes"):
        parse_cpu_processes(devices)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        ("2", [0, 1]),
        ([2], [2]),
        ((3, 1), [3, 1]),
        ("3,", [3]),
        ("0, 2", [0, 2]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
    ],
)
def test_gpu_takes_counts_and_indices(devices, expected):
    assert parse_gpu_devices(devices, range(4), kind="CUDA") == expected


@pytest.mark.parametrize("devices", [5, [4], "4,", "0,7", [0, 0], "1,1", 0, "0", [], -2, "abc", "x,y"])
def test_gpu_refuses_what_is_not_there(devices):
    with pytest.raises(MisconfigurationException, match=r"`devices="):
        parse_gpu_devices(devices, range(4), kind="CUDA")


@pytest.mark.parametrize("devices", [True, 1.5, None, [0.0], [True], ["0"], {0: 1}])
def test_gpu_refuses_wrong_types(devices):
    with pytest.raises(TypeError, match=r"`devices="):
        parse_gpu_devices(devices, range(4), kind="CUDA")


def test_message_names_value_and_what_exists():
    with pytest.raises(MisconfigurationException) as caught:
        parse_gpu_devices([1, 9], range(2), kind="CUDA")

    assert "[9] do not exist" in str(caught.value)
    assert "[0, 1]" in str(caught.value)
