"""Experiments of Comet."""

from __future__ import annotations

import csv
import io
import os
from typing import Any, Literal

from torch import nn

from fulmen.loggers.media import as_image, each, png_bytes, saved, table, wav_bytes
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["CometLogger"]

_MODES = (None, "get", "create", "get_or_create")


class CometLogger(RunLogger):
    """Log to an experiment of Comet. Needs the package `comet_ml`, 3.49 or newer: `pip install 'fulmen[comet]'`.

    The experiment is started at the first use and ended by `finalize`; later use goes on with it. How it ended is
    logged as `status`, under "other". Comet cannot take back values: if an experiment is gone on with, those logged
    after the checkpoint are there twice. Offline, each part of an experiment that was closed in between is an archive
    of its own; `comet upload` puts them together.

    Args:
        api_key: Key of your account; by default from Comet's configuration, e.g. `COMET_API_KEY`. Not needed offline.
        workspace: Workspace of the project; default that of the key.
        project: Project of the experiment; default Comet's `Uncategorized`.
        experiment_key: Key of an experiment to go on with, or to be given to a new one: 32 to 50 letters and digits.
        mode: `"get"` goes on with an experiment, `"create"` begins one, `"get_or_create"`, Comet's default, does what
            applies.
        online: False writes archives on disk, to be uploaded later; `None` leaves it to Comet's configuration.
        prefix: Put in front of every metric's name, joined by `-`.
        log_model: Which checkpoints are kept as models of the experiment: False none, True those that are left when
            training has ended, `"all"` each at the time it is saved.
        kwargs: Further settings of `comet_ml.ExperimentConfig`, e.g. `name`, `tags`, `offline_directory`.

    Raises:
        ModuleNotFoundError: comet_ml is not installed.
        ValueError: `mode` or `log_model` is none of those.

    Example::

        logger = CometLogger(project="mnist", online=False, offline_directory="comet")
        trainer = Trainer(logger=logger)
    """

    package = "comet_ml"
    extra = "comet"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        log_model: bool | Literal["all"] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(project, experiment_key, prefix, log_model)
        if mode not in _MODES:
            raise ValueError(
                f"`CometLogger(mode={mode!r})` is no way to start an experiment. Choose 'get' (go on with one),"
                " 'create' (begin one), 'get_or_create' or None."
            )
        self._api_key = api_key
        self._workspace = workspace
        self._mode: str | None = mode
        self._online = online
        self._config = kwargs

    @property
    def save_dir(self) -> str | None:
        """Folder of offline archives, as given or configured, e.g. by `COMET_OFFLINE_DIRECTORY`; else `None`."""
        folder = self._module().ExperimentConfig(**self._config).offline_directory
        return None if folder is None else os.fspath(folder)

    def _open(self) -> Any:
        comet = self._module()
        mode = "get" if self._was_open else self._mode
        experiment = comet.start(
            api_key=self._api_key,
            workspace=self._workspace,
            project_name=self._name,
            experiment_key=self._run_id,
            mode=mode,
            online=self._online,
            experiment_config=comet.ExperimentConfig(**self._config),
        )
        if not self._was_open:
            experiment.log_other("Created from", "fulmen")
        self._run_id = experiment.get_key()
        return experiment

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        run.log_metrics(metrics, step=step, epoch=epoch)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        run.log_parameters(params, nested_support=True)

    def _close(self, run: Any, status: str) -> None:
        run.log_other("status", status)
        run.end()

    @rank_zero_only
    def save(self) -> None:
        """Have Comet send what it holds, if the experiment is online."""
        if self._run is not None:
            self._run.flush()

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the model's text as the experiment's graph.

        Args:
            model: The model.
            input_array: Not used.
        """
        self.experiment.set_model_graph(model)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: Further arguments of `Experiment.log_image`; a list has one entry per image.
        """
        for image, options in each(key, images, kwargs):
            png = io.BytesIO(png_bytes(as_image(image)))
            self.experiment.log_image(png, **{"name": key, "step": step, "image_format": "png", **options})

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text; its name is in the metadata, as Comet's texts have none.

        Args:
            key: Name it is found under.
            text: The text.
            step: Place on the x axis.
        """
        self.experiment.log_text(text, step=step, metadata={"name": key})

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table as the asset `<key>.csv`.

        Args:
            key: Name it is shown under.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis.
        """
        names, rows = table(columns, data, dataframe)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        text.seek(0)
        self.experiment.log_asset(text, file_name=f"{key}.csv", step=step)  # `log_table` takes no step

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Record how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers.
            step: Place on the x axis.
            bins: Not used: Comet chooses the bins.
        """
        numbers = values.detach().cpu().flatten().tolist() if hasattr(values, "detach") else values
        self.experiment.log_histogram_3d(numbers, name=key, step=step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100, and further arguments of
                `Experiment.log_audio`; a list has one entry per sound.
        """
        for audio, options in each(key, audios, {"sample_rate": 44100, **kwargs}):
            rate = options.pop("sample_rate")
            named = {"file_name": f"{key}.wav", "step": step, **options}
            if isinstance(audio, (str, os.PathLike)):
                self.experiment.log_audio(os.fspath(audio), **named)
                continue
            with saved(wav_bytes(audio, rate), ".wav") as path:
                self.experiment.log_audio(path, copy_to_tmp=True, **named)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder as assets of the experiment.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: Not used: Comet tells assets by their names.
        """
        named = name or os.path.basename(os.path.normpath(path))
        if os.path.isdir(path):
            for folder, _, files in os.walk(path):
                for file in files:
                    full = os.path.join(folder, file)
                    self.experiment.log_asset(full, file_name=f"{named}/{os.path.relpath(full, path)}")
        else:
            self.experiment.log_asset(path, file_name=named)

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.basename(os.path.normpath(file.path))
        metadata = {**file.metadata, "aliases": ", ".join(file.aliases)}
        self.experiment.log_model(f"checkpoint {name}", file.path, overwrite=True, metadata=metadata)
        self.experiment.flush()  # the file may be deleted when the next one is saved
