from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fulmen.callbacks import ThroughputMonitor
from fulmen.callbacks import throughput_monitor as module_under_test
from fulmen.loggers import CSVLogger
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.digits_reader import Reader, loader, rows_of, stopped_by_signal, train

# products of a batch of one: forward, the gradients of both weights, the gradient of the hidden layer
FORWARD = 2 * (64 * 16 + 16 * 10)
TRAINING = FORWARD + FORWARD + 2 * 16 * 10


class Clock:
    """Stands in for the module `time`: half a second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module_under_test, "time", clock)
    return clock


def size(batch: Any) -> int:
    return len(batch[0])


def monitor(**kwargs: Any) -> ThroughputMonitor:
    return ThroughputMonitor(size, **{"window_size": 3, **kwargs})


def test_rates_and_the_share_of_the_peak_follow_from_the_clock(tmp_path, clock):
    callback = monitor(length_fn=lambda batch: batch[0].numel(), available_flops=1e6)
    trainer = train(tmp_path, callback, logger=CSVLogger(tmp_path), log_every_n_steps=2)

    assert [step for step, _ in rows_of(trainer, "train/time")] == list(range(1, 20, 2))
    last = {name: rows_of(trainer, f"train/{name}")[-1][1] for name in ("batches", "samples", "lengths", "time")}
    assert last == {"batches": 20, "samples": 640, "lengths": 40960, "time": 10.0}
    assert rows_of(trainer, "train/device/batches_per_sec")[0] == (3, 2.0)
    assert rows_of(trainer, "train/device/samples_per_sec")[-1][1] == 64.0
    assert rows_of(trainer, "train/device/items_per_sec")[-1][1] == 4096.0
    assert rows_of(trainer, "train/device/flops_per_sec")[-1][1] == 64 * TRAINING
    assert rows_of(trainer, "train/device/mfu")[-1][1] == pytest.approx(64 * TRAINING / 1e6)


def test_a_smaller_last_batch_has_fewer_operations(tmp_path, clock):
    callback = monitor(window_size=2)
    trainer = train(tmp_path, callback, logger=CSVLogger(tmp_path), data=loader(0, 40), log_every_n_steps=1)

    assert rows_of(trainer, "train/device/flops_per_sec") == [(1, 2.0 * 8 * TRAINING)]


def test_the_number_of_the_module_counts_before_what_is_counted(tmp_path, clock, monkeypatch):
    class Knows(Reader):
        @property
        def flops_per_batch(self) -> int:
            return 300 if self.training else 100

    monkeypatch.delattr(FlopCounterMode, "__enter__")  # would fail if it counted
    trainer = train(
        tmp_path, monitor(), model=Knows(), val=loader(640, 960, shuffle=False), logger=CSVLogger(tmp_path),
        log_every_n_steps=5,
    )  # fmt: skip

    assert rows_of(trainer, "train/device/flops_per_sec")[-1][1] == 600.0
    assert rows_of(trainer, "validate/device/flops_per_sec")[-1][1] == 200.0


def test_validation_has_rates_of_its_own_and_does_not_count_as_training(tmp_path, clock):
    callback = monitor(window_size=2)
    trainer = train(
        tmp_path, callback, val=loader(640, 960, shuffle=False), logger=CSVLogger(tmp_path), max_epochs=2,
        val_check_interval=10, log_every_n_steps=5,
    )  # fmt: skip

    assert rows_of(trainer, "train/time")[-1][1] == 20.0  # forty batches of half a second
    assert [step for step, _ in rows_of(trainer, "validate/batches")] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert {value for _, value in rows_of(trainer, "validate/batches")} == {5.0, 10.0}
    assert rows_of(trainer, "validate/device/flops_per_sec")[-1][1] == 64 * FORWARD


def test_testing_and_predicting_are_measured(tmp_path, clock):
    callback = monitor()
    trainer = train(tmp_path, callback, logger=CSVLogger(tmp_path), max_steps=1)
    trainer.test(Reader(), loader(640, 960, shuffle=False), verbose=False)
    trainer.predict(Reader(), loader(640, 960, shuffle=False))

    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert "test/device/samples_per_sec" in text
    assert "predict/device/flops_per_sec" in text


def test_counting_changes_nothing_in_training(tmp_path):
    (tmp_path / "plain").mkdir()
    plain = train(tmp_path / "plain")
    counted = train(tmp_path, monitor(), logger=CSVLogger(tmp_path))

    assert_same_weights(plain.lightning_module, counted.lightning_module)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_first_batch_that_fails_leaves_no_counter_behind(tmp_path):
    class Fails(Reader):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        train(tmp_path, monitor(), model=Fails(), logger=CSVLogger(tmp_path))

    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.slow
def test_a_compiled_module_without_a_number_gives_no_operations(tmp_path):
    model = Reader()
    model.net.compile(backend="eager")
    with pytest.warns(UserWarning, match="flops_per_batch"):
        trainer = train(tmp_path, monitor(), model=model, logger=CSVLogger(tmp_path), max_steps=10)

    assert "train/device/samples_per_sec" in trainer.history.names
    assert "train/device/flops_per_sec" not in trainer.history.names


def test_a_run_resumed_after_a_signal_goes_on_from_its_totals(tmp_path, clock):
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    settings: dict[str, Any] = {"val": loader(640, 960, shuffle=False), "max_epochs": 2}

    def run(folder: Any, ckpt_path: str | None) -> Any:
        trainer = train(folder, monitor(), logger=CSVLogger(folder), ckpt_path=ckpt_path, **settings)
        names = ("train/batches", "train/samples", "train/time", "validate/batches")
        return {name: rows_of(trainer, name)[-1] for name in names}

    path = stopped_by_signal(
        tmp_path / "part", monitor(), batch_idx=7, epoch=1, logger=CSVLogger(tmp_path / "part"), **settings
    )

    assert run(tmp_path / "part", path) == run(tmp_path / "whole", None)


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="window_size=1"):
        monitor(window_size=1)
    with pytest.raises(ValueError, match="window_size='x'"):
        monitor(window_size="x")
    with pytest.raises(ValueError, match="available_flops='x'"):
        monitor(available_flops="x")
    wrong: list[dict[str, Any]] = [{"batch_size_fn": 3}, {"batch_size_fn": size, "length_fn": 3}]
    for arguments in wrong:
        with pytest.raises(TypeError, match="_fn=3"):
            ThroughputMonitor(**arguments)
    with pytest.raises(TypeError, match="windowsize"):
        ThroughputMonitor(size, windowsize=3)
    with pytest.raises(MisconfigurationException, match="needs a logger"):
        train(tmp_path, monitor())


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock(tmp_path):
    trainer = train(tmp_path, monitor(), accelerator="gpu", logger=CSVLogger(tmp_path), max_epochs=3)

    times = [value for _, value in rows_of(trainer, "train/time")]
    assert times == sorted(times)
    assert 0 < times[-1] < 600
    assert rows_of(trainer, "train/device/flops_per_sec")[-1][1] > 0
