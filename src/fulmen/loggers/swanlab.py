"""Runs of SwanLab."""

from __future__ import annotations

import io
import os
import shutil
from typing import Any, Literal

from fulmen.loggers.media import as_image, each, gif_bytes, table
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.files import ensure_writable
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["SwanLabLogger"]


class SwanLabLogger(RunLogger):
    """Log to a run of SwanLab. Needs the package `swanlab`, 0.8 or newer: `pip install 'fulmen[swanlab]'`.

    The run is begun at the first use and finished by `finalize`, as crashed if training failed; later use goes on with
    it. SwanLab cannot take back values: if a run is gone on with, it keeps what was logged after the checkpoint.
    Offline, each part of a run that was finished in between is a folder of its own; `swanlab sync` puts them together.

    Args:
        project: Project of the run; default the name of the working directory, as SwanLab does.
        workspace: Workspace of the project; default your own.
        experiment_name: Name of the run as shown; made up by default.
        description: What is shown with the run.
        log_dir: Folder of SwanLab's files; default `swanlog`.
        mode: `"online"` (cloud), `"local"` (files for `swanlab watch`), `"offline"` (files to be synced later) or
            `"disabled"`; `None` leaves it to SwanLab's configuration.
        tags: Tags of the run.
        id: A run to go on with, or the id of a new one.
        log_model: Which checkpoints are kept with the run: False none, True those that are left when training has
            ended, `"all"` each at the time it is saved.
        prefix: Put in front of every metric's name, joined by `-`.
        kwargs: Further arguments of `swanlab.init`, e.g. `settings`.

    Raises:
        ModuleNotFoundError: swanlab is not installed.
        ValueError: `log_model` is something else.

    Example::

        logger = SwanLabLogger("mnist", mode="offline")
        trainer = Trainer(logger=logger)
    """

    package = "swanlab"
    extra = "swanlab"

    def __init__(
        self,
        project: str | None = None,
        workspace: str | None = None,
        experiment_name: str | None = None,
        description: str | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        mode: Literal["online", "local", "offline", "disabled"] | None = None,
        tags: list[str] | None = None,
        *,
        id: str | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(project, id, prefix, log_model)
        self._checkpoints: dict[str, dict[str, Any]] = {}  # noted with the settings of the run
        self._folder = None if log_dir is None else os.fspath(log_dir)
        self._settings = {
            "workspace": workspace,
            "name": experiment_name,
            "description": description,
            "mode": mode,
            "tags": tags,
            "reinit": True,
            **kwargs,
        }

    @property
    def save_dir(self) -> str | None:
        """Folder of SwanLab's files, as given."""
        return self._folder

    def _open(self) -> Any:
        how = {"id": self._run_id, "resume": "allow"} if self._continues else {}
        folder = {} if self._folder is None else {"log_dir": self._folder}
        run = self._module().init(project=self._name, **{**self._settings, **folder, **how})
        self._run_id = run.id
        return run

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        run.log(metrics, step=step)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        run.config.update(params)

    def _close(self, run: Any, status: str) -> None:
        if status == "failed":
            run.finish(state="crashed", error="the run of fulmen failed")
        else:
            run.finish()

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: Further arguments of `swanlab.Image`, e.g. `caption`; a list has one entry per image.
        """
        make = self._module().Image
        pictures = each(key, images, {"file_type": "png", **kwargs})
        self._log(key, [make(as_image(image).numpy(), **options) for image, options in pictures], step)

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.
        """
        self._log(key, self._module().Text(text), step)

    @rank_zero_only
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
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis.
        """
        names, rows = table(columns, data, dataframe)
        made = self._module().echarts.Table()
        made.add(names, rows)
        self._log(key, made, step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound. Arrays and tensors need the package `soundfile`.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100, and `caption`; a list has one entry per sound.
        """
        made = []
        for audio, options in each(key, audios, kwargs):
            if isinstance(audio, (str, os.PathLike)):
                made.append(self._module().Audio(os.fspath(audio), **options))
                continue
            require("soundfile", extra="swanlab", for_="SwanLabLogger.log_audio")
            values = audio.detach().cpu().numpy() if hasattr(audio, "detach") else audio
            made.append(self._module().Audio(values, **options))
        self._log(key, made, step)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record film, as animated GIFs.

        Args:
            key: Name it is shown under.
            videos: As for `Logger.log_video`.
            step: Place on the x axis.
            kwargs: `fps`, frames per second, by default 4, and `caption`; a list has one entry per film.
        """
        made = []
        for video, options in each(key, videos, {"fps": 4, **kwargs}):
            fps = options.pop("fps")
            is_path = isinstance(video, (str, os.PathLike))
            content = os.fspath(video) if is_path else io.BytesIO(gif_bytes(video, fps))
            made.append(self._module().Video(content, **options))
        self._log(key, made, step)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder with the run.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: Not used.
        """
        self._keep(path, name or os.path.basename(os.path.normpath(path)))

    def _log(self, key: str, value: Any, step: int | None) -> None:
        self.experiment.log({key: value}, step=step)

    def _keep(self, path: str, name: str) -> None:
        """Copy it to the run's folder, as SwanLab links it and it may be deleted, and have it uploaded from there."""
        run = self.experiment
        if run.dir is None:
            return  # a disabled run keeps nothing
        base = os.path.join(os.fspath(run.dir), "kept")
        target = os.path.join(base, name)
        ensure_writable(os.path.dirname(target))
        if os.path.isdir(path):
            shutil.copytree(path, target, dirs_exist_ok=True)
            target = os.path.join(target, "**")
        else:
            shutil.copyfile(path, target)
        run.save(target, base_path=base, policy="now")

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.basename(os.path.normpath(file.path))
        self._keep(file.path, f"checkpoints/{name}")
        self._checkpoints[name] = {"aliases": ", ".join(file.aliases), **file.metadata}
        self.experiment.config.update({"checkpoints": self._checkpoints})
