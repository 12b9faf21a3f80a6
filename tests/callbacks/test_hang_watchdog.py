from __future__ import annotations

import os
import pickle
import re
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from fulmen import Trainer
from fulmen.callbacks import HangWatchdog
from fulmen.demos.boring_classes import BoringModel
from fulmen.utilities.exceptions import MisconfigurationException
from tests.distributed_harness import run_script
from tests.support import PACKAGE_FOLDER, quiet

SCRIPT = Path(__file__).with_name("hanging_script.py")


def run(how: str, who: int, devices: int, action: str, strategy: str, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = (how, str(who), str(devices), action, strategy, *more)
    return run_script(SCRIPT, *arguments, env={"PYTHONPATH": str(PACKAGE_FOLDER.parent)}, timeout=115)


def test_run_that_stands_still_is_shown_and_ended():
    ended = run("sleep", 0, 1, "abort", "auto")

    assert ended.returncode == 1
    assert re.search(r"train, epoch 0, batch 3, in `training_step`, no progress for \d", ended.stderr)
    assert re.search(r"> .*hanging_script\.py:\d+ in `stand_still`: time\.sleep\(1000\)", ended.stderr)
    assert re.search(r"It is in `stand_still` at hanging_script\.py:\d+\.$", ended.stderr.rstrip())


@pytest.mark.slow
def test_run_that_only_takes_long_goes_on_and_says_so():
    ended = run("for_a_while", 0, 1, "report", "auto")

    assert ended.returncode == 0
    assert "No progress for more than 1.5 s" in ended.stderr
    assert re.search(r"Goes on, after \d+ s without progress", ended.stderr)


@pytest.mark.slow
def test_locked_interpreter_is_shown_and_ended_by_native_code():
    ended = run("locked", 0, 1, "abort", "auto")

    assert ended.returncode == 1
    assert re.search(r"hanging_script\.py\", line \d+ in stand_still", ended.stderr)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(("how", "strategy"), [("sleep", "ddp"), ("loop", "ddp_spawn")])
def test_rank_that_differs_is_named_and_all_end(how, strategy, who):
    ended = run(how, who, 2, "abort", strategy)

    other = 1 - who
    verdict = rf"Rank {who} is in `stand_still` at hanging_script\.py:\d+, while rank {other} is in backward"
    assert ended.returncode == 1
    assert re.search(verdict, ended.stderr.rstrip().splitlines()[-1])
    assert ended.stderr.count(f"\n  rank {other} (process ") >= 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("who", [0, 1])
def test_rank_that_cannot_answer_is_named_with_its_stack(who):
    ended = run("locked", who, 2, "abort", "ddp")

    assert ended.returncode != 0
    assert f"rank {who}: does not answer" in ended.stderr
    assert re.search(rf"Rank {who} does not answer, while rank {1 - who} is in backward", ended.stderr)
    assert re.search(r"line \d+ in stand_still", ended.stderr)


@pytest.mark.slow
@pytest.mark.distributed
def test_fabric_loop_in_which_one_rank_saves_alone_is_shown(tmp_path):
    ended = run("save", 0, 2, "abort", "ddp", str(tmp_path / "model.ckpt"))

    assert ended.returncode == 1
    assert re.search(r"rank 0 .*epoch 0, batch 3, step 4, .*waits in `barrier`", ended.stderr)
    assert re.search(r"rank 1 .*is in backward", ended.stderr)
    assert re.search(r"> .*hanging_script\.py:\d+ in `save_on_one_rank`: fabric\.save", ended.stderr)


# ---- without a hang


class Noting(BoringModel):
    """Notes which threads run while it trains."""

    names: set[str] = set()  # noqa: RUF012 - read by the test

    def on_train_start(self):
        self.names.update(thread.name for thread in threading.enumerate())


def test_thread_is_there_while_the_run_is(tmp_path):
    watchdog = HangWatchdog(60)
    trainer = Trainer(**quiet(tmp_path, fast_dev_run=True, callbacks=watchdog))
    trainer.fit(Noting())
    trainer.validate(Noting())

    assert "fulmen-hang-watchdog" in Noting.names
    assert "fulmen-hang-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_error_ends_the_watch(tmp_path):
    class Failing(BoringModel):
        def on_train_batch_end(self, *args):
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        Trainer(**quiet(tmp_path, fast_dev_run=True, callbacks=HangWatchdog(60))).fit(Failing())

    assert "fulmen-hang-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_own_loop_is_watched_too(capfd):
    with HangWatchdog(0.4).watch() as loop:
        for batch_idx in range(6):
            loop.progress(epoch=2, batch_idx=batch_idx)
            time.sleep(0.15)  # together longer than the limit
        assert "No progress" not in capfd.readouterr().err
        time.sleep(0.9)

    error = capfd.readouterr().err
    assert f"process {os.getpid()}: epoch 2, batch 5, step 6, no progress for" in error
    assert "in `test_own_loop_is_watched_too`" in error


def test_copy_of_a_watchdog_that_runs_does_not_run():
    watchdog = HangWatchdog("00:00:01:00")
    copy = pickle.loads(pickle.dumps(watchdog))

    assert copy._timeout_s == 60.0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"timeout": 0}, MisconfigurationException, r"timeout=0.*above zero"),
        ({"timeout": "soon"}, MisconfigurationException, r"HangWatchdog\(timeout=\.\.\.\).*'soon'"),
        ({"timeout": True}, MisconfigurationException, "True"),
        ({"timeout": timedelta(seconds=1), "action": "kill"}, ValueError, r"action='kill'.*'report'.*'abort'"),
        ({"timeout": 1, "first_step_timeout": -1}, MisconfigurationException, "first_step_timeout=-1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        HangWatchdog(**arguments)
