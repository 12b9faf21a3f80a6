"""Metrics in a CSV file."""

import csv
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import yaml

from fulmen.loggers import CSVLogger, row_logger
from fulmen.loggers.csv_logs import ExperimentWriter
from fulmen.utilities.rank_zero import rank_zero_only


def metrics_file(logger):
    return Path(logger.log_dir) / "metrics.csv"


def rows_of(logger):
    with metrics_file(logger).open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_have_sorted_columns_with_step_among_them(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"z": 1.5, "a": 2}, step=3)
    logger.log_metrics({"b": 0.25}, step=4)
    logger.save()

    assert metrics_file(logger).read_text() == "a,b,step,z\n2,,3,1.5\n,0.25,4,\n"
    assert logger.experiment.metrics_keys == ["a", "b", "step", "z"]


def test_tensors_and_numpy_scalars_are_numbers(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"t": torch.tensor(0.5), "n": np.float64(0.25), "i": torch.tensor([3]), "x": float("nan")}, 0)
    logger.save()

    assert rows_of(logger) == [{"i": "3", "n": "0.25", "step": "0", "t": "0.5", "x": "nan"}]


def test_floats_keep_all_their_digits(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 0.1 + 0.2}, 0)
    logger.save()

    assert float(rows_of(logger)[0]["x"]) == 0.1 + 0.2


def test_value_with_several_elements_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one number per metric"):
        CSVLogger(tmp_path).log_metrics({"x": torch.ones(2)}, 0)


def test_prefix_is_put_in_front_of_metrics_only(tmp_path):
    logger = CSVLogger(tmp_path, prefix="run")
    logger.log_metrics({"x": 1.0}, 0)
    logger.save()

    assert rows_of(logger) == [{"run-x": "1.0", "step": "0"}]


def test_rows_without_step_are_numbered_across_flushes(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for _ in range(3):
        logger.log_metrics({"x": 1.0})
    logger.log_metrics({"x": 1.0}, step=10)
    logger.save()
    logger.log_metrics({"x": 1.0})
    logger.save()

    assert [row["step"] for row in rows_of(logger)] == ["0", "1", "2", "10", "11"]


def test_metric_called_step_is_the_step_if_none_is_given(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1.0, "step": 7})
    logger.log_metrics({"x": 1.0})
    logger.log_metrics({"x": 1.0, "step": 7}, step=9)
    logger.save()

    assert [row["step"] for row in rows_of(logger)] == ["7", "8", "9"]


def test_rows_are_buffered_until_enough_of_them(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_metrics({"x": 1.0}, 1)
    assert not metrics_file(logger).exists()

    logger.log_metrics({"x": 1.0}, 2)

    assert len(rows_of(logger)) == 3


def test_old_rows_are_written_with_the_next_one(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1.0}, 0)
    assert not metrics_file(logger).exists()

    now = time.monotonic() + row_logger._FOLLOW_S
    monkeypatch.setattr(time, "monotonic", lambda: now)
    logger.log_metrics({"x": 1.0}, 1)

    assert len(rows_of(logger)) == 2


@pytest.mark.parametrize("end", [lambda logger: logger.save(), lambda logger: logger.finalize("failed")])
def test_rows_are_written_at_the_end(tmp_path, end):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1.0}, 0)

    end(logger)

    assert len(rows_of(logger)) == 1


def test_known_metrics_are_appended_to_the_same_file(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1.0, "y": 1.0}, 0)
    logger.save()
    before = metrics_file(logger).stat().st_ino

    logger.log_metrics({"x": 2.0}, 1)
    logger.save()

    assert metrics_file(logger).stat().st_ino == before
    assert len(rows_of(logger)) == 2


def test_new_metric_rewrites_the_file_once_and_whole(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    inodes = set()
    for step in range(1, 5):
        logger.log_metrics({"acc": 0.5}, step)
        logger.save()
        inodes.add(metrics_file(logger).stat().st_ino)

    assert len(inodes) == 1
    assert metrics_file(logger).read_text().splitlines()[:3] == ["acc,loss,step", ",1.0,0", "0.5,,1"]
    assert len(rows_of(logger)) == 5
    assert os.listdir(logger.log_dir) == ["metrics.csv"]  # without hyperparameters, no file of them


def test_metrics_of_an_earlier_run_are_continued_with_a_warning(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"loss": 1.0}, 4)
    first.save()

    second = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match="holds the metrics of an earlier run.*Leave `version` out"):
        second.log_metrics({"loss": 2.0})
    second.log_metrics({"acc": 0.5})
    second.save()

    assert rows_of(second) == [
        {"acc": "", "loss": "1.0", "step": "4"},
        {"acc": "", "loss": "2.0", "step": "5"},
        {"acc": "0.5", "loss": "", "step": "6"},
    ]


def test_folder_with_other_files_only_gives_no_warning(tmp_path):
    (tmp_path / "lightning_logs" / "version_0" / "checkpoints").mkdir(parents=True)
    logger = CSVLogger(tmp_path, version=0)
    logger.log_metrics({"x": 1.0})
    logger.save()

    assert len(rows_of(logger)) == 1


def test_file_cut_off_inside_a_row_is_continued_on_a_new_line(tmp_path):
    (tmp_path / "metrics.csv").write_text("loss,step\n1.0,0\n2.")
    writer = ExperimentWriter(str(tmp_path))
    with pytest.warns(UserWarning, match="earlier run"):
        writer.log_metrics({"loss": 3.0})
    writer.save()

    assert (tmp_path / "metrics.csv").read_text() == "loss,step\n1.0,0\n2.\n3.0,1\n"


def test_hparams_are_collected_and_written_at_save(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_hyperparams({"layers": [1, 2]})
    logger.save()

    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1, "layers": [1, 2]}
    assert logger.experiment.hparams == {"lr": 0.1, "layers": [1, 2]}


def test_hparams_file_is_left_alone_while_they_do_not_change(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    file = Path(logger.log_dir) / "hparams.yaml"
    before = file.stat().st_mtime_ns
    logger.log_metrics({"x": 1.0})
    logger.save()

    assert file.stat().st_mtime_ns == before


def test_experiment_makes_the_folder(tmp_path):
    logger = CSVLogger(tmp_path, version="run")

    assert isinstance(logger.experiment, ExperimentWriter)
    assert logger.experiment is logger.experiment
    assert os.path.isdir(logger.log_dir)


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = CSVLogger(tmp_path, version=0)
    logger.log_metrics({"x": 1.0})
    logger.log_hyperparams({"lr": 0.1})
    logger.experiment.log_metrics({"x": 1.0})
    logger.save()

    assert os.listdir(tmp_path) == []


def test_logger_survives_pickling_and_goes_on_in_the_same_folder(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"x": 1.0})
    logger.save()
    other = pickle.loads(pickle.dumps(logger))
    other.log_metrics({"x": 2.0})
    other.save()

    assert [row["step"] for row in rows_of(logger)] == ["0", "1"]


def test_program_that_ends_without_finalize_loses_no_rows(tmp_path):
    code = (
        "import sys; from fulmen.loggers import CSVLogger\n"
        "logger = CSVLogger(sys.argv[1])\n"
        "logger.log_metrics({'x': 1.0})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text() == "step,x\n0,1.0\n"


def test_remote_folders_work_like_local_ones():
    root = "memory://csv-test"
    first = CSVLogger(root, name="exp")
    first.log_hyperparams({"lr": 0.1})
    first.log_metrics({"x": 1.0}, 0)
    first.save()
    first.log_metrics({"x": 2.0}, 1)
    first.log_metrics({"y": 2.0}, 2)
    first.save()
    second = CSVLogger(root, name="exp")

    filesystem = fsspec.filesystem("memory")
    text = filesystem.cat_file("/csv-test/exp/version_0/metrics.csv").decode()
    assert text == "step,x,y\n0,1.0,\n1,2.0,\n2,,2.0\n"
    assert filesystem.cat_file("/csv-test/exp/version_0/hparams.yaml") == b"lr: 0.1\n"
    assert second.version == 1
    filesystem.rm("/csv-test", recursive=True)


def test_row_with_its_share_of_writing_costs_less_than_six_times_its_repr(tmp_path):
    metrics = {f"metric_{index}": 0.1 * index for index in range(10)}
    logger = CSVLogger(tmp_path)
    logger.log_metrics(metrics, 0)

    def best_s(function):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            for step in range(300):
                function(step)
            times.append(time.perf_counter() - start)
        return min(times)

    ratio = best_s(lambda step: logger.log_metrics(metrics, step)) / best_s(lambda step: repr(metrics))

    assert ratio < 6
