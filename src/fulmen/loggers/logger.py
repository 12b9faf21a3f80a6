"""What every logger offers, and the stand-ins for processes and runs that log nothing."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "mean", "merge_dicts", "rank_zero_experiment"]


class Logger(ABC):
    """Base of all loggers. A new one must say its name and version and log metrics and hyperparameters."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Which run of the experiment this is."""

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record one row of values.

        Args:
            metrics: Metric name to value.
            step: Place on the x axis, usually the number of optimizer steps.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the settings of the run.

        Args:
            params: Name to value.
            args: Further arguments of the particular logger.
            kwargs: Further arguments of the particular logger.
        """

    @property
    def save_dir(self) -> str | None:
        """Folder given by the user, under which files are kept; `None` if the logger has none."""
        return None

    @property
    def root_dir(self) -> str | None:
        """Folder of all versions of the experiment; `None` if the logger has none."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Folder of this run; `None` if the logger has none."""
        return None

    @property
    def group_separator(self) -> str:
        """What separates a group from the metric in a name."""
        return "/"

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:  # noqa: B027 - optional to override
        """Record the graph of the model; does nothing unless a logger overrides it.

        Args:
            model: The model.
            input_array: Example input of its `forward`.
        """

    def save(self) -> None:  # noqa: B027 - optional to override
        """Write out what is buffered; does nothing unless a logger overrides it."""

    def position(self) -> dict[str, Any]:
        """Return how far the log is, as plain data for a checkpoint; empty unless a logger overrides it."""
        return {}

    def resume_at(self, position: dict[str, Any]) -> None:  # noqa: B027 - optional to override
        """Take back what was logged after a checkpoint, because a run that goes on from there logs it again.

        Called before anything is logged. A logger that writes to another place than the earlier run has nothing to take
        back. The position may come from a file of others: only the logger's own place may change on account of it.

        Args:
            position: What `position` returned when the checkpoint was written.
        """

    def begin_anew(self) -> None:  # noqa: B027 - optional to override
        """Set aside what an earlier attempt has logged to the same place: no checkpoint of it is left to go on from."""

    def finalize(self, status: str) -> None:
        """End the run.

        Args:
            status: How it ended: `"success"`, `"failed"` or `"finished"`.
        """
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:  # noqa: B027 - optional to override
        """Learn that a checkpoint was written; does nothing unless a logger overrides it.

        Args:
            checkpoint_callback: The callback that wrote it.
        """


class DummyExperiment:
    """Accepts every call and every item, and does nothing."""

    def nop(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Answer any public method."""
        if name.startswith("__"):  # copy and pickle ask for these and must hear no
            raise AttributeError(name)
        return self.nop

    def __getitem__(self, index: Any) -> DummyExperiment:
        """Itself, whatever the index."""
        return self

    def __setitem__(self, *args: Any) -> None:
        """Do nothing."""


class DummyLogger(Logger):
    """Logs nothing; stands in for the user's loggers during `fast_dev_run` and tuning.

    Any method of any logger may be called on it, and an index gives the logger itself.
    """

    def __init__(self) -> None:
        self._experiment = DummyExperiment()

    @property
    def experiment(self) -> DummyExperiment:
        """An object that accepts every call."""
        return self._experiment

    @property
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getitem__(self, index: int) -> DummyLogger:
        """Itself, whatever the index."""
        return self

    def __iter__(self) -> Iterator[DummyLogger]:
        """Itself, once."""
        yield self

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Answer any public method of any logger."""
        if name.startswith("__"):
            raise AttributeError(name)
        return DummyExperiment().nop


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make an `experiment` property whose real object exists on rank 0 only.

    Args:
        fn: The getter that makes or returns the experiment.

    Returns:
        A getter that gives a `DummyExperiment` on all other ranks.

    Example::

        @property
        @rank_zero_experiment
        def experiment(self): ...
    """

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        return fn(self) if rank_zero_only.rank == 0 else DummyExperiment()

    return experiment


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Any] | None = None,
    default_func: Callable[[Sequence[float]], float] = mean,
) -> dict[str, Any]:
    """Merge dictionaries, aggregating the values of each key.

    Args:
        dicts: The dictionaries; a key may be absent from some, and values may be dictionaries in turn.
        agg_key_funcs: Key to the function that aggregates its values; for a nested dictionary a nested mapping.
        default_func: Function for all other keys.

    Returns:
        One dictionary with every key.

    Example::

        merge_dicts([{"loss": 1.0, "n": 2}, {"loss": 3.0, "n": 2}], agg_key_funcs={"n": sum})
        # {"loss": 2.0, "n": 4}
    """
    functions = agg_key_funcs or {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in dicts for key in one):
        values = [one[key] for one in dicts if key in one]
        if isinstance(values[0], Mapping):
            merged[key] = merge_dicts(values, functions.get(key), default_func)
        else:
            merged[key] = functions.get(key, default_func)(values)
    return merged
