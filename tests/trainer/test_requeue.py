"""A run whose cluster takes the machine away; `tests/clusters/test_slurm.py` does the same with a real Slurm."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen import Trainer
from fulmen.demos import BoringModel
from fulmen.plugins.environments import SLURMEnvironment
from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from tests.engine.launched import set_environment, slurm
from tests.support import quiet

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")


class Cluster(SLURMEnvironment):
    """Notes which checkpoints are there when it is asked for a new place in the queue."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.found: list[list[str]] = []

    def requeue(self) -> bool:
        self.found.append(sorted(path.name for path in self.folder.glob("hpc_ckpt_*.ckpt")))
        return True


class Signalled(BoringModel):
    """Gets the signal of the cluster in a hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook
        self.num_steps = 0

    def _take(self, hook: str) -> None:
        if hook == self.hook:
            os.kill(os.getpid(), signal.SIGUSR1)

    def prepare_data(self) -> None:
        self._take("prepare_data")

    def setup(self, stage: str) -> None:
        self._take("setup")

    def on_fit_start(self) -> None:
        self._take("on_fit_start")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.num_steps += 1
        self._take("training_step")
        return super().training_step(batch, batch_idx)


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One task of a job; the handler of the signal afterwards is the one before."""
    set_environment(monkeypatch, slurm(rank=0, per_node=1), dict(os.environ))
    before = signal.getsignal(signal.SIGUSR1)
    yield
    after = signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)

    assert after is before


def trainer(folder: Path, cluster: Cluster, *plugins: Any) -> Trainer:
    return Trainer(**quiet(folder, max_epochs=1, limit_val_batches=0, plugins=[cluster, *plugins]))


@pytest.mark.parametrize("hook", ["prepare_data", "setup", "on_fit_start", "training_step"])
def test_signal_is_obeyed_after_the_first_step_wherever_it_came(hook: str, tmp_path: Path) -> None:
    cluster, model = Cluster(tmp_path), Signalled(hook)
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path, cluster).fit(model)

    assert caught.value.code == 128 + signal.SIGUSR1
    assert cluster.found == [["hpc_ckpt_1.ckpt"]]
    assert model.num_steps == 1


def test_an_error_before_the_loop_puts_the_handlers_back(tmp_path: Path) -> None:
    class Fails(BoringModel):
        def setup(self, stage: str) -> None:
            assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
            raise ValueError("no more of this")

    with pytest.raises(ValueError, match="no more of this"):
        trainer(tmp_path, Cluster(tmp_path)).fit(Fails())

    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_handler_that_a_hook_sets_stays_and_nothing_is_requeued(tmp_path: Path) -> None:
    received: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        received.append(signum)

    class Own(Signalled):
        def setup(self, stage: str) -> None:
            signal.signal(signal.SIGUSR1, handler)

    cluster = Cluster(tmp_path)
    trainer(tmp_path, cluster).fit(Own("training_step"))
    stayed = signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    assert stayed is handler
    assert set(received) == {signal.SIGUSR1}
    assert cluster.found == []


def test_the_machine_is_given_back_when_the_checkpoint_is_written(tmp_path: Path) -> None:
    class Slow(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            threading.Event().wait(0.3)
            super().save_checkpoint(*args, **kwargs)

    cluster = Cluster(tmp_path)
    with pytest.raises(SystemExit):
        trainer(tmp_path, cluster, AsyncCheckpointIO(Slow())).fit(Signalled("training_step"))

    assert cluster.found == [["hpc_ckpt_1.ckpt"]]
