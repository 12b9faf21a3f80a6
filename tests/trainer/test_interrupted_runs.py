"""A run that is interrupted ends cleanly: everybody is told, the files are whole, and one can go on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from fulmen.trainer.states import TrainerStatus
from tests.support import quiet, run_python

BATCHES = 4

# how many workers are advised depends on the machine
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")


class Marker(Exception):
    """An error of the user's code."""


class Model(LightningModule):
    """Raises an error in a hook, at an epoch and batch."""

    def __init__(self, error: BaseException | None = None, hook: str = "training_step", at: tuple[int, int] = (1, 2)):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(2, 1)
        self.error, self.hook, self.at = error, hook, at
        self.seen: list[tuple[int, int]] = []

    def _maybe_raise(self, hook: str) -> None:
        if (
            self.error is not None
            and hook == self.hook
            and (self.current_epoch, self.trainer.fit_loop.batch_idx) >= self.at
        ):
            raise self.error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._maybe_raise("training_step")
        self.seen.append((self.current_epoch, batch_idx))
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._maybe_raise("on_train_batch_end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._maybe_raise("validation_step")

    def on_train_epoch_end(self) -> None:
        self._maybe_raise("on_train_epoch_end")

    def configure_optimizers(self) -> Any:
        self._maybe_raise("configure_optimizers")
        return torch.optim.Adam(self.parameters(), lr=0.1)


def data(num_workers: int = 0, *, shuffle: bool = True) -> DataLoader[Any]:
    numbers = torch.arange(4.0 * BATCHES).view(-1, 2)
    return DataLoader(TensorDataset(numbers), batch_size=2, shuffle=shuffle, num_workers=num_workers)


def val_data(num_workers: int = 0) -> DataLoader[Any]:
    return data(num_workers, shuffle=False)


class Witness(Callback):
    """Notes what it is told at the end."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.told.append(f"on_exception {type(exception).__name__}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.told.append("teardown")


class Rows(CSVLogger):
    """A CSV logger that notes how it was finished."""

    status = ""

    def finalize(self, status: str) -> None:
        self.status = status
        super().finalize(status)


def checkpoints(folder: Path) -> list[Path]:
    """The files in a folder; each must be a whole checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".csv", ".json"))
    for file in files:
        assert "state_dict" in torch.load(file)
    return files


# ---- Ctrl-C
def test_ctrl_c_tells_everybody_and_exits_with_130(tmp_path: Path) -> None:
    witness, logger = Witness(), Rows(tmp_path)
    trainer = Trainer(**quiet(tmp_path, max_epochs=3, callbacks=witness, logger=logger, log_every_n_steps=1))
    with pytest.raises(SystemExit) as caught:
        trainer.fit(Model(KeyboardInterrupt()), data(), val_data())

    assert caught.value.code == 130
    assert witness.told == ["on_exception KeyboardInterrupt", "teardown"]
    assert logger.status == "failed"
    assert (Path(logger.log_dir) / "metrics.csv").read_text().count("\n") == 1 + BATCHES + 2
    assert trainer.state.status == TrainerStatus.INTERRUPTED
    assert trainer.interrupted


def test_after_ctrl_c_the_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    def trainer(folder: str) -> Trainer:
        saver = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_last=True)
        return Trainer(**quiet(tmp_path, max_epochs=3, callbacks=saver, enable_checkpointing=True))

    torch.manual_seed(3)
    whole = Model()
    trainer("whole").fit(whole, data(), val_data())
    torch.manual_seed(3)
    with pytest.raises(SystemExit):
        trainer("parts").fit(Model(KeyboardInterrupt()), data(), val_data())
    rest = Model()
    trainer("parts").fit(rest, data(), val_data(), ckpt_path="last")

    assert checkpoints(tmp_path / "parts") != []
    assert rest.seen == whole.seen[BATCHES + 2 :]
    assert torch.equal(rest.layer.weight, whole.layer.weight)


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from fulmen import Callback, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger
from tests.trainer.test_interrupted_runs import Model, Rows, Witness, data, val_data

folder = Path(sys.argv[1])

class Slow(Model):
    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            print("training", flush=True)
        if self.global_step >= 2:
            time.sleep(0.02)
        return super().training_step(batch, batch_idx)

class Told(Witness):
    def teardown(self, trainer, pl_module, stage):
        super().teardown(trainer, pl_module, stage)
        (folder / "told.csv").write_text(" ".join(self.told) + " " + trainer.logger.status)

saver = ModelCheckpoint(folder / "saved", every_n_train_steps=1, save_last=True)
trainer = Trainer(accelerator="cpu", max_epochs=-1, callbacks=[saver, Told()], logger=Rows(folder),
                  enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
trainer.fit(Slow(), data(), val_data())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "code", "error"), [(signal.SIGINT, 130, "KeyboardInterrupt"), (signal.SIGTERM, 143, "SIGTERMException")]
)
def test_signal_ends_the_process_cleanly(number: signal.Signals, code: int, error: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()

    assert process.returncode == code, errors
    assert (tmp_path / "told.csv").read_text() == f"on_exception {error} teardown failed"
    assert "last.ckpt" in [path.name for path in checkpoints(tmp_path / "saved")]
    resumed = Model()
    last = tmp_path / "saved" / "last.ckpt"
    steps = torch.load(last)["global_step"] + 3
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_last=True)
    trainer = Trainer(**quiet(tmp_path, max_steps=steps, max_epochs=-1, callbacks=saver, enable_checkpointing=True))
    trainer.fit(resumed, data(), val_data(), ckpt_path=last)

    assert len(resumed.seen) == 3


# ---- errors of the user's code
HOOKS = ["configure_optimizers", "training_step", "on_train_batch_end", "validation_step", "on_train_epoch_end"]


@pytest.mark.parametrize("hook", HOOKS)
def test_after_an_error_the_trainer_can_be_used_again(hook: str, tmp_path: Path) -> None:
    witness = Witness()
    trainer = Trainer(**quiet(tmp_path, max_epochs=2, callbacks=witness, num_sanity_val_steps=0))
    with pytest.raises(Marker):
        trainer.fit(Model(Marker(), hook, at=(0, 0)), data(), val_data())
    told = list(witness.told)
    model = Model()
    trainer.fit(model, data(), val_data())

    assert told == ["on_exception Marker", "teardown"]
    assert trainer.state.status == TrainerStatus.FINISHED
    assert model.seen[-2 * BATCHES :] == [(epoch, batch) for epoch in range(2) for batch in range(BATCHES)]
    assert trainer.validate(model, val_data(), verbose=False) == [{}]


def test_error_in_on_exception_does_not_hide_the_first(tmp_path: Path) -> None:
    class Clumsy(Witness):
        def on_exception(self, *_: Any) -> None:
            raise OverflowError("second")

    witness = Clumsy()
    trainer = Trainer(**quiet(tmp_path, callbacks=witness))
    with pytest.warns(UserWarning, match="OverflowError: second"), pytest.raises(Marker):
        trainer.fit(Model(Marker(), at=(0, 1)), data(), val_data())

    assert witness.told == ["teardown"]


def test_error_leaves_no_worker_processes(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path))
    with pytest.raises(Marker) as caught:  # a notebook, too, keeps the traceback and with it the loops' locals
        trainer.fit(Model(Marker(), at=(0, 1)), data(num_workers=1), val_data(num_workers=1))

    assert caught.tb is not None
    assert multiprocessing.active_children() == []


class DyingWorker(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_worker_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    witness = Witness()
    trainer = Trainer(**quiet(tmp_path, callbacks=witness))
    with pytest.raises(RuntimeError, match="worker"):
        trainer.fit(Model(), DataLoader(DyingWorker(), num_workers=1), val_data())

    assert witness.told == ["on_exception RuntimeError", "teardown"]


# ---- a disk that cannot be written
def test_full_disk_is_explained_and_earlier_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, iter(range(100))

    def full_after_the_first_file(descriptor: int) -> None:
        if next(calls) >= 2:  # the first file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_the_first_file)
    witness, saver = Witness(), ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    trainer = Trainer(**quiet(tmp_path, max_epochs=3, callbacks=[witness, saver], enable_checkpointing=True))
    with pytest.raises(OSError, match="No space left") as caught:
        trainer.fit(Model(), data(), val_data())

    assert caught.value.errno == errno.ENOSPC
    assert "epoch=1-step=8.ckpt" in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "saved")] == ["epoch=0-step=4.ckpt"]
    assert witness.told == ["on_exception OSError", "teardown"]


LIMITED = """
import resource, sys
from pathlib import Path
from fulmen import Trainer
from fulmen.callbacks import ModelCheckpoint
from tests.trainer.test_interrupted_runs import Model, data, val_data

class Limited(Model):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

folder = Path(sys.argv[1])
saver = ModelCheckpoint(folder, save_top_k=1, monitor="loss", mode="min", save_last=True)
Trainer(accelerator="cpu", max_epochs=3, callbacks=saver, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder).fit(Limited(), data(), val_data())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_file_that_cannot_grow_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    done = run_python("-W", "ignore", "-c", LIMITED, str(tmp_path))

    assert done.returncode == 1
    assert "OSError: [Errno 27]" in done.stderr
    assert str(tmp_path) in done.stderr.strip().splitlines()[-1]
    assert {path.name for path in checkpoints(tmp_path)} == {"epoch=0-step=4.ckpt", "last.ckpt"}


def test_ctrl_c_while_saving_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(Model(), data(), val_data())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    before = (tmp_path / "model.ckpt").read_bytes()

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(tmp_path / "model.ckpt")

    assert checkpoints(tmp_path) == [tmp_path / "model.ckpt"]
    assert (tmp_path / "model.ckpt").read_bytes() == before


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o500)
    yield folder
    folder.chmod(0o700)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_reported_before_training(read_only: Path, tmp_path: Path) -> None:
    model, saver = Model(), ModelCheckpoint(read_only)
    trainer = Trainer(**quiet(tmp_path, callbacks=saver, enable_checkpointing=True))
    with pytest.raises(PermissionError, match="read_only"):
        trainer.fit(model, data(), val_data())

    assert model.seen == []


def test_folder_below_a_file_is_reported_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model, saver = Model(), ModelCheckpoint(tmp_path / "file" / "saved")
    trainer = Trainer(**quiet(tmp_path, callbacks=saver, enable_checkpointing=True))
    with pytest.raises(OSError, match="file"):
        trainer.fit(model, data(), val_data())

    assert model.seen == []
