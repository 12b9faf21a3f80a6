"""LightningDataModule: where the data comes from, apart from the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import Self

from fulmen.core.hooks import DataHooks
from fulmen.core.hparams import HyperparametersMixin
from fulmen.core.saving import class_only, load_datamodule_from_checkpoint
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["LightningDataModule"]

_LOADERS = {
    "Train": "train_dataloader",
    "Validation": "val_dataloader",
    "Test": "test_dataloader",
    "Predict": "predict_dataloader",
}


class LightningDataModule(DataHooks, HyperparametersMixin):
    """Download, split and load data in one object that any Trainer and any model can use.

    Attributes:
        prepare_data_per_node: Whether `prepare_data` runs once per node (default) or once in the whole cluster.
        allow_zero_length_dataloader_with_multiple_devices: Whether a loader may have no batch on some device.
        trainer: The Trainer of the present run, None without one.

    Example::

        class Digits(LightningDataModule):
            def setup(self, stage):
                self.digits = torch.randn(100, 8).split(20)

            def train_dataloader(self):
                return DataLoader(self.digits, batch_size=2)

        trainer.fit(model, datamodule=Digits())
    """

    name: str | None = None
    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start without a Trainer.

        Args:
            args: Not used; accepted because subclasses pass their own arguments on.
            kwargs: Not used, as `args`.
        """
        super().__init__()
        self.trainer: Trainer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer out of pickles and copies."""
        return {**self.__dict__, "trainer": None}

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Make a datamodule of datasets; each may be one dataset, or a list or dict of several.

        Args:
            train_dataset: Shuffled, unless it is an `IterableDataset`.
            val_dataset: For validation.
            test_dataset: For testing.
            predict_dataset: For predicting.
            batch_size: Samples per batch of every loader.
            num_workers: Worker processes of every loader.
            datamodule_kwargs: For the constructor of a subclass; it gets `batch_size` and `num_workers` too if it
                has such arguments.

        Returns:
            A datamodule with the loaders for the given datasets.
        """
        parameters = inspect.signature(cls).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        common = {"batch_size": batch_size, "num_workers": num_workers}
        accepted = {name: value for name, value in common.items() if takes_any or name in parameters}
        datamodule = cls(**datamodule_kwargs, **accepted)
        datasets = (train_dataset, val_dataset, test_dataset, predict_dataset)
        for hook, dataset in zip(_LOADERS.values(), datasets, strict=True):
            if dataset is not None:
                loaders = _Loaders(dataset, batch_size, num_workers, shuffle=hook == "train_dataloader")
                setattr(datamodule, hook, loaders)
        return datamodule

    @class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the datamodule from the hyperparameters and state in a checkpoint.

        Args:
            checkpoint_path: A path, URL or open file.
            map_location: Where to put tensors; as saved by default, CPU if that device is absent.
            hparams_file: A `.yaml` or `.csv` file whose values replace the stored hyperparameters.
            weights_only: False also unpickles arbitrary objects: only for files you trust. `None` leaves it to torch.
            kwargs: Override stored hyperparameters.

        Raises:
            TypeError: Called on an instance, or the constructor requires an argument that the file does not have.
            ValueError: The hparams file is of an unknown kind.
            KeyError: The file is no checkpoint of a Trainer.
            pickle.UnpicklingError: The file holds objects that are no plain data, and `weights_only` is not False.
        """
        loaded = load_datamodule_from_checkpoint(
            cls, checkpoint_path, map_location, hparams_file, weights_only, **kwargs
        )
        return cast(Self, loaded)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this object; nothing by default."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Args:
            state_dict: The state in the checkpoint.
        """

    def on_exception(self, exception: BaseException) -> None:
        """Called when a run ends by an exception.

        Args:
            exception: The exception.
        """

    def __str__(self) -> str:
        """The sizes of the datasets behind each loader; `None` for a loader that cannot be made yet."""
        return "\n".join(f"{{{title} dataloader: {self._sizes(hook)}}}" for title, hook in _LOADERS.items())

    def _sizes(self, hook: str) -> str:
        if not is_overridden(hook, self, LightningDataModule):
            return "None"
        try:
            loaders = list(_flat(getattr(self, hook)()))
        except (AttributeError, RuntimeError, TypeError, ValueError, MisconfigurationException):
            return "None"  # `setup` has not made the datasets yet; printing must not fail for that
        sizes = [f"size={_size(loader)}" for loader in loaders]
        return sizes[0] if len(sizes) == 1 else " ; ".join(f"{idx}. {size}" for idx, size in enumerate(sizes, start=1))


class _Loaders:
    """The loaders of some datasets, made anew at each call. A class, so that the datamodule can be pickled."""

    def __init__(self, datasets: Any, batch_size: int, num_workers: int, *, shuffle: bool) -> None:
        self.datasets = datasets
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle

    def __call__(self) -> Any:
        if isinstance(self.datasets, Mapping):
            return {name: self._loader(dataset) for name, dataset in self.datasets.items()}
        if isinstance(self.datasets, Sequence) and not isinstance(self.datasets, Dataset):
            return [self._loader(dataset) for dataset in self.datasets]
        return self._loader(self.datasets)

    def _loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=self.shuffle and not isinstance(dataset, IterableDataset),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),  # torch warns if there is no device to copy to
        )


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from _flat(loader)
    else:
        yield loaders


def _size(loader: Any) -> str:
    dataset = getattr(loader, "dataset", loader)
    length: Callable[[], int] | None = getattr(dataset, "__len__", None)
    if length is None:
        return "NA"
    try:
        return str(length())
    except (TypeError, NotImplementedError):
        return "NA"
