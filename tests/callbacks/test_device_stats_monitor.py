from __future__ import annotations

from typing import Any

import pytest
import torch

from fulmen.callbacks import DeviceStatsMonitor
from fulmen.loggers import CSVLogger
from fulmen.loggers.logger import Logger
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.digits_reader import Reader, loader, train

NAMES = {"cpu_percent", "cpu_swap_percent", "cpu_vm_percent"}


class Rows(Logger):
    """Keeps what it gets."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def steps(self, hook: str) -> list[int | None]:
        prefix = f"DeviceStatsMonitor.{hook}/"
        return [step for step, row in self.rows if {f"{prefix}{name}" for name in NAMES} == set(row)]


def test_load_of_the_machine_is_logged_around_the_batches_of_logged_steps(tmp_path):
    logger = Rows()
    trainer = train(
        tmp_path,
        DeviceStatsMonitor(),
        logger=logger,
        log_every_n_steps=4,
        val=loader(640, 960, shuffle=False),
        max_epochs=1,
    )
    trainer.test(Reader(), loader(640, 960, shuffle=False), verbose=False)

    assert logger.steps("on_train_batch_start") == logger.steps("on_train_batch_end") == [3, 7, 11, 15, 19]
    assert logger.steps("on_validation_batch_start") == logger.steps("on_validation_batch_end") == [19, 19]
    assert logger.steps("on_test_batch_start") == logger.steps("on_test_batch_end") == [20, 20]
    assert all(0 <= value <= 100 for step, row in logger.rows for name, value in row.items() if "cpu" in name)


def test_the_borders_of_an_accumulation_window_are_measured_once(tmp_path):
    logger = Rows()
    train(tmp_path, DeviceStatsMonitor(), logger=logger, log_every_n_steps=2, accumulate_grad_batches=5)

    assert logger.steps("on_train_batch_start") == logger.steps("on_train_batch_end") == [1, 3]


def test_rows_reach_a_file(tmp_path):
    trainer = train(tmp_path, DeviceStatsMonitor(), logger=CSVLogger(tmp_path), log_every_n_steps=10)

    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert "DeviceStatsMonitor.on_train_batch_end/cpu_percent" in text
    assert trainer.global_step == 20


def test_a_run_without_a_logger_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="needs a logger"):
        train(tmp_path, DeviceStatsMonitor())


def test_leaving_out_the_cpu_on_a_cpu_warns_that_nothing_is_left(tmp_path):
    logger = Rows()
    with pytest.warns(UserWarning, match="logs nothing"):
        train(tmp_path, DeviceStatsMonitor(cpu_stats=False), logger=logger, log_every_n_steps=1, limit_train_batches=2)

    assert all(not row for _, row in logger.rows)


@pytest.mark.gpu
@pytest.mark.parametrize("cpu_stats", [None, True])
def test_a_gpu_reports_its_memory(tmp_path, cpu_stats):
    logger = Rows()
    train(tmp_path, DeviceStatsMonitor(cpu_stats), logger=logger, accelerator="gpu", log_every_n_steps=1, max_steps=1)

    _, row = logger.rows[-1]
    assert row["DeviceStatsMonitor.on_train_batch_end/allocated_bytes.all.current"] > 0
    assert ("DeviceStatsMonitor.on_train_batch_end/cpu_percent" in row) is bool(cpu_stats)
    assert torch.cuda.is_available()


def test_a_setting_that_is_neither_on_nor_off_is_refused():
    with pytest.raises(MisconfigurationException, match="cpu_stats='yes'"):
        DeviceStatsMonitor(cpu_stats="yes")  # type: ignore[arg-type]  # the mistake
