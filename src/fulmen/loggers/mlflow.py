"""Runs of MLflow."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fulmen.loggers.hparams_file import hparams_text
from fulmen.loggers.logger import Logger, rank_zero_experiment
from fulmen.loggers.media import as_image, each, gif_bytes, table, wav_bytes
from fulmen.loggers.params import convert_params, flatten_dict, sanitize_params, to_scalar
from fulmen.loggers.tracker import CheckpointFile, CheckpointUploads, check_installed
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["MLFlowLogger"]

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_/. -]+")
_LONGEST_VALUE = 250  # of a parameter, in all versions of MLflow's servers
_MOST_PARAMS = 100  # in one request
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLFlowLogger(Logger):
    """Log to a run of MLflow. Needs the package `mlflow`: `pip install 'fulmen[mlflow]'`.

    The run is started at the first use and ended with each `fit`, `test` and so on; later use continues it. MLflow
    cannot take back values: if a run is resumed (`run_id=...`), those logged after the checkpoint are there twice.

    Args:
        experiment_name: Experiment of the run; made if absent.
        run_name: Name of the run as shown; MLflow makes one up by default.
        tracking_uri: Address of a server, or of a database such as `sqlite:///runs.db`; by default the environment
            variable `MLFLOW_TRACKING_URI`, or else the database `mlflow.db` in `save_dir` (MLflow refuses to keep runs
            in plain files unless `MLFLOW_ALLOW_FILE_STORE` is set; `tracking_uri="file:./mlruns"` is for that).
        tags: Tags of the run.
        save_dir: Local folder of the database and of artifacts if `tracking_uri` is not given.
        log_model: Keep checkpoints as artifacts in `model/checkpoints`: False never, True when training has ended, or
            "all" at each save. Beside each, `aliases.txt` says whether it was the latest or the best when it went up.
        prefix: Put in front of every metric's name, joined by `-`.
        artifact_location: Where a new experiment keeps its artifacts.
        run_id: A run to continue.
        synchronous: False sends values in the background; `None` leaves it to MLflow.

    Raises:
        ModuleNotFoundError: mlflow is not installed.

    Example::

        logger = MLFlowLogger("mnist", tracking_uri="http://localhost:5000")
        trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = "./mlruns",
        log_model: Literal[True, False, "all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        check_installed("mlflow", extra="mlflow", for_="MLFlowLogger")
        self._uploads = CheckpointUploads(log_model, "MLFlowLogger")
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._folder = "./mlruns" if save_dir is None else os.fspath(save_dir)
        self.tags = tags
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._run_id = run_id
        self._synchronous = synchronous
        self._experiment_id: str | None = None
        self._client: Any = None
        self._is_running = False
        self._params: dict[str, str] = {}  # the run's, which cannot change

    # ---- the run
    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The client of MLflow; the first use starts the run, or continues the one that was given."""
        if not self._is_running:
            self._start()
        client: MlflowClient = self._client
        return client

    def _start(self) -> None:
        if self._client is None:
            tracking = require("mlflow.tracking", extra="mlflow", for_="MLFlowLogger")
            if self._tracking_uri is None:
                os.makedirs(self._folder, exist_ok=True)
            database = f"sqlite:///{os.path.join(self._folder, 'mlflow.db')}"
            self._client = tracking.MlflowClient(self._tracking_uri or database)
        if self._run_id is None:
            self._experiment_id = self._find_experiment()
            registry = require("mlflow.tracking.context.registry", extra="mlflow", for_="MLFlowLogger")
            tags = registry.resolve_tags(self.tags)  # also who runs it, and from where
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=self._run_name)
            self._run_id = run.info.run_id
        else:
            run = self._client.get_run(self._run_id)
            self._experiment_id = run.info.experiment_id
            self._params = dict(run.data.params)
            if run.info.status != "RUNNING":
                self._client.update_run(self._run_id, "RUNNING")
        self._is_running = True

    def _find_experiment(self) -> str:
        known = self._client.get_experiment_by_name(self._experiment_name)
        if known is not None and known.lifecycle_stage != "deleted":
            return str(known.experiment_id)
        location = self._artifact_location
        if location is None and self._tracking_uri is None:
            location = Path(self._folder, "artifacts").absolute().as_uri()
        return str(self._client.create_experiment(self._experiment_name, artifact_location=location))

    @property
    def run_id(self) -> str | None:
        """Id of the run; on rank 0 it is started if it has none. An ended run stays ended."""
        if self._run_id is None:
            _ = self.experiment
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment; on rank 0 the run is started if it was not. An ended run stays ended."""
        if self._experiment_id is None:
            _ = self.experiment
        return self._experiment_id

    @property
    def name(self) -> str | None:
        """Id of the experiment."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """Id of the run."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """Local folder of runs; `None` if `tracking_uri` names a server or a database."""
        if self._tracking_uri is None:
            return self._folder
        return self._tracking_uri[len("file:") :] if self._tracking_uri.startswith("file:") else None

    def take_version(self, version: str | None) -> None:
        """Go on with the run that a copy of this logger has begun in another process.

        Args:
            version: Its id.
        """
        self._run_id = version

    # ---- numbers and settings
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one value to each metric.

        Args:
            metrics: Metric name to number, one-element tensor or NumPy scalar; text is left out with a warning. What
                MLflow does not allow in a name is left out of it, with a warning.
            step: Place on the x axis; `None` is 0.
        """
        entities = require("mlflow.entities", extra="mlflow", for_="MLFlowLogger")
        now_ms = int(time.time() * 1000)
        values = []
        for given, metric in self._prefixed(metrics).items():
            value = to_scalar(metric)
            if isinstance(value, str):
                rank_zero_warn(
                    f"`MLFlowLogger` leaves out the metric {given!r}: it is a text, and MLflow keeps numbers."
                )
                continue
            name = _NOT_IN_NAMES.sub("", given)
            if name != given:
                rank_zero_warn(
                    f"MLflow allows letters, digits, `_`, `/`, `.`, `-` and spaces in a metric's name, so {given!r} is"
                    f" logged as {name!r}."
                )
            values.append(entities.Metric(name, float(value), now_ms, step or 0))
        self.experiment.log_batch(self._run, metrics=values, **self._how)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add parameters. MLflow keeps the first value of each; another one is left out with a warning.

        Args:
            params: Name to value; nested ones are named `outer/inner`, values longer than 250 characters are cut.
        """
        entities = require("mlflow.entities", extra="mlflow", for_="MLFlowLogger")
        client = self.experiment
        flat = sanitize_params(flatten_dict(convert_params(params)))
        given = {_NOT_IN_NAMES.sub("", name): str(value)[:_LONGEST_VALUE] for name, value in flat.items()}
        changed = [name for name, value in given.items() if self._params.get(name, value) != value]
        if changed:
            rank_zero_warn(
                f"The run {self._run!r} of MLflow keeps the earlier values of the parameters {changed!r}: they cannot"
                " be changed there. Start a new run, without `run_id`, to log the new ones."
            )
        new = [entities.Param(name, value) for name, value in given.items() if name not in self._params]
        self._params.update({param.key: param.value for param in new})
        for start in range(0, len(new), _MOST_PARAMS):
            client.log_batch(self._run, params=new[start : start + _MOST_PARAMS], **self._how)

    # ---- pictures, text, tables, files
    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images, which MLflow shows by step.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis; `None` is 0.
            kwargs: Further arguments of `MlflowClient.log_image`; a list has one entry per image.
        """
        for image, options in each(key, images, kwargs):
            pixels = as_image(image).numpy()
            self.experiment.log_image(self._run, pixels, key=key, step=step or 0, **{**self._how, **options})

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Keep a text as the artifact `text/<key>/<step>.txt`.

        Args:
            key: Its name.
            text: The text.
            step: Place on the x axis; `None` is 0.
        """
        self.experiment.log_text(self._run, text, f"text/{key}/{step or 0}.txt")

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table as the artifact `table/<key>/<step>.json`, which MLflow shows as a table.

        Args:
            key: Its name.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis; `None` is 0.
        """
        names, rows = table(columns, data, dataframe)
        content = {name: [row[index] for row in rows] for index, name in enumerate(names)}
        self.experiment.log_table(self._run, content, f"table/{key}/{step or 0}.json")

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep sound as the artifacts `audio/<key>/<step>_<i>.wav`.

        Args:
            key: Its name.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis; `None` is 0.
            kwargs: `sample_rate`, samples per second, by default 44100; a list has one entry per sound.
        """
        for index, (audio, options) in enumerate(each(key, audios, {"sample_rate": 44100, **kwargs})):
            content = audio if isinstance(audio, (str, os.PathLike)) else wav_bytes(audio, **options)
            self._keep("audio", key, f"{step or 0}_{index}", content, ".wav")

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep film as the artifacts `video/<key>/<step>_<i>.gif`.

        Args:
            key: Its name.
            videos: As for `Logger.log_video`.
            step: Place on the x axis; `None` is 0.
            kwargs: `fps`, frames per second, by default 4; a list has one entry per film.
        """
        for index, (video, options) in enumerate(each(key, videos, {"fps": 4, **kwargs})):
            content = video if isinstance(video, (str, os.PathLike)) else gif_bytes(video, **options)
            self._keep("video", key, f"{step or 0}_{index}", content, ".gif")

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder as an artifact.

        Args:
            path: Local path.
            name: What it is called; default its own name.
            type: Not used: artifacts of MLflow have no types.
        """
        self._keep_file(path, name or os.path.basename(os.path.normpath(path)), "")

    def _keep(self, kind: str, key: str, stem: str, content: bytes | str | os.PathLike[str], suffix: str) -> None:
        folder = f"{kind}/{key}"
        if not isinstance(content, bytes):
            path = os.fspath(content)
            self._keep_file(path, stem + os.path.splitext(path)[1], folder)
            return
        with tempfile.TemporaryDirectory() as temporary:
            path = os.path.join(temporary, stem + suffix)
            with open(path, "wb") as file:
                file.write(content)
            self.experiment.log_artifact(self._run, path, folder)

    def _keep_file(self, path: str, name: str, folder: str) -> None:
        """Upload under another name, which MLflow takes from the path."""
        if os.path.isdir(path):
            self.experiment.log_artifacts(self._run, path, f"{folder}/{name}" if folder else name)
            return
        with tempfile.TemporaryDirectory() as temporary:
            renamed = path
            if os.path.basename(path) != name:
                renamed = os.path.join(temporary, name)
                shutil.copyfile(path, renamed)
            self.experiment.log_artifact(self._run, renamed, folder or None)

    # ---- checkpoints, the end
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload a checkpoint if one is due.

        Args:
            checkpoint_callback: The callback that wrote it.
        """
        for file in self._uploads.due(checkpoint_callback):
            self._upload(file)

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.splitext(os.path.basename(os.path.normpath(file.path)))[0]
        folder = f"model/checkpoints/{name}"
        self._keep_file(file.path, os.path.basename(os.path.normpath(file.path)), folder)
        self.experiment.log_text(self._run, hparams_text(file.metadata)[0], f"{folder}/metadata.yaml")
        self.experiment.log_text(self._run, str(file.aliases), f"{folder}/aliases.txt")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Upload the checkpoints that are due at the end, and end the run.

        Args:
            status: How it ended: `"success"`, `"failed"` or `"finished"`.
        """
        if not self._is_running:
            return
        if status == "success":
            for file in self._uploads.rest():
                self._upload(file)
        if self._synchronous is False:
            require("mlflow", extra="mlflow", for_="MLFlowLogger").flush_async_logging()
        self._client.set_terminated(self._run_id, _STATUS[status])
        self._is_running = False

    @property
    def _run(self) -> str:
        _ = self.experiment
        return str(self._run_id)

    @property
    def _how(self) -> dict[str, Any]:
        return {} if self._synchronous is None else {"synchronous": self._synchronous}

    def __getstate__(self) -> dict[str, Any]:
        """All but the connection, so that the logger can go to other processes."""
        return {**self.__dict__, "_client": None, "_is_running": False}
