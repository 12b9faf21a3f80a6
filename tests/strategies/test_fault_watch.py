from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from fulmen.strategies.fault_report import Report, as_exception, is_consequence
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.utilities.exceptions import RankFailedError, SIGTERMException
from tests.distributed_harness import free_port, run_ranks, run_script
from tests.support import PACKAGE_FOLDER


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


def comes_late(port: int):
    """Rank 0 has come to the end of its program, and its process ends soon, when rank 1 begins to watch."""
    rank = int(os.environ["RANK"])
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)  # type: ignore[attr-defined]
    if rank == 0:
        watch = watch_of_this_rank(port)
        store.get("ready")
        store.set("stopping", "")
        watch.stop()
        time.sleep(2)
        return None
    store.set("ready", "")
    store.get("stopping")
    time.sleep(1)
    watch = watch_of_this_rank(port)
    report = watch.wait_for_report(4)
    watch.stop()
    return report


@pytest.mark.distributed
def test_end_of_a_short_program_is_no_death_for_a_rank_that_begins_to_watch_later():
    assert run_ranks(comes_late, 2, free_port(), timeout=110) == [None, None]


def test_thread_has_ended_when_the_watch_has():
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]

    for _ in range(3):  # at different places of its search for rank 0, who never comes
        watch = FaultWatch(address="127.0.0.1", port=port, rank=1, world_size=2)
        watch.start()
        watch.accept(Report("death", 0, "", 0, 0.0, "so that it need not wait for rank 0"))
        watch.stop()
        names = [thread.name for thread in threading.enumerate()]
        assert "fulmen-fault-watch" not in names  # in native code at the end of Python it would be ended by SIGABRT
    del store


UNEVEN_STEPS = """
    import sys
    import torch
    from fulmen import Fabric
    from fulmen.strategies.fault_watch import FaultWatch

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    FaultWatch.running().backward_grace_s = 2.0
    model = torch.nn.Linear(2, 2)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(4 if fabric.global_rank == int(sys.argv[1]) else 3):
        fabric.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("who", [0, 1])
def test_rank_that_makes_more_steps_than_the_others_does_not_wait_for_ever(tmp_path, who):
    ended = run_script(
        UNEVEN_STEPS, str(who), cwd=tmp_path, env={"PYTHONPATH": str(PACKAGE_FOLDER.parent)}, timeout=100
    )

    assert ended.returncode != 0
    assert f"Its program came to an end while rank {who} still waits for it in a collective" in ended.stderr


SKIPPED_ON_ONE_RANK = """
    from fulmen import Trainer
    from fulmen.demos.boring_classes import BoringModel

    class Skipping(BoringModel):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 and self.trainer.global_rank == 1 else None

    Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    ).fit(Skipping())
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_epoch_that_one_rank_skips_is_an_error_that_names_it(tmp_path):
    ended = run_script(SKIPPED_ON_ONE_RANK, cwd=tmp_path, env={"PYTHONPATH": str(PACKAGE_FOLDER.parent)}, timeout=110)

    assert ended.returncode != 0
    assert "Rank 1 of 2 skipped the rest of epoch 0 at batch 2" in ended.stderr
    assert "It must return -1 on all ranks at the same batch" in ended.stderr


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
