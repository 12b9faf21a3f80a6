"""Metrics, hyperparameters and graphs for TensorBoard."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulmen.loggers.hparams_file import write_hparams
from fulmen.loggers.logger import rank_zero_experiment
from fulmen.loggers.media import as_image, each, gif_bytes, histogram, wav_bytes
from fulmen.loggers.params import convert_params, flatten_dict, sanitize_params, to_scalar
from fulmen.loggers.versioned import VersionedLogger
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.rank_zero import rank_zero_only, rank_zero_warn
from fulmen.utilities.tree import move_data_to_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(VersionedLogger):
    """Log to event files in `<save_dir>/<name>/version_<n>[/<sub_dir>]`, with the hyperparameters in `hparams.yaml`.

    Needs the package `tensorboard`, or else `tensorboardX`.

    Args:
        save_dir: Where all experiments are kept.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder. `None` takes the next free number at first use.
        log_graph: Record the model's graph; needs `model.example_input_array`.
        default_hp_metric: Log `hp_metric = -1` with hyperparameters that come without metrics, because TensorBoard
            lists only runs that have a metric.
        prefix: Put in front of every metric's name, joined by `-`.
        sub_dir: Folder inside the version's folder.
        kwargs: Further arguments of `SummaryWriter`, e.g. `max_queue` or `flush_secs`.

    Raises:
        ModuleNotFoundError: Neither package is installed.

    Example::

        logger = TensorBoardLogger("logs", name="mnist")
        trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._writer_package = _writer_package()
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._writer_kwargs = kwargs
        self._experiment: Any = None
        self._hparams_changed = False
        self._newest_step = -1
        self._newest: list[dict[str, float]] = []  # values logged at that step
        self.hparams: dict[str, Any] = {}

    @property
    def sub_dir(self) -> str | None:
        """Folder inside the version's folder, as given."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """Folder of this run's event files."""
        if self._sub_dir is None:
            return super().log_dir
        return os.path.join(super().log_dir, os.path.expandvars(os.path.expanduser(self._sub_dir)))

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The `SummaryWriter`; the first use makes the folder and an event file."""
        if self._experiment is None:
            package = require(self._writer_package, extra="loggers", for_="TensorBoardLogger")
            self._experiment = package.SummaryWriter(log_dir=self.log_dir, **self._writer_kwargs)
            self._hparams_changed = not os.path.exists(self._hparams_file)
        writer: SummaryWriter = self._experiment
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add one value to each metric's curve.

        Args:
            metrics: Metric name to number, one-element tensor or NumPy scalar; or to a dict of those, which are drawn
                as several curves in one chart.
            step: Place on the x axis.

        Raises:
            ValueError: A value is not a scalar.
        """
        writer = self.experiment
        for name, value in self._prefixed(metrics).items():
            if isinstance(value, dict):
                curves = {_as_folder(key): _number(f"{name}/{key}", one) for key, one in value.items()}
                writer.add_scalars(name.replace(os.sep, "/"), curves, step)
            else:
                number = _number(name, value)
                writer.add_scalar(name, number, step)
                if step is not None and step >= self._newest_step:
                    self._remember(name, number, step)

    def _remember(self, name: str, value: float, step: int) -> None:
        if step > self._newest_step:
            self._newest_step, self._newest = step, []
        self._newest.append({name: value})

    # ---- pictures, text, sound; tables and files are kept as other loggers keep them
    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images; several are shown as `<key>/0`, `<key>/1` and so on.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: Of `SummaryWriter.add_image`; a list has one entry per image.
        """
        for tag, image, options in _tagged(key, images, kwargs):
            self.experiment.add_image(tag, as_image(image).numpy(), step, **{"dataformats": "HWC", **options})

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Log a text, which TensorBoard shows as Markdown.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.
        """
        self.experiment.add_text(key, text, step)

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Log how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers; those that are not finite are left out.
            step: Place on the x axis.
            bins: How many bins of equal width.
        """
        numbers = torch.as_tensor(values).detach().cpu().flatten().double()
        finite = numbers[numbers.isfinite()]
        counts, edges = histogram(finite, bins)
        extremes = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        sums = (len(finite), float(finite.sum()), float(finite.square().sum()))
        self.experiment.add_histogram_raw(key, *extremes, *sums, edges[1:], counts, step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log sound; several are shown as `<key>/0`, `<key>/1` and so on.

        Args:
            key: Name they are shown under.
            audios: As for `Logger.log_audio`; files must be WAV.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100; a list has one entry per sound.
        """
        summaries = require("tensorboard.compat.proto.summary_pb2", extra="loggers", for_="log_audio")
        for tag, audio, options in _tagged(key, audios, {"sample_rate": 44100, **kwargs}):
            content = _file_content(audio) if isinstance(audio, (str, os.PathLike)) else wav_bytes(audio, **options)
            sound = summaries.Summary.Audio(
                sample_rate=options["sample_rate"], encoded_audio_string=content, content_type="audio/wav"
            )
            summary = summaries.Summary(value=[summaries.Summary.Value(tag=tag, audio=sound)])
            self.experiment._get_file_writer().add_summary(summary, step)  # `add_audio` has one channel only

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log film as animated GIF; several are shown as `<key>/0`, `<key>/1` and so on.

        Args:
            key: Name they are shown under.
            videos: As for `Logger.log_video`; files must be GIF.
            step: Place on the x axis.
            kwargs: `fps`, frames per second, by default 4; a list has one entry per film.
        """
        summaries = require("tensorboard.compat.proto.summary_pb2", extra="loggers", for_="log_video")
        for tag, video, options in _tagged(key, videos, {"fps": 4, **kwargs}):
            content = _file_content(video) if isinstance(video, (str, os.PathLike)) else gif_bytes(video, **options)
            picture = summaries.Summary.Image(encoded_image_string=content, colorspace=3)
            summary = summaries.Summary(value=[summaries.Summary.Value(tag=tag, image=picture)])
            self.experiment._get_file_writer().add_summary(summary, step)  # `add_video` needs another package

    # ---- resuming
    def position(self) -> dict[str, Any]:
        """Return the last step that was logged, with its values."""
        if self._experiment is None:
            return {}
        position = {"log_dir": self.log_dir, "step": self._newest_step, "values": list(self._newest)}
        return {**position, "media": self.media.num_lines}

    @rank_zero_only
    def resume_at(self, position: dict[str, Any]) -> None:
        """Have TensorBoard ignore what was logged after a checkpoint of a run in the same folder.

        Curves of one chart, which were logged as a dict, are not taken back.

        Args:
            position: What `position` returned when the checkpoint was written.
        """
        if not self._is_here(position):
            return
        step = int(position["step"])
        self.experiment.close()
        package = require(self._writer_package, extra="loggers", for_="TensorBoardLogger")
        # TensorBoard drops all from this step on, so what the step itself had is written again
        purge = {**self._writer_kwargs, "purge_step": max(step, 0)}
        self._experiment = package.SummaryWriter(log_dir=self.log_dir, **purge)
        self._newest_step, self._newest = step, []
        for value in position["values"]:
            for name, number in value.items():
                self._experiment.add_scalar(str(name), float(number), step)
                self._remember(str(name), float(number), step)
        self.media.go_back(int(position.get("media", -1)))

    @rank_zero_only
    def begin_anew(self) -> None:
        """Have TensorBoard ignore what an earlier attempt has logged in the same folder."""
        _ = self.experiment
        if sum("tfevents" in name for name in os.listdir(self.log_dir)) > 1:
            self.resume_at({"log_dir": self.log_dir, "step": -1, "values": [], "media": 0})

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Record hyperparameters, for TensorBoard's HPARAMS page and for `hparams.yaml`.

        Args:
            params: Name to value; nested ones are listed as `outer/inner`.
            metrics: Results to list beside them; a single number is named `hp_metric`.
            step: Place of the metrics on the x axis; default 0.
        """
        given = convert_params(params)
        writer = self.experiment
        self.hparams.update(given)
        self._hparams_changed = True
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        self.log_metrics(metrics, 0 if step is None else step)

        summary = require(f"{self._writer_package}.summary", extra="loggers", for_="TensorBoardLogger")
        values = {name: _number(name, value) for name, value in self._prefixed(metrics).items()}
        for part in summary.hparams(sanitize_params(flatten_dict(given)), values):
            writer._get_file_writer().add_summary(part)  # `add_hparams` would start another run in a subfolder

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | tuple[Any, ...] | None = None) -> None:
        """Record the model's graph, if the logger was made with `log_graph=True`.

        Args:
            model: The model; it is traced in evaluation mode.
            input_array: Example input of its `forward`, a tensor or a tuple; default `model.example_input_array`.
        """
        if not self._log_graph:
            return
        if input_array is None:
            input_array = getattr(model, "example_input_array", None)
        if not isinstance(input_array, (Tensor, tuple)):
            rank_zero_warn(
                f"`TensorBoardLogger(log_graph=True)` cannot trace {type(model).__name__}: `example_input_array` is"
                f" {input_array!r}. Set it in the model to a tensor, or a tuple of the arguments of `forward`."
            )
            return
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        with warnings.catch_warnings():
            # `add_graph` of torch calls what torch deprecates; the user can do nothing about it
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
            self.experiment.add_graph(model, move_data_to_device(input_array, device))

    @rank_zero_only
    def save(self) -> None:
        """Write out buffered events, and `hparams.yaml` if the hyperparameters changed."""
        if self._experiment is None:
            return
        self._experiment.flush()
        if self._hparams_changed:
            write_hparams(self._hparams_file, self.hparams)
            self._hparams_changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write out everything and close the event file; a later call opens a new one in the same folder.

        Args:
            status: How the run ended.
        """
        self.save()
        if self._experiment is not None:
            self._experiment.close()

    def __getstate__(self) -> dict[str, Any]:
        """All but the open event file, so that the logger can go to other processes."""
        return {**self.__dict__, "_experiment": None}

    @property
    def _hparams_file(self) -> str:
        return os.path.join(self.log_dir, self.NAME_HPARAMS_FILE)


def _writer_package() -> str:
    if is_installed("tensorboard"):
        return "torch.utils.tensorboard"
    if is_installed("tensorboardX"):
        return "tensorboardX"
    raise ModuleNotFoundError(
        "`TensorBoardLogger` needs the package `tensorboard` or `tensorboardX`, and neither is installed."
        " Install one: pip install 'fulmen[loggers]'"
    )


def _tagged(key: str, items: list[Any], options: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for index, (item, own) in enumerate(each(key, items, options)):
        yield (f"{key}/{index}" if len(items) > 1 else key), item, own


def _file_content(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _as_folder(name: Any) -> str:
    """Name of a curve in a chart of several; each has a folder of that name, which must not lead elsewhere."""
    return str(name).replace("/", "_").replace("\\", "_")


def _number(name: str, value: Any) -> float:
    number = to_scalar(value)
    if not isinstance(number, (int, float)):
        raise ValueError(
            f"The metric {name!r} is of type {type(value).__name__}, but TensorBoard draws numbers."
            " Log a number, a one-element tensor, or a dict of those; for other things use `logger.experiment`."
        )
    return number
