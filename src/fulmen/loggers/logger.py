"""What every logger offers, and the stand-ins for processes and runs that log nothing."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from fulmen.loggers.media import figure_image
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "XAxis", "mean", "merge_dicts", "rank_zero_experiment"]

XAxis = Literal["step", "batch", "sample", "epoch"]


class Logger(ABC):
    """Base of all loggers. A new one must say its name and version and log metrics and hyperparameters.

    The methods from `log_image` to `log_artifact` raise `NotImplementedError` unless a logger's tracker has the like.
    """

    LOGGER_JOIN_CHAR: ClassVar[str] = "-"
    _prefix: str | None = ""  # on the class, as loggers of users need not call `super().__init__`
    _x_axis: XAxis | None = None

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

    # ---- the x axis
    @property
    def x_axis(self) -> XAxis | None:
        """By which clock a Trainer numbers the rows of all stages.

        `"step"`: optimizer steps done, over all optimizers. `"batch"`: training batches begun, over all epochs.
        `"sample"`: training samples in these, over all ranks. `"epoch"`: number of the epoch, from 0. `None`, the
        default, numbers as Lightning does: from 0, by batches on which an optimizer step was due; the per-batch rows of
        validation and test by their own batches. A value logged under the name `step` wins over all of them.

        Example::

            logger = CSVLogger("logs")
            logger.x_axis = "sample"
        """
        return self._x_axis

    @x_axis.setter
    def x_axis(self, x_axis: XAxis | None) -> None:
        if x_axis is not None and x_axis not in get_args(XAxis):
            raise ValueError(
                f"`{type(self).__name__}.x_axis = {x_axis!r}` is no clock of a run. Choose one of {get_args(XAxis)}, or"
                " None for Lightning's numbers."
            )
        self._x_axis = x_axis

    # ---- pictures, text, tables, files
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images.

        Args:
            key: Name they are shown under.
            images: Tensors of shape (channels, height, width) or (height, width), arrays of shape (height, width,
                channels) or (height, width), Pillow images, or paths of files. Floats are from 0 to 1.
            step: Place on the x axis.
            kwargs: What the particular logger takes; a list has one entry per image, e.g. `caption=["a", "b"]`.

        Raises:
            NotImplementedError: The tracker has no images.
        """
        raise self._cannot("image")

    @rank_zero_only
    def log_figure(self, key: str, figures: Any, step: int | None = None, **kwargs: Any) -> None:
        """Record figures of matplotlib, drawn.

        Args:
            key: Name they are shown under.
            figures: A figure, or a list of them; they stay open.
            step: Place on the x axis.
            kwargs: As for `log_image`.

        Raises:
            NotImplementedError: The tracker has no images.
        """
        several = figures if isinstance(figures, (list, tuple)) else [figures]
        self.log_image(key, [figure_image(figure) for figure in several], step, **kwargs)

    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.

        Raises:
            NotImplementedError: The tracker has no texts.
        """
        raise self._cannot("text")

    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table.

        Args:
            key: Name it is shown under.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas table, in place of columns and rows.
            step: Place on the x axis.

        Raises:
            NotImplementedError: The tracker has no tables.
        """
        raise self._cannot("table")

    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Record how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers.
            step: Place on the x axis.
            bins: How many bins of equal width, where the tracker leaves the choice.

        Raises:
            NotImplementedError: The tracker has no histograms.
        """
        raise self._cannot("histogram")

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound.

        Args:
            key: Name it is shown under.
            audios: Tensors or arrays of shape (samples,) or (channels, samples) with values from -1 to 1, or paths of
                files.
            step: Place on the x axis.
            kwargs: What the particular logger takes; a list has one entry per sound. `sample_rate`, samples per second,
                is needed for tensors and arrays.

        Raises:
            NotImplementedError: The tracker has no sound.
        """
        raise self._cannot("audio")

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record film.

        Args:
            key: Name it is shown under.
            videos: Tensors or arrays of shape (frames, channels, height, width), or paths of files. Floats are from 0
                to 1.
            step: Place on the x axis.
            kwargs: What the particular logger takes; a list has one entry per film. `fps`: frames per second.

        Raises:
            NotImplementedError: The tracker has no film.
        """
        raise self._cannot("video")

    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder with the run.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: What kind of thing it is, for trackers that ask.

        Raises:
            NotImplementedError: The tracker keeps no files.
        """
        raise self._cannot("artifact")

    def _cannot(self, kind: str) -> NotImplementedError:
        name = type(self).__name__
        return NotImplementedError(
            f"`{name}.log_{kind}` cannot work: what {name} writes to has no place for this kind ({kind})."
            f" Use `{name}.experiment` for what the tracker has instead, or add a logger that keeps it in files:"
            " `CSVLogger` or `JSONLogger`."
        )

    def _prefixed(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._prefix:
            return metrics
        prefix = self._prefix + self.LOGGER_JOIN_CHAR
        return {prefix + name: value for name, value in metrics.items()}

    # ---- where files are
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

    def take_version(self, version: Any) -> None:  # noqa: B027 - optional to override
        """Go on as the run that a copy of this logger has begun in another process.

        Args:
            version: The copy's version.
        """

    # ---- the course of a run
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

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    log_figure = log_text = log_table = log_histogram = log_audio = log_video = log_artifact = log_image

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
