"""Runs of Neptune."""

from __future__ import annotations

import csv
import io
import os
import secrets
from typing import Any, Literal

from torch import nn

from fulmen.loggers.media import as_image, each, png_bytes, table, wav_bytes
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["NeptuneLogger"]


class NeptuneLogger(RunLogger):
    """Log to a run of Neptune, by its client of the 1.x line: `pip install 'fulmen[neptune]'`.

    The arguments are those of the logger that Lightning once had. The run is begun at the first use and stopped by
    `finalize`; later use goes on with it. Neptune cannot take back values: if a run is gone on with, those logged after
    the checkpoint are there twice. It leaves out values that are not finite. Offline, each part of a run that was
    stopped in between is a folder of its own; `neptune sync` puts them together.

    Args:
        api_key: Your token; by default the environment variable `NEPTUNE_API_TOKEN`. Not needed offline.
        project: `workspace/project`; by default the environment variable `NEPTUNE_PROJECT`.
        name: Name of the run as shown.
        run: A run of Neptune's client to log to. It is yours: it is not stopped, and cannot go to other processes.
        log_model_checkpoints: Which checkpoints are uploaded: False none, True those that are left when training has
            ended, `"all"` each at the time it is saved.
        prefix: Folder of the run for everything that is logged.
        run_id: Neptune's `custom_run_id`, at most 36 characters, of a run to go on with, or for a new one; made up by
            default.
        mode: `"async"`, `"sync"`, `"offline"` or `"debug"`, as in `neptune.init_run`.
        neptune_run_kwargs: Further arguments of `neptune.init_run`, e.g. `tags`, or `with_id` for a run to go on with.

    Raises:
        ModuleNotFoundError: neptune is not installed.
        ValueError: `log_model_checkpoints` is something else, or `run` comes with arguments for a new one.

    Example::

        logger = NeptuneLogger(project="me/mnist", mode="offline")
        trainer = Trainer(logger=logger)
    """

    LOGGER_JOIN_CHAR = "/"
    package = "neptune"
    extra = "neptune"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        run: Any = None,
        log_model_checkpoints: bool | Literal["all"] = True,
        prefix: str = "training",
        run_id: str | None = None,
        mode: Literal["async", "sync", "offline", "debug"] | None = None,
        **neptune_run_kwargs: Any,
    ) -> None:
        with_id = neptune_run_kwargs.get("with_id")
        super().__init__(project, with_id or run_id, prefix, log_model_checkpoints)
        new = {
            "api_key": api_key,
            "project": project,
            "name": name,
            "run_id": run_id,
            "mode": mode,
            **neptune_run_kwargs,
        }
        given = [argument for argument, value in new.items() if value is not None]
        if run is not None and given:
            raise ValueError(
                f"`NeptuneLogger(run=...)` came with {given!r}, which are for a run that the logger begins itself."
                " Leave them out, or leave `run` out."
            )
        self._api_key = api_key
        self._run_name = name
        self._given = run
        self._mode = mode
        self._settings = neptune_run_kwargs

    @property
    def run(self) -> Any:
        """The same as `experiment`."""
        return self.experiment

    @property
    def save_dir(self) -> str | None:
        """Folder of Neptune's files: `.neptune` in the working directory, or `NEPTUNE_DATA_DIRECTORY`."""
        return os.environ.get("NEPTUNE_DATA_DIRECTORY") or os.path.join(os.getcwd(), ".neptune")

    def _open(self) -> Any:
        if self._given is not None:
            return self._given
        settings = dict(self._settings)
        if "with_id" not in settings:
            self._run_id = self._run_id or f"fulmen-{secrets.token_hex(8)}"
            settings["custom_run_id"] = self._run_id
        if not self._was_open:
            settings["name"] = self._run_name
        return self._module().init_run(api_token=self._api_key, project=self._name, mode=self._mode, **settings)

    def _at(self, *names: str) -> str:
        """Place in the run."""
        return "/".join([self._prefix, *names] if self._prefix else names)

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        for name, value in metrics.items():
            run[name].append(value, step=step)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        run[self._at("hyperparams")] = params

    def _close(self, run: Any, status: str) -> None:
        if status == "failed":
            run["sys/failed"] = True
        run[self._at("status")] = status
        if self._given is None:
            run.stop()
        else:
            run.wait()

    @rank_zero_only
    def save(self) -> None:
        """Have Neptune send or write what it holds."""
        if self._run is not None:
            self._run.wait(disk_only=True)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Keep the model's text as `model/summary`.

        Args:
            model: The model.
            input_array: Not used.
        """
        self.experiment[self._at("model", "summary")] = str(model)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Add images to a series.

        Args:
            key: Its name.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: `name` and `description`; a list has one entry per image.
        """
        for image, options in each(key, images, kwargs):
            self.experiment[self._at(key)].append(self._file(png_bytes(as_image(image)), "png"), step=step, **options)

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Add a text to a series.

        Args:
            key: Its name.
            text: The text.
            step: Place on the x axis.
        """
        self.experiment[self._at(key)].append(text, step=step)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Keep a table as the CSV file `<key>/<step>`, which Neptune shows as a table.

        Args:
            key: Name it is shown under.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis; `None` is 0.
        """
        names, rows = table(columns, data, dataframe)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        self.experiment[self._at(key, str(step or 0))].upload(self._file(text.getvalue().encode(), "csv"))

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep sound as the files `<key>/<step>_<i>`.

        Args:
            key: Name it is found under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis; `None` is 0.
            kwargs: `sample_rate`, samples per second, by default 44100; a list has one entry per sound.
        """
        for index, (audio, options) in enumerate(each(key, audios, {"sample_rate": 44100, **kwargs})):
            is_path = isinstance(audio, (str, os.PathLike))
            content = os.fspath(audio) if is_path else self._file(wav_bytes(audio, **options), "wav")
            self.experiment[self._at(key, f"{step or 0}_{index}")].upload(content)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder as `artifacts/<name>`.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: Not used.
        """
        self._keep(path, "artifacts", name or os.path.basename(os.path.normpath(path)))

    def _keep(self, path: str, *place: str) -> None:
        field = self.experiment[self._at(*place)]
        if os.path.isdir(path):
            field.upload_files(os.path.join(path, "**"), wait=True)
        else:
            field.upload(path, wait=True)  # the file may be deleted when the next checkpoint is saved

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.splitext(os.path.basename(os.path.normpath(file.path)))[0]
        self._keep(file.path, "model", "checkpoints", name)
        if "best" in file.aliases:
            self.experiment[self._at("model", "best_model_path")] = file.path
            if file.score is not None:
                self.experiment[self._at("model", "best_model_score")] = file.score

    def _file(self, content: bytes, extension: str) -> Any:
        return self._module("neptune.types").File.from_content(content, extension=extension)

    def __getstate__(self) -> dict[str, Any]:
        """All but the run."""
        if self._given is not None:
            raise TypeError(
                "`NeptuneLogger(run=...)` cannot go to other processes: the run that it was given is open in this one."
                " Give the logger `project` and `run_id` instead, so that each process can go on with the run."
            )
        return super().__getstate__()
