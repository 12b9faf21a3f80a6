"""A run that was interrupted and resumed ends like the one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from fulmen.loggers import CSVLogger
from tests.support import quiet
from tests.torture.compare import differences


class Noisy(Dataset[Tensor]):
    """Samples with random augmentation."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index)) / 10 + torch.randn(4) / 10


class Model(LightningModule):
    def __init__(self, plateau: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.plateau = plateau
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch).pow(2).mean()
        self.seen.append(loss.item())
        self.log("train", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.net(batch).mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if self.plateau:
            scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        else:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val"}

    def train_dataloader(self) -> Any:
        return DataLoader(Noisy(), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Noisy(), batch_size=4)


class SaveAt(Callback):
    """Saves in one hook, at one global step."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and not self.path.exists():
            trainer.save_checkpoint(self.path)


def run(
    tmp_path: Path, callbacks: list[Callback], model: Model, ckpt_path: Path | None = None, **settings: Any
) -> Trainer:
    torch.manual_seed(11)
    trainer = Trainer(**quiet(tmp_path, callbacks=callbacks, **{"max_epochs": 3, **settings}))
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("plateau", [False, True], ids=["StepLR", "ReduceLROnPlateau"])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_epoch_end", 6),
        ("on_train_epoch_end", 12),
        ("on_train_epoch_start", 6),
        ("on_train_batch_start", 4),
        ("on_train_batch_start", 6),
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 6),
        ("on_train_batch_end", 9),
        ("on_validation_end", 6),
    ],
)
def test_a_resumed_run_is_the_same_run(hook: str, step: int, plateau: bool, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    whole = Model(plateau)
    trainer = run(tmp_path, [SaveAt(hook, step, path)], whole)

    torch.manual_seed(99)
    resumed = Model(plateau)
    again = run(tmp_path, [], resumed, ckpt_path=path)

    assert resumed.seen == whole.seen[step:]
    assert same_weights(resumed, whole)
    assert (again.global_step, again.current_epoch) == (trainer.global_step, trainer.current_epoch)
    assert again.optimizers[0].param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]
    assert again.callback_metrics == trainer.callback_metrics
    assert again.fit_loop.batches_that_stepped == trainer.fit_loop.batches_that_stepped


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_the_loggers_axis_goes_on_where_it_was_also_after_skipped_batches(hook: str, tmp_path: Path) -> None:
    class Skipping(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    path = tmp_path / "saved.ckpt"
    whole = run(tmp_path, [SaveAt(hook, 5, path)], Skipping())
    resumed = run(tmp_path, [], Skipping(), ckpt_path=path)

    assert resumed.global_step == whole.global_step == 15
    assert resumed.fit_loop.batches_that_stepped == whole.fit_loop.batches_that_stepped == 18


def test_validation_that_was_due_after_the_saved_batch_is_not_lost(tmp_path: Path) -> None:
    class Counting(Model):
        validations = 0

        def on_validation_start(self) -> None:
            if not self.trainer.sanity_checking:
                self.validations += 1

    path = tmp_path / "saved.ckpt"
    run(tmp_path, [SaveAt("on_train_batch_end", 2, path)], Counting(), val_check_interval=2)
    resumed = Counting()
    run(tmp_path, [], resumed, ckpt_path=path, val_check_interval=2)

    assert resumed.validations == 9


def test_accumulation_windows_survive_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    whole, resumed = Model(), Model()
    run(tmp_path, [SaveAt("on_train_batch_end", 4, path)], whole, accumulate_grad_batches=2)
    run(tmp_path, [], resumed, ckpt_path=path, accumulate_grad_batches=2)

    assert same_weights(resumed, whole)


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_early_stopping_and_best_score_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [EarlyStopping("val", patience=50), ModelCheckpoint(tmp_path / "best", monitor="val", save_top_k=-1)]

    whole = run(tmp_path, callbacks(), Model(), enable_checkpointing=True)
    first = tmp_path / "best" / "epoch=0-step=6.ckpt"
    resumed = run(tmp_path, callbacks(), Model(), ckpt_path=first, enable_checkpointing=True)

    for kind in ("early_stopping_callback", "checkpoint_callback"):
        mine, theirs = getattr(whole, kind).state_dict(), getattr(resumed, kind).state_dict()
        for key in ("wait_count", "best_score", "best_model_score"):
            assert mine.get(key) == theirs.get(key)


def test_resuming_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    model = Model()
    trainer = run(tmp_path, [], model)
    trainer.save_checkpoint(path)
    resumed = Model()
    again = run(tmp_path, [], resumed, ckpt_path=path)

    assert resumed.seen == []
    assert again.current_epoch == 3
    assert same_weights(resumed, model)


def test_log_rows_of_a_resumed_run_continue_those_before(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    logger = CSVLogger(tmp_path, name="whole")
    run(tmp_path, [SaveAt("on_train_epoch_end", 6, path)], Model(), logger=logger, log_every_n_steps=2)
    resumed = CSVLogger(tmp_path, name="resumed")
    run(tmp_path, [], Model(), ckpt_path=path, logger=resumed, log_every_n_steps=2)

    def rows(which: CSVLogger) -> list[str]:
        return (Path(which.log_dir) / "metrics.csv").read_text().splitlines()

    whole_rows, resumed_rows = rows(logger), rows(resumed)
    assert resumed_rows[0] == whole_rows[0]
    assert resumed_rows[1:] == whole_rows[-(len(resumed_rows) - 1) :]


# ---- the data


class Own(Noisy):
    """With random numbers from a generator of its own, too; knows what it was asked for."""

    def __init__(self) -> None:
        self.rng = torch.Generator().manual_seed(3)
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Tensor:
        self.asked.append(index)
        return super().__getitem__(index) + torch.rand(4, generator=self.rng)


class WithLoaders(Model):
    """Has the loaders that it is given."""

    def __init__(self, **kwargs: Any) -> None:
        torch.manual_seed(4)
        super().__init__()
        self.kwargs = kwargs
        self.validated: list[float] = []
        self.num_loads = 0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.validated.append(batch.sum().item())

    def train_dataloader(self) -> Any:
        self.num_loads += 1
        generator = torch.Generator().manual_seed(self.num_loads)
        return DataLoader(Own(), batch_size=4, shuffle=True, generator=generator, **self.kwargs)

    def val_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(2)
        return DataLoader(Own(), batch_size=8, shuffle=True, generator=generator, **self.kwargs)


def interrupted_run(tmp_path: Path, steps: list[int], *, hook: str = "on_train_batch_end", **settings: Any) -> None:
    """Compare a run with one that is resumed at each of the steps from the checkpoint of the one before."""
    kwargs = settings.pop("loaders", {})
    whole = WithLoaders(**kwargs)
    end = run(tmp_path, [], whole, **settings)
    path = None
    seen: list[float] = []
    for i, step in enumerate([*steps, None]):
        model = WithLoaders(**kwargs)
        callbacks: list[Callback] = [] if step is None else [SaveAt(hook, step, tmp_path / f"{i}.ckpt")]
        trainer = run(tmp_path, callbacks, model, ckpt_path=path, **settings)
        begun = 0 if i == 0 else steps[i - 1]
        seen += model.seen if step is None else model.seen[: step - begun]
        path = tmp_path / f"{i}.ckpt"
    assert seen == whole.seen
    assert same_weights(model, whole)
    assert model.validated == whole.validated[-len(model.validated) :]
    assert trainer.callback_metrics == end.callback_metrics


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit_train_batches": 4},
        {"overfit_batches": 4},
        {"val_check_interval": 2},
        {"reload_dataloaders_every_n_epochs": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings(
    "ignore:.*overfit_batches", "ignore:.*many workers", "ignore:.*shuffling enabled", "ignore:You requested to overfit"
)
def test_several_interruptions_leave_no_trace(settings: dict[str, Any], tmp_path: Path) -> None:
    interrupted_run(tmp_path, [1, 3, 7], **settings)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
@pytest.mark.parametrize("every", [0, 1], ids=["goes on", "is made anew"])
def test_validation_data_that_was_not_needed_between_two_interruptions(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithLoaders, "train_dataloader", Model.train_dataloader)  # whose seeds do not count
    every_n_epochs: dict[str, Any] = {"check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": every}
    interrupted_run(tmp_path, [13, 15], max_epochs=4, **every_n_epochs)


@pytest.mark.filterwarnings("ignore:.*shuffling enabled")
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("max_steps", [9, 12], ids=["inside an epoch", "at its end"])
def test_a_run_resumed_after_its_last_step_ends_with_the_same_checkpoint(
    max_steps: int, hook: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.ckpt"
    settings: dict[str, Any] = {"max_steps": max_steps, "max_epochs": -1, "val_check_interval": 3}
    ends = []
    begun: list[tuple[Path | None, list[Callback]]] = [(None, [SaveAt(hook, max_steps, saved)]), (saved, [])]
    for path, callbacks in begun:
        trainer = run(tmp_path, callbacks, WithLoaders(), ckpt_path=path, **settings)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        ends.append(torch.load(tmp_path / "end.ckpt", weights_only=True))
        ends[-1]["generator"] = trainer.train_dataloader.generator.get_state()

    whole, resumed = ends
    for end in ends:
        del end["callbacks"], end["fulmen"]["run"]
    assert list(differences(whole, resumed, "")) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*shuffling enabled", "ignore:You requested to overfit")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_batch_start", "on_validation_end"])
def test_several_interruptions_leave_no_trace_in_workers(persistent: bool, hook: str, tmp_path: Path) -> None:
    steps = [6, 12] if hook == "on_validation_end" else [2, 5, 9]
    interrupted_run(tmp_path, steps, hook=hook, loaders={"num_workers": 2, "persistent_workers": persistent})


@pytest.mark.filterwarnings("ignore:.*shuffling enabled", "ignore:You requested to overfit")
def test_no_sample_that_was_used_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    run(tmp_path, [SaveAt("on_train_batch_end", 4, path)], WithLoaders(), max_epochs=1)
    model = WithLoaders()
    trainer = run(tmp_path, [], model, ckpt_path=path, max_epochs=1)

    assert len(trainer.train_dataloader.dataset.asked) == 22 - 16


class Fails(Model):
    """Fails once, in the middle of a step that has drawn random numbers."""

    def __init__(self, at: int | None) -> None:
        torch.manual_seed(4)
        super().__init__()
        self.at = at

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if len(self.seen) == self.at:
            torch.rand(7)
            raise ZeroDivisionError
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("window", [1, 2])
def test_after_an_error_the_batches_that_are_lost_come_again(window: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": window, "enable_checkpointing": True, "logger": False}
    whole, failed, resumed = Fails(None), Fails(9), Fails(None)
    for each in (whole, failed, resumed):
        each.net[2] = nn.Identity()  # batch norm has seen the batches that are lost
    run(tmp_path / "whole", [], whole, **settings)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "failed", [OnExceptionCheckpoint(tmp_path)], failed, **settings)
    run(tmp_path / "resumed", [], resumed, ckpt_path=tmp_path / "on_exception.ckpt", **settings)

    done = 9 - 9 % 6 % window
    assert resumed.seen == whole.seen[done:]
    assert same_weights(resumed, whole)


def test_a_checkpoint_without_counters_makes_counting_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    trainer = run(tmp_path, [], Model(), max_epochs=2)
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["loops"]
    torch.save(checkpoint, path)
    model = Model()
    trainer.fit(model, ckpt_path=path)

    assert (trainer.current_epoch, trainer.global_step, len(model.seen)) == (2, 12, 12)
