"""Runs that start at the same moment: none shares a folder or a file with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed_harness import run_ranks
from tests.support import run_python

_RUN = """
import json, multiprocessing, sys, warnings
import torch
from torch.utils.data import DataLoader, TensorDataset
from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.loggers import CSVLogger, TensorBoardLogger

warnings.simplefilter("ignore")
torch.set_num_threads(1)
kind, root, processes, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Model(LightningModule):
    def __init__(self, me):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def fit(root, me, **settings):
    logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}.get(kind, lambda _: False)(root)
    saver = ModelCheckpoint(save_last=kind == "none")
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=logger, callbacks=[saver], default_root_dir=root,
                      log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, **settings)
    trainer.fit(Model(me), DataLoader(TensorDataset(torch.ones(2, 1))))
    return [logger and logger.log_dir, saver.dirpath, saver.best_model_path, saver.last_model_path]

def run(number, barrier, results):
    for turn in range(rounds):
        barrier.wait()
        results.put(fit(root, f"{number}-{turn}"))

if kind == "tensorboard":
    import torch.utils.tensorboard
fit(root, "-", fast_dev_run=True)  # imports what is imported late, once
context = multiprocessing.get_context("fork")  # so that a start takes no time, and all come at the same moment
barrier, results = context.Barrier(processes), context.Queue()
started = [context.Process(target=run, args=(number, barrier, results), daemon=True) for number in range(processes)]
for each in started:
    each.start()
print(json.dumps([results.get(timeout=60) for _ in range(processes * rounds)]))
for each in started:
    each.join()
"""


def simultaneous(kind: str, root: Path, *, processes: int, rounds: int) -> list[list[str]]:
    """Return what each run of each process used, as (log folder, checkpoint folder, best file, last file)."""
    done = run_python("-c", _RUN, kind, str(root), str(processes), str(rounds))
    assert done.returncode == 0, done.stderr
    used: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return used


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_eight_simultaneous_starts_share_no_folder(tmp_path, kind):
    used = simultaneous(kind, tmp_path, processes=8, rounds=10)

    assert len(used) == 80
    for folders in list(zip(*used, strict=True))[:3]:  # of logs, of checkpoints, files
        assert len(set(folders)) == 80
    assert all(Path(saved).is_relative_to(logs) for logs, saved, _, _ in used)


@pytest.mark.slow
def test_eight_simultaneous_starts_in_one_folder_share_no_file(tmp_path):
    used = simultaneous("none", tmp_path, processes=8, rounds=10)
    files = [path for _, _, best, last in used for path in (best, last)]

    assert len(set(files)) == len(files) == 160
    assert sorted(map(str, (tmp_path / "checkpoints").iterdir())) == sorted(files)  # nothing else is left
    owners = [torch.load(path, weights_only=True)["hyper_parameters"]["me"] for path in files]
    assert owners == [owner for owner in owners[::2] for _ in range(2)]
    assert len(set(owners)) == 80


def fit_on_ranks(root: str) -> tuple[int | str | None, str | None, str | None]:
    from torch.utils.data import DataLoader

    from fulmen import Trainer
    from fulmen.callbacks import ModelCheckpoint
    from fulmen.demos.boring_classes import BoringModel, RandomDataset
    from fulmen.loggers import CSVLogger

    (Path(root) / "lightning_logs/version_6").mkdir(parents=True, exist_ok=True)
    logger, saver = CSVLogger(root), ModelCheckpoint(save_top_k=-1, every_n_train_steps=1)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=logger, callbacks=[saver],
        default_root_dir=root, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 8)))
    return logger.version, logger.log_dir, saver.best_model_path


@pytest.mark.slow
@pytest.mark.distributed
def test_all_ranks_are_told_the_folder_that_rank_zero_has_reserved(tmp_path):
    first, second = run_ranks(fit_on_ranks, 2, str(tmp_path), timeout=120)

    assert first == second
    assert first[0] == 7
    assert sorted(path.name for path in (tmp_path / "lightning_logs").iterdir()) == ["version_6", "version_7"]
