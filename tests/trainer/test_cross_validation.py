from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneGroupOut, TimeSeriesSplit
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.trainer import CrossValidation, Fold
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet


@functools.cache
def digits() -> TensorDataset:
    data = load_digits()
    return TensorDataset(torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target))


def some(count: int) -> TensorDataset:
    return TensorDataset(*digits()[:count])


class Reader(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)
        self.seen: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(len(batch[0]))
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


class Digits(LightningDataModule):
    """Trains on the first samples, validates on the rest; notes what its transfer hook sees."""

    def __init__(self, dataset: Any, batch_size: int = 25) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.moved = dataset, batch_size, [0]

    def setup(self, stage: str) -> None:
        half = len(self.dataset) * 3 // 4
        self.train = TensorDataset(*self.dataset[:half])
        self.val = TensorDataset(*self.dataset[half:])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.moved[0] += 1
        return batch

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 50)


class Runs:
    """Factories that note what they made."""

    def __init__(self, *, max_epochs: int = 1, fails_in_fold: int | None = None, **arguments: Any) -> None:
        self.max_epochs, self.fails_in_fold, self.arguments = max_epochs, fails_in_fold, arguments
        self.folds: list[Fold] = []
        self.trainers: list[Trainer] = []
        self.modules: list[Reader] = []
        self.weights: list[Tensor] = []

    def module(self, fold: Fold) -> Reader:
        self.folds.append(fold)
        self.modules.append(Reader())
        self.weights.append(self.modules[-1].net.weight.detach().clone())
        return self.modules[-1]

    def trainer(self, fold: Fold) -> Trainer:
        class Fails(Callback):
            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                if trainer.current_epoch == 1 and batch_idx == 1:
                    raise ValueError("cut off")

        callbacks: list[Callback] = [Fails()] if fold.number == self.fails_in_fold else []
        if monitor := self.arguments.get("monitor"):
            callbacks.append(ModelCheckpoint(monitor=monitor, mode="max", save_last=True))
        settings = quiet(
            Path(fold.folder), max_epochs=self.max_epochs, callbacks=callbacks, num_sanity_val_steps=0,
            log_every_n_steps=1, enable_checkpointing=monitor is not None,
        )  # fmt: skip
        self.trainers.append(Trainer(**settings))
        return self.trainers[-1]

    def cross_validation(self, folder: Path, **arguments: Any) -> CrossValidation:
        return CrossValidation(self.module, self.trainer, folder=folder, **arguments)


def test_every_sample_is_held_out_once_and_never_trained_on_then(tmp_path):
    runs = Runs()
    result = runs.cross_validation(tmp_path, splitter=4).run(some(102), batch_size=25)

    held_out = [idx for fold in runs.folds for idx in fold.val_indices]
    assert sorted(held_out) == list(range(102))
    assert all(not set(fold.train_indices) & set(fold.val_indices) for fold in runs.folds)
    assert (
        [sum(module.seen) for module in runs.modules] == [fold.num_train for fold in result.folds] == [76, 76, 77, 77]
    )
    assert [fold.num_val for fold in result.folds] == [26, 26, 25, 25]


def test_each_fold_has_its_own_module_trainer_seed_and_folder(tmp_path):
    runs = Runs()
    runs.cross_validation(tmp_path, splitter=3, seed=5).run(some(60), batch_size=20)

    assert [fold.seed for fold in runs.folds] == [5, 6, 7]
    assert [trainer.default_root_dir for trainer in runs.trainers] == [str(tmp_path / f"fold_{k}") for k in range(3)]
    assert not torch.equal(runs.weights[0], runs.weights[1])
    torch.manual_seed(0)
    again = Runs()
    again.cross_validation(tmp_path / "again", splitter=3, seed=5).run(some(60), batch_size=20)
    assert all(torch.equal(a.net.weight, b.net.weight) for a, b in zip(runs.modules, again.modules, strict=True))


def test_random_numbers_of_the_program_go_on_as_if_nothing_had_run(tmp_path):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    Runs().cross_validation(tmp_path, splitter=2).run(some(20), batch_size=10)

    assert torch.equal(torch.rand(3), expected)


def test_loaders_of_a_datamodule_keep_their_settings_and_hooks(tmp_path):
    runs, data = Runs(), Digits(some(200))
    result = runs.cross_validation(tmp_path, splitter=3).run(data)

    assert [fold.num_train + fold.num_val for fold in result.folds] == [150] * 3
    assert runs.modules[0].seen == [25] * 4  # of 100 samples, without a rest
    assert data.moved[0] == sum(len(module.seen) for module in runs.modules) + 3 * 2  # each fold validates twice
    assert len(data.train_dataloader().dataset) == 150


def test_samples_of_the_validation_loader_can_be_divided_too(tmp_path):
    result = Runs().cross_validation(tmp_path, splitter=2).run(Digits(some(120)), pool="train+val")

    assert [fold.num_train + fold.num_val for fold in result.folds] == [120, 120]


def test_labels_make_stratified_folds(tmp_path):
    labels = [0] * 80 + [1] * 20
    runs = Runs()
    runs.cross_validation(tmp_path, splitter=5, labels=labels).run(some(100), batch_size=40)

    assert [sum(labels[idx] for idx in fold.val_indices) for fold in runs.folds] == [4] * 5


def test_groups_stay_on_one_side(tmp_path):
    runs = Runs()
    runs.cross_validation(tmp_path, splitter=3, groups=lambda sample: int(sample[1]) // 2).run(some(90), batch_size=40)

    for fold in runs.folds:
        group_of = [int(digits()[idx][1]) // 2 for idx in range(90)]
        assert not {group_of[idx] for idx in fold.train_indices} & {group_of[idx] for idx in fold.val_indices}


def test_any_splitter_of_scikit_learn_works(tmp_path):
    runs = Runs()
    runs.cross_validation(tmp_path / "time", splitter=TimeSeriesSplit(3)).run(some(40), batch_size=10)
    by_group = Runs()
    groups = [idx % 4 for idx in range(40)]
    by_group.cross_validation(tmp_path / "groups", splitter=LeaveOneGroupOut(), groups=groups).run(
        some(40), batch_size=10
    )

    assert all(max(fold.train_indices) < min(fold.val_indices) for fold in runs.folds)
    assert [{groups[idx] for idx in fold.val_indices} for fold in by_group.folds] == [{0}, {1}, {2}, {3}]


@pytest.mark.slow
def test_finished_folds_are_not_run_again_and_a_broken_one_goes_on(tmp_path):
    whole = Runs(max_epochs=3, monitor="acc")
    expected = whole.cross_validation(tmp_path / "whole", splitter=3).run(some(120), batch_size=20)
    first = Runs(max_epochs=3, monitor="acc", fails_in_fold=1)
    with pytest.raises(ValueError, match="cut off"):
        first.cross_validation(tmp_path / "part", splitter=3).run(some(120), batch_size=20)
    second = Runs(max_epochs=3, monitor="acc")
    result = second.cross_validation(tmp_path / "part", splitter=3).run(some(120), batch_size=20)

    assert [fold.number for fold in second.folds] == [1, 2]
    assert len(second.modules[0].seen) == 2 * 4  # the first epoch was in the checkpoint
    assert [fold.metrics for fold in result.folds] == [fold.metrics for fold in expected.folds]
    assert torch.equal(second.modules[0].net.weight, whole.modules[1].net.weight)


def test_results_of_other_folds_are_not_taken_for_those_of_this_run(tmp_path):
    Runs().cross_validation(tmp_path, splitter=2).run(some(20), batch_size=10)

    with pytest.raises(ValueError, match="another division"):
        Runs().cross_validation(tmp_path, splitter=2, seed=1).run(some(20), batch_size=10)


def test_results_are_a_table_a_file_and_a_picture(tmp_path):
    result = Runs().cross_validation(tmp_path, splitter=3).run(some(60), batch_size=20)
    values = result.values("acc")

    assert result.mean("acc") == pytest.approx(sum(values) / 3)
    assert result.std("acc") == pytest.approx(torch.tensor(values, dtype=torch.float64).std().item())
    lines = str(result).splitlines()
    assert lines[0].split() == ["fold", "train", "held", "out", "acc"]
    assert lines[-1].split()[:3] == ["mean", "+-", "std"]
    table = (tmp_path / "results.csv").read_text().splitlines()
    assert table[0] == "fold,train,held out,acc"
    assert [line.split(",")[0] for line in table[1:]] == ["0", "1", "2", "mean", "std"]
    assert (tmp_path / "results.png").stat().st_size > 1000
    assert list(result.to_pandas()["acc"]) == values


def test_the_best_checkpoint_is_evaluated_if_there_is_a_monitor(tmp_path):
    runs = Runs(max_epochs=2, monitor="acc")
    result = runs.cross_validation(tmp_path, splitter=2).run(some(60), batch_size=20)

    for fold, trainer in zip(result.folds, runs.trainers, strict=True):
        best = trainer.checkpoint_callbacks[0]
        assert isinstance(best, ModelCheckpoint)
        assert best.best_model_score is not None
        assert fold.checkpoint == best.best_model_path
        assert fold.metrics["acc"] == pytest.approx(best.best_model_score.item())


@pytest.mark.slow
def test_the_digits_are_read_alike_in_every_fold(tmp_path):
    result = (
        Runs(max_epochs=8)
        .cross_validation(tmp_path, splitter=5, labels=lambda sample: int(sample[1]))
        .run(digits(), batch_size=64)
    )

    assert result.mean("acc") > 0.93
    assert result.std("acc") < 0.03


def test_what_cannot_be_divided_is_refused(tmp_path):
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    class Several(Digits):
        def train_dataloader(self) -> Any:
            return [super().train_dataloader()] * 2

    class Weighted(Digits):
        def train_dataloader(self) -> Any:
            return DataLoader(self.train, 5, sampler=WeightedRandomSampler([1.0] * 15, 15))

    cv = Runs().cross_validation(tmp_path, splitter=2)
    with pytest.raises(MisconfigurationException, match="cannot be divided"):
        cv.run(Stream(), shuffle=None)
    with pytest.raises(MisconfigurationException, match=r"Several\.train_dataloader` returned a list"):
        cv.run(Several(some(20)))
    with pytest.raises(MisconfigurationException, match="WeightedRandomSampler"):
        cv.run(Weighted(some(20)))


def test_wrong_settings_are_refused(tmp_path):
    runs = Runs()
    with pytest.raises(ValueError, match="at least 2"):
        runs.cross_validation(tmp_path, splitter=1)
    for option, value in (("make_module", 3), ("make_trainer", None), ("labels", "abc"), ("groups", 3), ("folder", 3)):
        arguments: dict[str, Any] = {"make_module": runs.module, "make_trainer": runs.trainer, option: value}
        with pytest.raises(TypeError, match=option):
            CrossValidation(**arguments)
    with pytest.raises(ValueError, match="seed='x'"):
        runs.cross_validation(tmp_path, seed="x")
    with pytest.raises(TypeError, match="cannot split"):
        runs.cross_validation(tmp_path, splitter="kfold")
    with pytest.raises(ValueError, match="3 entries for 20 samples"):
        runs.cross_validation(tmp_path, splitter=2, labels=[0, 1, 0]).run(some(20))
    with pytest.raises(ValueError, match="pool='all'"):
        runs.cross_validation(tmp_path, splitter=2).run(Digits(some(20)), pool="all")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="batch_size"):
        runs.cross_validation(tmp_path, splitter=2).run(Digits(some(20)), batch_size=5)
    elsewhere = CrossValidation(runs.module, lambda fold: Trainer(**quiet(tmp_path)), splitter=2, folder=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"default_root_dir=fold\.folder"):
        elsewhere.run(some(20), batch_size=10)


def test_what_has_seen_the_samples_held_out_is_refused(tmp_path):
    runs = Runs()
    module = Reader()
    shared = CrossValidation(lambda fold: module, runs.trainer, splitter=2, folder=tmp_path)
    with pytest.raises(MisconfigurationException, match="the same object for two folds"):
        shared.run(some(20), batch_size=10)


def test_factories_that_return_something_else_are_refused(tmp_path):
    runs = Runs()
    for make in ({"make_module": lambda fold: 3}, {"make_trainer": lambda fold: 3}):
        factories: dict[str, Any] = {"make_module": runs.module, "make_trainer": runs.trainer, **make}
        with pytest.raises(TypeError, match=f"{next(iter(make))}=.*returned 3"):
            CrossValidation(**factories, splitter=2, folder=tmp_path).run(some(20), batch_size=10)


def test_a_try_of_the_code_leaves_no_results(tmp_path):
    runs = Runs()
    tried = CrossValidation(
        runs.module,
        lambda fold: Trainer(**quiet(Path(fold.folder), fast_dev_run=True)),
        splitter=2,
        folder=tmp_path,
    )
    tried.run(some(20), batch_size=10)
    runs.cross_validation(tmp_path, splitter=2).run(some(20), batch_size=10)

    assert len(runs.trainers) == 2  # none was taken for finished


def test_folds_that_were_finished_before_are_named(tmp_path, caplog):
    Runs().cross_validation(tmp_path, splitter=2).run(some(20), batch_size=10)
    with caplog.at_level("INFO"):
        Runs().cross_validation(tmp_path, splitter=2).run(some(20), batch_size=10)

    assert "Fold 1 of 2 was finished by an earlier start" in caplog.text
