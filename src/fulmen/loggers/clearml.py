"""Tasks of ClearML."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from typing import Any, Literal

from fulmen.loggers.media import as_image, each, gif_bytes, histogram, png_bytes, table, wav_bytes
from fulmen.loggers.params import flatten_dict
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["ClearMLLogger"]

_KEEP_ALL = -1  # of the pictures under a name; ClearML overwrites all but the last few by default


class ClearMLLogger(RunLogger):
    """Log to a task of ClearML. Needs the package `clearml`: `pip install 'fulmen[clearml]'`.

    The task is begun at the first use and closed by `finalize`; later use goes on with it. A metric `train/loss` is the
    series `loss` of the plot `train`. ClearML keeps the last value logged at a step, but cannot take back others.
    A failed run is marked so on the server; an offline session has no place for that.

    Args:
        project_name: Project of the task.
        task_name: Name of the task; default that of the script, as ClearML does.
        task_id: A task to go on with, without moving its iterations.
        tags: Tags of a new task.
        output_uri: Where artifacts and checkpoints are kept; default as the server says.
        offline: True keeps the task in a local folder, to be sent later by `Task.import_offline_session`; it holds for
            all tasks of the process. `None` leaves it to ClearML's configuration.
        log_model: Which checkpoints are kept as artifacts of the task: False none, True those that are left when
            training has ended, `"all"` each at the time it is saved.
        prefix: Put in front of every metric's name, joined by `-`.
        kwargs: Further arguments of `Task.init`. `auto_connect_frameworks` is False by default: this logger reports,
            and ClearML would report the same again.

    Raises:
        ModuleNotFoundError: clearml is not installed.
        ValueError: `log_model` is something else.

    Example::

        logger = ClearMLLogger("mnist", "first try", offline=True)
        trainer = Trainer(logger=logger)
    """

    package = "clearml"
    extra = "clearml"

    def __init__(
        self,
        project_name: str | None = None,
        task_name: str | None = None,
        *,
        task_id: str | None = None,
        tags: list[str] | None = None,
        output_uri: str | bool | None = None,
        offline: bool | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(project_name, task_id, prefix, log_model)
        self._task_name = task_name
        self._tags = tags
        self._output_uri = output_uri
        self._offline = offline
        self._settings = {"auto_connect_frameworks": False, **kwargs}

    @property
    def task(self) -> Any:
        """The same as `experiment`: ClearML's `Task`."""
        return self.experiment

    def _open(self) -> Any:
        clearml = self._module()
        if self._offline is not None:
            clearml.Task.set_offline(self._offline)
        settings = dict(self._settings)
        if self._continues:
            # the number is the offset of iterations; by default they go on after the last one
            settings.update(reuse_last_task_id=self._run_id, continue_last_task=0)
        else:
            settings.setdefault("reuse_last_task_id", False)
            settings["tags"] = self._tags
        task = clearml.Task.init(
            project_name=self._name, task_name=self._task_name, output_uri=self._output_uri, **settings
        )
        self._run_id = task.id
        return task

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        report = run.get_logger().report_scalar
        for name, value in metrics.items():
            title, _, series = name.rpartition("/")
            report(title or series, series, value, step)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        run.update_parameters({f"General/{name}": value for name, value in flatten_dict(params).items()})

    def _close(self, run: Any, status: str) -> None:
        if status == "failed":
            run.flush(wait_for_uploads=True)
            run.mark_failed(status_reason="the run of fulmen failed")
        run.close()

    @rank_zero_only
    def save(self) -> None:
        """Have ClearML send what it holds, in the background."""
        if self._run is not None:
            self._run.get_logger().flush()

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images as debug samples.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: `series`: what tells them apart under the name, by default their numbers.
        """
        for index, (image, options) in enumerate(each(key, images, kwargs)):
            self._sample(key, options.pop("series", str(index)), step, png_bytes(as_image(image)), ".png", **options)

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text as a debug sample.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.
        """
        self._sample(key, "0", step, text.encode(), ".txt")

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table among the plots.

        Args:
            key: Name it is shown under.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis.
        """
        names, rows = table(columns, data, dataframe)
        self.experiment.get_logger().report_table(key, key, iteration=step, table_plot=[names, *rows])

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Record how values are distributed, among the plots.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers.
            step: Place on the x axis.
            bins: How many bins of equal width.
        """
        counts, edges = histogram(values, bins)
        centers = [f"{(low + high) / 2:.6g}" for low, high in pairwise(edges)]
        self.experiment.get_logger().report_histogram(key, key, counts, iteration=step, xlabels=centers)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound as debug samples.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100; a list has one entry per sound.
        """
        for index, (audio, options) in enumerate(each(key, audios, {"sample_rate": 44100, **kwargs})):
            self._sample(key, str(index), step, *_content(audio, wav_bytes, ".wav", options))

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record film as debug samples.

        Args:
            key: Name it is shown under.
            videos: As for `Logger.log_video`.
            step: Place on the x axis.
            kwargs: `fps`, frames per second, by default 4; a list has one entry per film.
        """
        for index, (video, options) in enumerate(each(key, videos, {"fps": 4, **kwargs})):
            self._sample(key, str(index), step, *_content(video, gif_bytes, ".gif", options))

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder as an artifact of the task; a folder becomes an archive.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: Kept with it.
        """
        self._keep(path, name or os.path.basename(os.path.normpath(path)), {"type": type})

    def _sample(self, key: str, series: str, step: int | None, content: bytes, suffix: str, **options: Any) -> None:
        options = {"max_history": _KEEP_ALL, **options}
        stream = io.BytesIO(content)
        report = self.experiment.get_logger().report_media
        report(key, series, iteration=step, stream=stream, file_extension=suffix, **options)

    def _keep(self, path: str, name: str, metadata: dict[str, Any]) -> None:
        # waits, as the file may be deleted when the next checkpoint is saved
        self.experiment.upload_artifact(name, artifact_object=path, metadata=metadata, wait_on_upload=True)

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.splitext(os.path.basename(os.path.normpath(file.path)))[0]
        self._keep(file.path, name, {**file.metadata, "aliases": ", ".join(file.aliases)})


def _content(item: Any, encode: Any, suffix: str, options: dict[str, Any]) -> tuple[bytes, str]:
    """Return bytes and suffix of a file, or of values written as one."""
    if not isinstance(item, (str, os.PathLike)):
        return encode(item, **options), suffix
    with open(item, "rb") as file:
        return file.read(), os.path.splitext(os.fspath(item))[1]
