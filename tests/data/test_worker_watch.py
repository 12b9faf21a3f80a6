from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fulmen import Callback, Fabric, Trainer
from fulmen.data import worker_watch
from fulmen.data.worker_board import boards
from fulmen.data.worker_watch import open_watched
from fulmen.demos.boring_classes import BoringModel, RandomDataset
from fulmen.utilities.warnings import PossibleUserWarning
from tests.distributed_harness import run_script
from tests.support import PACKAGE_FOLDER, quiet

ROOT = PACKAGE_FOLDER.parents[1]


@pytest.fixture(autouse=True, scope="module")
def often():
    """Let the thread look often; one that is there already looks every few seconds."""
    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_watch, "_POLL_S", 0.1)
        wait_until(lambda: not watches(), 20)
        yield


class Faulty(Dataset[torch.Tensor]):
    """Something happens at one sample."""

    def __init__(self, how: str, at: int = 9, seconds: float = 1000.0) -> None:
        self.how, self.at, self.seconds = how, at, seconds

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at:
            getattr(self, self.how)()
        return torch.ones(32)

    def killed(self) -> None:
        time.sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def exits(self) -> None:
        os._exit(3)

    def exits_with_zero(self) -> None:
        os._exit(0)

    def crashes(self) -> None:
        ctypes.string_at(0)

    def raises(self) -> None:
        raise KeyError("bad sample")

    def sleeps(self) -> None:
        time.sleep(self.seconds)

    def locks(self) -> None:
        ctypes.PyDLL(None).sleep(int(self.seconds))


def loader_of(how: str, **changes: Any) -> DataLoader[torch.Tensor]:
    arguments: dict[str, Any] = {"batch_size": 2, "num_workers": 2, **changes}
    seconds = arguments.pop("seconds", 0.0 if how == "killed" else 1000.0)
    return DataLoader(Faulty(how, seconds=seconds), **arguments)


def good_loader() -> DataLoader[torch.Tensor]:
    return DataLoader(RandomDataset(32, 4), batch_size=2)


class TwoLoaders(BoringModel):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return None

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch.sum()


def message_of(run) -> str:
    with pytest.raises(Exception, match=r"(?i)worker") as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("killed", r"was ended by SIGKILL \(epoch 0, batch \d\).*out of memory"),
        pytest.param("exits", r"ended with exit code 3 \(epoch 0, batch \d\)", marks=pytest.mark.slow),
        pytest.param("exits_with_zero", r"ended with exit code 0 \(epoch 0, batch \d\)", marks=pytest.mark.slow),
        pytest.param("crashes", r"was ended by SIGSEGV \(epoch 0, batch \d\).*Native code", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stage", ["train", pytest.param("val", marks=pytest.mark.slow)])
def test_worker_that_dies_is_named_with_the_way_it_died(tmp_path, how, words, stage):
    trainer = Trainer(**quiet(tmp_path, num_sanity_val_steps=0))
    good, bad = good_loader(), loader_of(how)
    loaders = (bad, [good, good]) if stage == "train" else (good, [good, bad])

    text = message_of(lambda: trainer.fit(TwoLoaders(), *loaders))

    name = "train dataloader" if stage == "train" else "val dataloader 1"
    assert re.search(rf"Worker 0 \(pid \d+\) of the {name} {words}", text)


def test_a_worker_that_dies_while_a_run_is_taken_down_disturbs_nothing(tmp_path, caplog):
    before = signal.getsignal(signal.SIGTERM)

    class Fails(BoringModel):
        def training_step(self, batch, batch_idx):
            raise ValueError("wrong from the start")

        def on_exception(self, error):
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)  # torch's handler raises here, or wherever else this process is

    class AtException(Callback):
        def on_exception(self, trainer, pl_module, exception):
            pl_module.on_exception(exception)

    trainer = Trainer(**quiet(tmp_path, callbacks=[AtException()]))
    with pytest.raises(ValueError, match="wrong from the start"):
        trainer.fit(Fails(), loader_of("sleeps", seconds=30.0))

    assert not [record for record in caplog.records if "While cleaning up" in record.getMessage()]
    assert signal.getsignal(signal.SIGTERM) is before
    assert multiprocessing.active_children() == []


def test_error_in_a_worker_keeps_its_type_and_names_loader_batch_and_samples(tmp_path):
    trainer = Trainer(**quiet(tmp_path))
    good = good_loader()

    with pytest.raises(KeyError) as caught:
        trainer.predict(TwoLoaders(), [good, loader_of("raises")])

    assert multiprocessing.active_children() == []  # though the error is kept
    lines = str(caught.value).splitlines()
    assert re.fullmatch(r"Worker 0 \(pid \d+\) of the predict dataloader 1 failed \(epoch 0, batch 5\)\.", lines[0])
    assert re.fullmatch(
        r"Caught KeyError in .* process 0 \(pid \d+\), which loaded the dataset indices \[8, 9\].", lines[1]
    )
    assert lines[-1] == "KeyError: 'bad sample'"


def test_fabric_names_the_worker_too():
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader_of("raises"))

    text = message_of(lambda: list(loader))

    assert re.match(r"Worker 0 \(pid \d+\) of the dataloader over `Faulty` failed \(batch \d\)\.", text)


def test_iteration_can_go_on_after_a_sample_that_failed():
    batches = iter(Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader_of("raises")))
    before = [next(batches) for _ in range(4)]
    with pytest.raises(KeyError):
        next(batches)

    assert (len(before), len(list(batches))) == (4, 3)


def test_workers_end_with_the_error_and_the_iterator_not_when_garbage_is_collected():
    before = {child.pid for child in multiprocessing.active_children()}
    batches = iter(Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader_of("raises")))
    pids = {child.pid for child in multiprocessing.active_children()} - before
    with pytest.raises(KeyError) as caught:
        list(batches)
    del batches, caught

    assert pids

    assert not pids & {child.pid for child in multiprocessing.active_children()}


@pytest.mark.slow
def test_last_samples_of_a_killed_worker_are_told(tmp_path):
    text = message_of(lambda: Trainer(**quiet(tmp_path)).predict(TwoLoaders(), loader_of("killed", seconds=2.5)))

    assert "loading batch 4 (dataset indices [8, 9])" in text
    assert "test_worker_watch.py" in text


# ---- hanging workers


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker_watch, "WAIT_S", 1.2)


def test_long_wait_is_reported_with_what_each_worker_does(tmp_path, impatient):
    loader = loader_of("sleeps", seconds=3)

    with pytest.warns(PossibleUserWarning, match=r"Worker 0 of the predict dataloader has not finished") as caught:
        Trainer(**quiet(tmp_path)).predict(TwoLoaders(), loader)

    assert len(caught) <= 2  # the next one comes after twice the time
    text = str(caught[0].message)
    assert re.search(r"worker 0 \(pid \d+\), whose batch comes next: alive, loading batch 4", text)
    assert "(dataset indices [8, 9])" in text
    assert re.search(r"test_worker_watch\.py:\d+ in `sleeps`", text)
    assert re.search(r"worker 1 \(pid \d+\): alive, waits for work", text)


def test_slow_loading_is_no_reason_to_warn(impatient):
    loader = DataLoader(SlowDataset(), num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        assert len(list(open_watched(loader))) == 8


class SlowDataset(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        time.sleep(0.2)
        return index


@pytest.mark.slow
def test_worker_whose_interpreter_is_locked_is_told_from_one_that_sleeps(impatient, monkeypatch, capfd):
    monkeypatch.setattr(worker_watch, "WAIT_S", 7.0)
    with pytest.warns(PossibleUserWarning, match="its Python has not run for"):
        list(open_watched(loader_of("locks", seconds=10)))

    assert "in locks" in capfd.readouterr().err  # its stack, printed by native code


@pytest.mark.slow
def test_timeout_of_the_user_is_respected_and_explained(tmp_path):
    text = message_of(lambda: Trainer(**quiet(tmp_path)).predict(TwoLoaders(), loader_of("sleeps", timeout=3)))

    assert text.startswith("DataLoader timed out after 3 seconds")
    assert "whose batch comes next: alive, loading batch 4 (dataset indices [8, 9])" in text
    assert "took longer than the `timeout` of the `DataLoader` (epoch 0, batch 4)" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
def test_workers_of_every_pass_of_a_stateful_dataloader_are_watched():
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")
    loader = torchdata.StatefulDataLoader(RandomDataset(32, 4), num_workers=1)
    for _ in range(2):
        batches: Any = open_watched(loader)

        assert boards()[0].pids == [worker.pid for worker in batches._workers]
        assert len(list(batches)) == 4


# ---- nothing stays


def test_own_init_function_is_called_and_stays_in_place(tmp_path):
    loader = loader_of("raises", worker_init_fn=Noting(tmp_path), batch_size=1, sampler=range(4))

    list(open_watched(loader))

    assert isinstance(loader.worker_init_fn, Noting)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]


class Noting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, worker_id: int) -> None:
        (self.folder / str(worker_id)).touch()


@pytest.mark.slow
def test_workers_that_are_spawned_are_watched_as_well():
    text = message_of(
        lambda: list(
            Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader_of("raises", multiprocessing_context="spawn"))
        )
    )

    assert "which loaded the dataset indices [8, 9]" in text


def test_thread_is_there_only_while_there_are_workers():
    wait_until(lambda: not watches(), 20)
    assert not worker_watch._watchers
    list(open_watched(good_loader()))
    assert not watches()
    batches = open_watched(loader_of("raises"))
    assert watches()
    del batches
    wait_until(lambda: not watches(), 20)


def watches() -> bool:
    return any(thread.name == "fulmen-data-watch" for thread in threading.enumerate())


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        gc.collect()  # errors of other tests
        time.sleep(0.05)


HANGING_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from fulmen.data.worker_watch import open_watched

class Hanging(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        Path(sys.argv[2], str(os.getpid())).touch()
        time.sleep(1000)

batches = open_watched(DataLoader(Hanging(), num_workers=2))
while len(os.listdir(sys.argv[2])) < 2:
    time.sleep(0.05)
how = sys.argv[1]
if how == "exit":
    sys.exit(3)
if how == "error":
    raise ValueError("boom")
os.kill(os.getpid(), getattr(signal, how))
time.sleep(100)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "how", ["SIGKILL", *(pytest.param(each, marks=pytest.mark.slow) for each in ("exit", "error", "SIGTERM", "SIGINT"))]
)
def test_no_worker_outlives_the_main_process(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(HANGING_SCRIPT)
    (tmp_path / "pids").mkdir()

    subprocess.run(
        [sys.executable, script, how, tmp_path / "pids"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        timeout=100,
        check=False,
    )

    pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_alive, pids)), 5)


@pytest.mark.slow
@pytest.mark.distributed
def test_on_two_ranks_the_worker_of_the_rank_that_fails_is_named_last(tmp_path):
    ended = run_script(
        f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        from torch.utils.data import DataLoader
        from fulmen import Trainer
        from tests.data.test_worker_watch import Faulty, TwoLoaders

        class Model(TwoLoaders):
            def train_dataloader(self):
                return DataLoader(Faulty("killed", at=9, seconds=0), batch_size=2, num_workers=1)

        trainer = Trainer(
            max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        )
        trainer.fit(Model())
        """,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src")},
        timeout=110,
    )

    assert ended.returncode != 0
    assert re.search(
        r"Worker 0 \(pid \d+\) of the train dataloader was ended by SIGKILL \(epoch 0", ended.stderr[-1500:]
    )
