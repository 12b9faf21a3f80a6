from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.loggers import CSVLogger
from fulmen.loops.finite import LossWatch
from fulmen.loops.progress import FitProgress
from tests.support import quiet


class Line(LightningModule):
    """Its loss is `bad` on one batch of the second epoch."""

    def __init__(self, bad: float, manual: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.bad = bad
        self.automatic_optimization = not manual

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        is_bad = self.current_epoch == 1 and batch_idx >= 2
        loss = self.layer(batch).mean() * (self.bad if is_bad else 1.0)
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data() -> DataLoader[Any]:
    return DataLoader(torch.ones(8, 1), batch_size=2)  # type: ignore[arg-type]  # a tensor is a dataset


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_loss_of_a_fit_is_reported_once_with_its_place(bad: float, manual: bool, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        Trainer(**quiet(tmp_path, max_epochs=3)).fit(Line(bad, manual), data())

    (message,) = [str(each.message) for each in caught]
    assert "epoch 1, batch 2" in message
    assert "rank" not in message
    assert "NonFiniteGuard" in message


def test_each_fit_reports_anew(tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, max_epochs=2))
    for _ in range(2):
        trainer.fit_loop.epoch_progress.reset()
        with pytest.warns(RuntimeWarning, match="epoch 1, batch 2"):
            trainer.fit(Line(float("nan")), data())


def watch(rank: int = 0, world_size: int = 1) -> tuple[LossWatch, FitProgress]:
    progress = FitProgress()
    return LossWatch(progress, set(), rank=rank, world_size=world_size), progress


def run(losses: LossWatch, progress: FitProgress, values: list[float]) -> None:
    for value in values:
        progress.batches.increment("ready")
        losses.note(torch.tensor(value))


@pytest.mark.parametrize("bad", [0, 17, 255, 256, 700])
def test_a_loss_on_a_device_is_named_exactly_though_it_is_looked_at_later(bad: int) -> None:
    losses, progress = watch()
    progress.epochs.current.completed = 4
    run(losses, progress, [float("nan") if idx in (bad, bad + 5) else 1.0 for idx in range(900)])
    progress.epochs.current.completed = 5

    with pytest.warns(RuntimeWarning, match=f"epoch 4, batch {bad},"):
        losses.check()
    losses.check()  # once


def test_what_was_looked_at_is_let_go() -> None:
    losses, progress = watch()
    run(losses, progress, [1.0] * 3)
    losses.check()
    run(losses, progress, [float("inf")])

    with pytest.warns(RuntimeWarning, match="loss is inf at epoch 0, batch 3"):
        losses.check()


def test_the_rank_is_named_by_the_rank_itself() -> None:
    losses, progress = watch(rank=1, world_size=2)
    run(losses, progress, [1.0, float("nan")])

    with pytest.warns(RuntimeWarning, match="batch 1 on rank 1 of 2"):
        losses.check()


@pytest.mark.gpu
def test_on_a_gpu_it_is_reported_with_the_next_row(tmp_path: Path) -> None:
    seen: list[int] = []

    class Noting(Line):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(len(caught))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"accelerator": "gpu", "max_epochs": 2, "logger": CSVLogger(tmp_path), "log_every_n_steps": 3}
        Trainer(**quiet(tmp_path, **settings)).fit(Noting(float("nan")), data())

    (message,) = [str(each.message) for each in caught if each.category is RuntimeWarning]
    assert "epoch 1, batch 2" in message


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_an_anomaly_tells_its_batch(manual: bool, tmp_path: Path) -> None:
    class Root(Line):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            if batch_idx != 2:
                return super().training_step(batch, batch_idx)
            loss = (self.layer(batch) * 0).sqrt().sum() * 0
            if not self.automatic_optimization:
                self.manual_backward(loss)
            return loss

    trainer = Trainer(**quiet(tmp_path, detect_anomaly=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"(?s)SqrtBackward0.*nan values.*epoch 0, batch 2, in global step 2"):
            trainer.fit(Root(1.0, manual), data())
