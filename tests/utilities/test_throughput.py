"""Operations and rates."""

import pytest
import torch

from fulmen.utilities.throughput import Throughput, measure_flops


def test_the_operations_of_a_linear_layer_are_counted_on_the_meta_device():
    with torch.device("meta"):
        model = torch.nn.Linear(4, 3)
        batch = torch.randn(5, 4)

    assert measure_flops(model, lambda: model(batch)) == 2 * 5 * 4 * 3
    assert measure_flops(model, lambda: model(batch), lambda output: output.sum()) == 2 * 2 * 5 * 4 * 3


def filled(**arguments) -> Throughput:
    throughput = Throughput(window_size=3, **arguments)
    for step in range(1, 6):
        throughput.update(time=2.0 * step, batches=step, samples=4 * step, lengths=40 * step, flops=10)
    return throughput


def test_rates_come_when_the_window_is_full():
    throughput = Throughput(window_size=2)
    assert throughput.compute() == {}
    throughput.update(time=1.0, batches=1, samples=4)
    assert throughput.compute() == {"time": 1.0, "batches": 1, "samples": 4}
    throughput.update(time=1.5, batches=2, samples=8)

    assert throughput.compute() == {
        "time": 1.5,
        "batches": 2,
        "samples": 8,
        "device/batches_per_sec": 2.0,
        "device/samples_per_sec": 8.0,
    }


def test_items_operations_and_their_share_of_the_available_ones_are_given():
    rates = filled(available_flops=50, separator=":").compute()

    assert rates["lengths"] == 200
    assert rates["device:items_per_sec"] == 20.0
    assert rates["device:flops_per_sec"] == 5.0
    assert rates["device:mfu"] == 0.1
    assert "batches_per_sec" not in rates


def test_all_devices_together_are_given_for_more_than_one():
    rates = filled(world_size=4).compute()

    assert (rates["device/samples_per_sec"], rates["samples_per_sec"]) == (2.0, 8.0)
    assert rates["flops_per_sec"] == 20.0
    assert "device/mfu" not in rates


def test_reset_forgets():
    throughput = filled()
    throughput.reset()
    throughput.update(time=0.1, batches=1, samples=1)

    assert throughput.compute() == {"time": 0.1, "batches": 1, "samples": 1}


@pytest.mark.parametrize("reading", [{"time": 10.0}, {"batches": 5}, {"samples": 20}, {"lengths": 200}])
def test_values_that_do_not_grow_are_refused(reading):
    good = {"time": 12.0, "batches": 6, "samples": 24, "lengths": 240}

    with pytest.raises(ValueError, match="Expected the value to increase"):
        filled().update(**{**good, **reading})


def test_more_batches_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"samples \(1\) to be greater or equal than batches \(2\)"):
        Throughput().update(time=1.0, batches=2, samples=1)


def test_devices_that_work_on_one_batch_together_share_it_but_not_their_operations():
    rates = filled(world_size=4, data_parallel_size=2).compute()

    for name in ("batches_per_sec", "samples_per_sec", "items_per_sec"):
        assert rates[name] == 2 * rates[f"device/{name}"]
    assert rates["flops_per_sec"] == 4 * rates["device/flops_per_sec"]


@pytest.mark.parametrize(
    "arguments", [{"window_size": 1}, {"world_size": 0}, {"world_size": 2, "data_parallel_size": 3}]
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="Pass"):
        Throughput(**arguments)
