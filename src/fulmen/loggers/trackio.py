"""Runs of Trackio."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from fulmen.loggers.media import as_image, each, gif_bytes, histogram, png_bytes, saved, table, wav_bytes
from fulmen.loggers.params import flatten_dict
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["TrackioLogger"]

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")  # of artifacts
_RESUMES = ("never", "allow", "must")


class TrackioLogger(RunLogger):
    """Log to a run of Trackio. Needs the package `trackio`: `pip install 'fulmen[trackio]'`.

    The run is begun at the first use and finished by `finalize`; later use goes on with it. Trackio cannot take back
    values: if a run is gone on with, those logged after the checkpoint are there twice. It does not note that a run
    failed. Files are in `~/.cache/huggingface/trackio`, or where the environment variable `TRACKIO_DIR` says.

    Args:
        project: Project of the run.
        name: Name of the run; made up by default.
        group: What the run is grouped under.
        space_id: A Space of Hugging Face, or `TRACKIO_SPACE_ID`, to log to in place of this machine.
        resume: `"never"` begins a new run, `"must"` goes on with the newest of this name, `"allow"` does what applies.
        log_model: Which checkpoints are kept as artifacts of the project: False none, True those that are left when
            training has ended, `"all"` each at the time it is saved.
        prefix: Put in front of every metric's name, joined by `-`.
        kwargs: Further arguments of `trackio.init`.

    Raises:
        ModuleNotFoundError: trackio is not installed.
        ValueError: `resume` or `log_model` is none of those, or a run to go on with has no name.

    Example::

        logger = TrackioLogger("mnist")
        trainer = Trainer(logger=logger)
    """

    package = "trackio"
    extra = "trackio"

    def __init__(
        self,
        project: str = "fulmen",
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        resume: Literal["never", "allow", "must"] = "never",
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(project, name, prefix, log_model)
        if resume not in _RESUMES or (resume == "must" and name is None):
            raise ValueError(
                f"`TrackioLogger(name={name!r}, resume={resume!r})` does not say which run is meant. Choose 'never',"
                " 'allow' or 'must', the latter with the name of the run."
            )
        self._continues = False
        self._resume = resume
        self._settings = {"embed": False, **kwargs, "group": group, "space_id": space_id}
        self._params: dict[str, Any] = dict(kwargs.get("config") or {})
        self._has_sent = False  # a row of the open run, with which the settings go

    def _open(self) -> Any:
        resume = "must" if self._continues else self._resume
        settings = {**self._settings, "config": None}
        run = self._module().init(project=self._name, name=self._run_id, resume=resume, **settings)
        self._run_id = run.name
        if resume != "never":
            self._params = {**self._earlier_params(run), **self._params}
        run.config.update(self._params)
        self._has_sent = False
        return run

    def _earlier_params(self, run: Any) -> dict[str, Any]:
        """Settings of a run that is gone on with: Trackio replaces them all by those of the first new row."""
        if self._settings["space_id"] or os.environ.get("TRACKIO_SPACE_ID"):
            return {}  # known there only
        storage = self._module("trackio.sqlite_storage").SQLiteStorage
        stored = storage.get_run_config(run.project, run.name, run_id=run.id) or {}
        return {name: value for name, value in stored.items() if not name.startswith("_")}

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        self.experiment.log(values, step=step)
        self._has_sent = True

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        self._log(metrics, step)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        flat = flatten_dict(params)  # Trackio shows the columns of one level
        if all(name in self._params and self._params[name] == value for name, value in flat.items()):
            return
        self._params.update(flat)
        if self._has_sent:  # settings go with the first row that is sent
            self._run, _ = None, run.finish()
            _ = self.experiment
        else:
            run.config.update(self._params)

    def _close(self, run: Any, status: str) -> None:
        if self._params and not self._has_sent:
            run.log({})
        run.finish()

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images; the second and later of a call are named `<key>/1` and so on.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: `caption`; a list has one entry per image.
        """
        self._files(
            "Image", key, step, [(_png(image), ".png", options) for image, options in each(key, images, kwargs)]
        )

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text, which is shown as Markdown.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.
        """
        self._log({key: self._module().Markdown(text)}, step)

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
        self._log({key: self._module().Table(columns=names, data=rows)}, step)

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Record how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers.
            step: Place on the x axis.
            bins: How many bins of equal width.
        """
        self._log({key: self._module().Histogram(np_histogram=histogram(values, bins))}, step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound; the second and later of a call are named `<key>/1` and so on.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100, and `caption`; a list has one entry per sound.
        """
        files = []
        for audio, options in each(key, audios, {"sample_rate": 44100, **kwargs}):
            rate = options.pop("sample_rate")
            files.append((audio if _is_path(audio) else wav_bytes(audio, rate), ".wav", options))
        self._files("Audio", key, step, files)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record film, as animated GIFs; the second and later of a call are named `<key>/1` and so on.

        Args:
            key: Name it is shown under.
            videos: As for `Logger.log_video`.
            step: Place on the x axis.
            kwargs: `fps`, frames per second, by default 4, and `caption`; a list has one entry per film.
        """
        files = []
        for video, options in each(key, videos, {"fps": 4, **kwargs}):
            fps = options.pop("fps")
            files.append((video if _is_path(video) else gif_bytes(video, fps), ".gif", options))
        self._files("Video", key, step, files)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder as an artifact of the project.

        Args:
            path: Local path.
            name: What it is called there, default its own name; characters that Trackio does not allow become `-`.
            type: What kind of thing it is.
        """
        named = _NOT_IN_NAMES.sub("-", name or os.path.basename(os.path.normpath(path)))
        self.experiment.log_artifact(path, name=named, type=type)

    def _files(self, kind: str, key: str, step: int | None, files: list[tuple[Any, str, dict[str, Any]]]) -> None:
        make = getattr(self._module(), kind)
        for index, (content, suffix, options) in enumerate(files):
            name = f"{key}/{index}" if index else key
            if isinstance(content, bytes):
                with saved(content, suffix) as path:
                    self._log({name: make(path, **options)}, step)
            else:
                self._log({name: make(os.fspath(content), **options)}, step)

    def _upload(self, file: CheckpointFile) -> None:
        name = _NOT_IN_NAMES.sub("-", os.path.basename(os.path.normpath(file.path)))
        artifact = self._module().Artifact(name=name, type="model", metadata=file.metadata)
        (artifact.add_dir if os.path.isdir(file.path) else artifact.add_file)(file.path)
        self.experiment.log_artifact(artifact, aliases=file.aliases)


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _png(image: Any) -> bytes:
    return png_bytes(as_image(image))
