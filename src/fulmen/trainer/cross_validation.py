"""CrossValidation: trains a new module on each fold of the data and compares the results.

The folds come from scikit-learn's splitters; their data is served in `trainer/folds.py`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.utils.data import Dataset

from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.core.datamodule import LightningDataModule
from fulmen.trainer.folds import PlainData, dataset_of, of_fold
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.files import atomic_open
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.options import check_function, check_number
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only
from fulmen.utilities.seed import isolate_rng, seed_everything

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["CrossValidation", "CrossValidationResult", "Fold", "FoldResult"]

_RESULT_FILE = "result.json"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Fold:
    """One division of the data; what the factories of `CrossValidation` get.

    Attributes:
        number: From 0.
        num_folds: How many there are.
        seed: All random numbers are seeded with it before the module is made.
        folder: For logs and checkpoints: the `default_root_dir` of this fold's Trainer.
        train_indices: Samples to train on.
        val_indices: Samples held out.
    """

    number: int
    num_folds: int
    seed: int
    folder: str
    train_indices: tuple[int, ...]
    val_indices: tuple[int, ...]

    @property
    def split(self) -> int:
        """A checksum of the division, to tell it from others."""
        numbers = array("q", [len(self.train_indices), *self.train_indices, *self.val_indices])
        return zlib.crc32(numbers.tobytes())


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What came out of a fold.

    Attributes:
        fold: Its number.
        seed: Its seed.
        num_train: Samples trained on.
        num_val: Samples held out.
        split: Checksum of the division.
        metrics: What `Trainer.validate` returned for the samples held out.
        checkpoint: The checkpoint that was evaluated; None for the weights at the end of training.
    """

    fold: int
    seed: int
    num_train: int
    num_val: int
    split: int
    metrics: dict[str, float]
    checkpoint: str | None


class CrossValidationResult:
    """The results of all folds; `print` shows them as a table.

    Args:
        folds: One entry for each fold.
    """

    def __init__(self, folds: Sequence[FoldResult]) -> None:
        self.folds = tuple(folds)

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in the order of the first fold."""
        return list(dict.fromkeys(name for fold in self.folds for name in fold.metrics))

    def values(self, name: str) -> list[float]:
        """Return a metric of each fold.

        Args:
            name: Name of the metric.

        Raises:
            KeyError: No fold has it.
        """
        if name not in self.names:
            raise KeyError(f"No fold logged {name!r} in its validation. There are: {self.names}.")
        return [fold.metrics.get(name, math.nan) for fold in self.folds]

    def mean(self, name: str) -> float:
        """Return the mean of a metric over the folds."""
        return statistics.fmean(self.values(name))

    def std(self, name: str) -> float:
        """Return the standard deviation of a metric over the folds, estimated from them as a sample (n - 1)."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: a row for each fold, then one for the mean and one for the standard deviation."""
        rows: list[dict[str, Any]] = [
            {"fold": str(fold.fold), "train": fold.num_train, "held out": fold.num_val, **fold.metrics}
            for fold in self.folds
        ]
        for word, summary in (("mean", self.mean), ("std", self.std)):
            rows.append({"fold": word, **{name: summary(name) for name in self.names}})
        return rows

    def to_pandas(self) -> Any:
        """Return one row for each fold as a `pandas.DataFrame`, with the number of the fold as index.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = require("pandas", extra="history", for_="CrossValidationResult.to_pandas()")
        return pandas.DataFrame(self.rows()[: len(self.folds)]).set_index("fold")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV.

        Args:
            path: The file.
        """
        with atomic_open(path, "w") as file:
            writer = csv.DictWriter(file, ["fold", "train", "held out", *self.names], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows())

    def plot(self, names: str | Iterable[str] | None = None, *, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw each metric: a point for each fold, a line for the mean, a band of one standard deviation around it.

        Args:
            names: The metrics; all by default.
            path: Also save the figure there; the ending says the format.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            KeyError: No fold has a metric of that name.
        """
        figure_module = require("matplotlib.figure", extra="history", for_="CrossValidationResult.plot()")
        wanted = self.names if names is None else [names] if isinstance(names, str) else list(names)
        figure = figure_module.Figure(figsize=(3.6 * max(1, len(wanted)), 3.2), layout="constrained")
        for position, name in enumerate(wanted, 1):
            axes = figure.add_subplot(1, len(wanted), position)
            values, mean, std = self.values(name), self.mean(name), self.std(name)
            axes.plot([fold.fold for fold in self.folds], values, "o")
            axes.axhline(mean, lw=1.2)
            if not math.isnan(std):
                axes.axhspan(mean - std, mean + std, alpha=0.15)
            axes.set(title=f"{name}: {mean:.4g} {_PLUS_MINUS} {std:.2g}", xlabel="fold")
            axes.set_xticks([fold.fold for fold in self.folds])
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self) -> str:
        """The table as plain text, with a last row `mean +- std`."""
        titles = ["fold", "train", "held out", *self.names]
        folds = [[_cell(row.get(title)) for title in titles] for row in self.rows()[: len(self.folds)]]
        last = ["mean +- std", "", "", *(f"{self.mean(name):.4g} +- {self.std(name):.2g}" for name in self.names)]
        cells = [titles, *folds, last]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


class CrossValidation:
    """Train a new module on each fold and evaluate it on the samples held out.

    Each fold has a module, a Trainer, a seed and a folder of its own. It is evaluated by `Trainer.validate`: with the
    best checkpoint if the Trainer has a `ModelCheckpoint` with a `monitor`, else with the last weights. The result is
    kept in the folder: when the same run is started again, folds that are finished are not trained again, and one
    that was interrupted goes on from its newest checkpoint, if it has any. At the end there are `results.csv` and, with
    matplotlib installed, `results.png` in the folder.

    Args:
        make_module: Gets a `Fold` and returns a new module.
        make_trainer: Gets a `Fold` and returns a new Trainer with `default_root_dir=fold.folder`.
        splitter: A number of folds, or a splitter of scikit-learn (anything with `split(X, y, groups)`). A number makes
            shuffled folds: stratified with `labels`, with `groups` such that no group is on both sides.
        labels: The class of each sample: a sequence, or a function that takes a sample of the dataset.
        groups: The group of each sample, e.g. the patient, likewise.
        folder: Where everything is written.
        seed: Of the shuffling; fold k is seeded with `seed + k`.

    Raises:
        ValueError: A number of folds below 2.
        TypeError: `splitter` cannot split, or an argument is no function, path or sequence.

    Example::

        cv = CrossValidation(
            make_module=lambda fold: Net(),
            make_trainer=lambda fold: Trainer(max_epochs=10, default_root_dir=fold.folder),
            splitter=5,
            labels=lambda sample: int(sample[1]),
        )
        print(cv.run(MyDataModule()))
    """

    def __init__(
        self,
        make_module: Callable[[Fold], LightningModule],
        make_trainer: Callable[[Fold], Trainer],
        *,
        splitter: int | Any = 5,
        labels: Sequence[Any] | Callable[[Any], Any] | None = None,
        groups: Sequence[Any] | Callable[[Any], Any] | None = None,
        folder: str | os.PathLike[str] = "cross_validation",
        seed: int = 0,
    ) -> None:
        name = "CrossValidation"
        check_function(name, "make_module", make_module, "it takes a `Fold` and returns a new module.")
        why = "it takes a `Fold` and returns a new `Trainer(default_root_dir=fold.folder)`."
        check_function(name, "make_trainer", make_trainer, why)
        check_number(name, "seed", seed, "fold k is seeded with `seed + k`.", least=0, whole=True)
        for option, value in (("labels", labels), ("groups", groups)):
            if isinstance(value, str) or not (value is None or callable(value) or isinstance(value, Iterable)):
                raise TypeError(
                    f"`CrossValidation({option}={value!r})` must have one entry for each sample: pass a sequence, a"
                    " function that takes a sample of the dataset, or None."
                )
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"`CrossValidation(folder={folder!r})` must be a path: everything is written there.")
        if isinstance(splitter, int) and splitter < 2:
            raise ValueError(f"`CrossValidation(splitter={splitter})` is no number of folds: there are at least 2.")
        if isinstance(splitter, str) or not (isinstance(splitter, int) or hasattr(splitter, "split")):
            raise TypeError(
                f"`CrossValidation(splitter={splitter!r})` cannot split. Pass a number of folds, or an object with a"
                " method `split(X, y, groups)`, as those of `sklearn.model_selection`."
            )
        self.make_module = make_module
        self.make_trainer = make_trainer
        self.splitter = splitter
        self.labels = labels
        self.groups = groups
        self.folder = Path(folder)
        self.seed = seed

    def run(
        self,
        data: LightningDataModule | Dataset[Any],
        *,
        pool: Literal["train", "train+val"] = "train",
        **dataloader_arguments: Any,
    ) -> CrossValidationResult:
        """Train and evaluate all folds that are not finished.

        Args:
            data: A datamodule, whose dataset is divided anew; its loaders keep their settings and its transfer hooks
                work. Or a dataset with a length and an index.
            pool: Of a datamodule, the samples that are divided: those of its training dataloader, or those of its
                validation dataloader, too.
            dataloader_arguments: For a dataset: arguments of `DataLoader`, such as `batch_size`. Training shuffles.

        Returns:
            The results of all folds.

        Raises:
            MisconfigurationException: The data cannot be divided, `make_trainer` does not use the fold's folder, or a
                factory returned the same object twice.
            ValueError: The folder holds results of other folds.
            TypeError: A factory returned no module or no Trainer.
        """
        module = self._as_datamodule(data, dataloader_arguments, pool)
        with isolate_rng():  # loaders may draw
            dataset = dataset_of(module, pool)
            folds = self._folds(dataset)
            finished = {fold.number: result for fold in folds if (result := _read(fold)) is not None}
        results, given = [], _Fresh()
        for fold in folds:
            result = finished.get(fold.number)
            if result is None:
                with isolate_rng():
                    result = self._run_fold(fold, module, pool, given)
            else:
                rank_zero_info(
                    f"Fold {fold.number + 1} of {fold.num_folds} was finished by an earlier start, and its result is"
                    f" taken from {fold.folder}. Remove that folder if the module or the Trainer are others by now."
                )
            results.append(result)
        summary = CrossValidationResult(results)
        self._write(summary)
        return summary

    @staticmethod
    def _as_datamodule(data: Any, dataloader_arguments: dict[str, Any], pool: str) -> LightningDataModule:
        if pool not in ("train", "train+val"):
            raise ValueError(f"`CrossValidation.run(pool={pool!r})` is not known. Choose 'train' or 'train+val'.")
        if not isinstance(data, LightningDataModule):
            if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
                raise MisconfigurationException(
                    f"`CrossValidation.run({data!r})` cannot be divided into folds: it has no length or no index. Pass"
                    " a dataset that has both, or a `LightningDataModule`."
                )
            return PlainData(data, dataloader_arguments)
        if dataloader_arguments:
            raise TypeError(
                f"`CrossValidation.run({type(data).__name__}(...), {', '.join(dataloader_arguments)}=...)`: arguments"
                " of dataloaders go with a dataset only. A datamodule makes its own loaders; set them there."
            )
        return data

    # ---- dividing
    def _folds(self, dataset: Any) -> list[Fold]:
        count = len(dataset)
        labels, groups = (
            _column(name, given, dataset) for name, given in (("labels", self.labels), ("groups", self.groups))
        )
        splits = list(self._splitter(labels, groups).split(list(range(count)), labels, groups))
        return [
            Fold(
                number=number,
                num_folds=len(splits),
                seed=self.seed + number,
                folder=str(self.folder.absolute() / f"fold_{number}"),
                train_indices=tuple(map(int, train)),
                val_indices=tuple(map(int, val)),
            )
            for number, (train, val) in enumerate(splits)
        ]

    def _splitter(self, labels: Any, groups: Any) -> Any:
        if not isinstance(self.splitter, int):
            return self.splitter
        selection = require("sklearn.model_selection", extra="cross-validation", for_="CrossValidation(splitter=<int>)")
        by_label, by_group = labels is not None, groups is not None
        kind = {
            (False, False): "KFold", (True, False): "StratifiedKFold",
            (False, True): "GroupKFold", (True, True): "StratifiedGroupKFold",
        }[by_label, by_group]  # fmt: skip
        return getattr(selection, kind)(self.splitter, shuffle=True, random_state=self.seed)

    # ---- one fold
    def _run_fold(self, fold: Fold, data: LightningDataModule, pool: str, given: _Fresh) -> FoldResult:
        rank_zero_info(f"Fold {fold.number + 1} of {fold.num_folds}: {fold.folder}")
        seed_everything(fold.seed, workers=True, verbose=False)
        module, trainer = self.make_module(fold), self.make_trainer(fold)
        given.check(module, trainer)
        _check_folder(trainer, fold)
        own_data = of_fold(data, fold.train_indices, fold.val_indices, pool)
        trainer.fit(module, datamodule=own_data, ckpt_path="auto")
        checkpoint = _best_checkpoint(trainer)
        found = trainer.validate(module, datamodule=own_data, ckpt_path=checkpoint, verbose=False)
        result = FoldResult(
            fold=fold.number,
            seed=fold.seed,
            num_train=len(fold.train_indices),
            num_val=len(fold.val_indices),
            split=fold.split,
            metrics={name: float(value) for metrics in found for name, value in metrics.items()},
            checkpoint=checkpoint,
        )
        if trainer.is_global_zero and not trainer.fast_dev_run:  # which has no result to keep
            with atomic_open(Path(fold.folder) / _RESULT_FILE, "w") as file:
                json.dump(asdict(result), file, indent=2)
        return result

    @rank_zero_only
    def _write(self, summary: CrossValidationResult) -> None:
        summary.save(self.folder / "results.csv")
        if is_installed("matplotlib") and summary.names:
            summary.plot(path=self.folder / "results.png")
        rank_zero_info(f"Cross-validation, results in {self.folder}:\n{summary}")


class _Fresh:
    """Sees that each fold has a module and a Trainer of its own: others have seen the samples held out."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[Any]] = []  # of those that are let go, no factory can return one again

    def check(self, module: Any, trainer: Any) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"`CrossValidation(make_module=...)` must return a `LightningModule`, but returned {module!r}."
            )
        if not hasattr(trainer, "fit_loop"):
            raise TypeError(
                f"`CrossValidation(make_trainer=...)` must return a Trainer, but returned {trainer!r}. Return"
                " `Trainer(default_root_dir=fold.folder, ...)`."
            )
        for name, made in (("make_module", module), ("make_trainer", trainer)):
            if any(made is each() for each in self._seen):
                raise MisconfigurationException(
                    f"`CrossValidation({name}=...)` returned the same object for two folds, but what one fold has"
                    " trained on is held out in another. Make a new one in each call."
                )
            self._seen.append(weakref.ref(made))


def _read(fold: Fold) -> FoldResult | None:
    """Return the result of a fold that an earlier start has finished."""
    path = Path(fold.folder) / _RESULT_FILE
    if not path.exists():
        return None
    result = FoldResult(**json.loads(path.read_text(encoding="utf-8")))
    if (result.split, result.seed) != (fold.split, fold.seed):
        raise ValueError(
            f"`{path}` is the result of another division of the data or another seed ({result.seed}, not {fold.seed}),"
            " so it cannot be compared with this run. Choose another `CrossValidation(folder=...)`, or remove it."
        )
    return replace(result, metrics=dict(result.metrics))


def _column(name: str, given: Any, dataset: Any) -> list[Any] | None:
    """Return one entry for each sample."""
    if given is None:
        return None
    count = len(dataset)
    column = [given(dataset[idx]) for idx in range(count)] if callable(given) else list(given)
    if len(column) != count:
        raise ValueError(
            f"`CrossValidation({name}=...)` has {len(column)} entries for {count} samples. Pass one for each, in the"
            " order of the dataset, or a function that takes a sample."
        )
    return [value.item() if hasattr(value, "item") else value for value in column]


def _check_folder(trainer: Trainer, fold: Fold) -> None:
    if Path(trainer.default_root_dir).absolute() != Path(fold.folder):
        raise MisconfigurationException(
            f"`make_trainer` returned a Trainer with `default_root_dir={trainer.default_root_dir!r}` for fold"
            f" {fold.number}, so that folds would mix their files. Pass `Trainer(default_root_dir=fold.folder)`."
        )


def _best_checkpoint(trainer: Trainer) -> str | None:
    """Return the checkpoint that a monitor has chosen; None if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.best_model_path:
            return callback.best_model_path
    return None


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
