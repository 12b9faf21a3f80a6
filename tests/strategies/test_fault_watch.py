from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from fulmen.strategies.fault_report import Report, as_exception, is_consequence
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.utilities.exceptions import RankFailedError, SIGTERMException
from tests.distributed_harness import free_port, run_ranks


def watch_of_this_rank(port: int) -> FaultWatch:
    rank = int(os.environ["RANK"])
    watch = FaultWatch(address="127.0.0.1", port=port, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    watch.start()
    return watch


def fails_in_order(port: int):
    """Rank 1 fails by itself, the others because of it; then all start again."""
    rank = int(os.environ["RANK"])
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)  # type: ignore[attr-defined]
    watch = watch_of_this_rank(port)
    if rank == 1:
        error: Exception = ValueError("boom")
        store.set("failed", "")
    else:
        store.get("failed")
        error = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    culprit = watch.report(error)
    first = watch.first_report
    watch.stop()
    watch.start()
    again = watch.wait_for_report(0.5)
    watch.stop()
    if rank == 1:
        store.set("done", "")
    else:
        store.get("done")  # the store ends with this process
    return None if culprit is None else culprit.rank, first and first.text.splitlines()[-1], again


@pytest.mark.distributed
def test_first_report_wins_and_consequences_are_told_apart():
    results = run_ranks(fails_in_order, 2, free_port(), timeout=110)

    assert results == [(1, "ValueError: boom", None), (None, "ValueError: boom", None)]


def dies_or_watches(port: int, folder: Path):
    """Rank 1 ends without a word although a forked process still holds its connections."""
    rank = int(os.environ["RANK"])
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)  # type: ignore[attr-defined]
    watch = watch_of_this_rank(port)
    watch.release()
    if rank == 0:
        store.get("ready")
        while not watch.has_met(1):
            time.sleep(0.02)
        store.set("go", "")
        begin = time.monotonic()
        report = watch.wait_for_report(20)
        assert report is not None
        seen = report.rank, report.kind, time.monotonic() - begin
        (folder / "seen").write_text(json.dumps(seen))
        watch.stop()
        return
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    store.set("ready", "")
    store.get("go")
    os._exit(1)


@pytest.mark.distributed
def test_silent_death_is_noticed_although_a_forked_process_lives_on(tmp_path):
    with pytest.raises(RuntimeError, match="rank 1 ended without a result"):
        run_ranks(dies_or_watches, 2, free_port(), tmp_path, timeout=110)

    rank, kind, seconds = json.loads((tmp_path / "seen").read_text())
    assert (rank, kind) == (1, "death")
    assert seconds < 5


def test_nothing_happens_before_the_start_and_after_the_end():
    watch = FaultWatch(address="127.0.0.1", port=free_port(), rank=0, world_size=1)

    assert watch.report(ValueError("boom")) is None
    assert (watch.first_report, watch.is_running, FaultWatch.running()) == (None, False, None)


def test_one_watch_runs_at_a_time_and_gives_the_hook_back():
    hook = sys.excepthook
    watches = [FaultWatch(address="127.0.0.1", port=free_port(), rank=0, world_size=2) for _ in range(2)]
    for watch in watches:
        watch.start()

    assert [watch.is_running for watch in watches] == [False, True]
    assert FaultWatch.running() is watches[1]
    watches[1].stop()
    assert (FaultWatch.running(), sys.excepthook) == (None, hook)


def test_torchrun_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    watch = FaultWatch(address="127.0.0.1", port=free_port(), rank=0, world_size=1)
    watch.start()
    watch.report(ValueError("boom"))
    watch.stop()

    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == "ValueError: boom"
    assert message["extraInfo"]["py_callstack"].endswith("ValueError: boom")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("NCCL error in: ..., remote process exited or there was a network error"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (RankFailedError("Rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("boom"), False),
    ],
)
def test_errors_that_another_rank_caused_are_recognized(error, expected):
    assert is_consequence(error) is expected


def test_error_raised_from_a_consequence_is_one():
    error = ValueError("the step failed")
    error.__cause__ = RuntimeError("Connection closed by peer")

    assert is_consequence(error)


def test_report_ends_with_the_traceback():
    report = Report.of_error(ValueError("boom"), rank=3)

    assert report.message().startswith("Rank 3 (process ")
    assert report.message().endswith("ValueError: boom")


@pytest.mark.parametrize(
    ("report", "kind", "code"),
    [
        (Report.of_error(KeyboardInterrupt(), 1), SystemExit, 130),
        (Report.of_exit_code(-signal.SIGINT, 1, 7), SystemExit, 130),
        (Report.of_error(SIGTERMException(143), 1), SIGTERMException, 143),
    ],
)
def test_interrupted_rank_ends_the_others_as_if_they_were_interrupted(report, kind, code):
    error = as_exception(report)

    assert type(error) is kind
    assert error.code == code  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (Report.of_exit_code(-signal.SIGKILL, 1, 7), "SIGKILL"),
        (Report.of_exit_code(5, 1, 7), "exit code 5"),
        (Report.of_error(SystemExit(3), 1), r"sys\.exit\(3\)"),
    ],
)
def test_dead_rank_is_an_error_of_the_others(report, words):
    error = as_exception(report)

    assert isinstance(error, RankFailedError)
    assert error.rank == 1
    with pytest.raises(RankFailedError, match=words):
        raise error
