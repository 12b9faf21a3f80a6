"""Runs on Weights & Biases."""

from __future__ import annotations

import html
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from fulmen.loggers.logger import Logger, rank_zero_experiment
from fulmen.loggers.media import as_image, each, gif_bytes, histogram, saved, wav_bytes
from fulmen.loggers.params import as_mapping, convert_params, qualified_name, to_scalar
from fulmen.loggers.tracker import CheckpointFile, CheckpointUploads, check_installed
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.rank_zero import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbLogger"]

_STEP = "trainer/global_step"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.\-]+")
_MOST_BINS = 512


class WandbLogger(Logger):
    """Log to a run of Weights & Biases. Needs the package `wandb`: `pip install 'fulmen[wandb]'`.

    The run is started at the first use and stays open after `Trainer.fit`, so that a test can follow; it ends with the
    program, or by `wandb.finish()`. If training fails it is ended as failed. Later use continues the same run.

    The x axis is the metric `trainer/global_step`. A run that is resumed (`id=...`) is continued, but W&B cannot take
    back rows: those logged after the checkpoint are there twice. To drop them, rewind the run at its server by
    `WandbLogger(resume=None, resume_from="<id>?_step=<n>")`.

    Args:
        name: Name of the run as shown; W&B makes one up by default.
        save_dir: Local folder of runs, in which W&B makes `wandb`.
        version: Same as `id`, for symmetry with other loggers.
        offline: Write to `save_dir` only; `wandb sync` uploads later.
        dir: Same as `save_dir`, and wins.
        id: Unique id of the run; one that exists is continued.
        anonymous: Log without an account, where W&B still has this.
        project: Project of the run; by default the environment variable `WANDB_PROJECT`, or else `lightning_logs`.
        log_model: Upload checkpoints as artifacts: False never, True when training has ended, "all" at each save. The
            newest has the alias `latest`, the best `best`.
        experiment: A run that was started by `wandb.init`.
        prefix: Put in front of every metric's name, joined by `-`.
        checkpoint_name: Name of the artifact; default `model-<id>`.
        add_file_policy: "mutable" copies a checkpoint before it is uploaded, "immutable" does not: then it must not
            change or be deleted meanwhile.
        kwargs: Further arguments of `wandb.init`, e.g. `group`, `tags` or `entity`.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        MisconfigurationException: `offline` and `log_model` exclude each other.

    Example::

        logger = WandbLogger(project="mnist", log_model="all")
        trainer = Trainer(logger=logger)
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: wandb.Run | None = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        check_installed("wandb", extra="wandb", for_="WandbLogger")
        self._uploads = CheckpointUploads(log_model, "WandbLogger")
        if offline and log_model:
            raise MisconfigurationException(
                f"`WandbLogger(log_model={log_model!r}, offline=True)` cannot upload checkpoints without a connection."
                " Choose `log_model=False`, or set the environment variable WANDB_MODE=offline in place of `offline`:"
                " then `wandb sync` uploads them later."
            )
        self._prefix = prefix
        self._offline = offline
        self._experiment: Any = experiment
        self._is_configured = False
        self._checkpoint_name = checkpoint_name
        self.add_file_policy = add_file_policy
        self._init: dict[str, Any] = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": os.fspath(save_dir if dir is None else dir),
            "id": version or id,
            "resume": "allow",
            **({} if anonymous is None else {"anonymous": "allow" if anonymous else None}),
            **kwargs,
        }
        self._attach_id: str | None = None  # of the run that another process has started

    # ---- the run
    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """The run; the first use starts it, or takes the one that is running in this process."""
        if self._experiment is None:
            self._experiment = self._start()
        run: wandb.Run = self._experiment
        if not self._is_configured:
            self._is_configured = True
            self._init["id"] = run.id
            if getattr(run, "define_metric", None):
                run.define_metric(_STEP)
                run.define_metric("*", step_metric=_STEP, step_sync=True)
        return run

    def _start(self) -> Any:
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        if wandb.run is not None:
            rank_zero_warn(
                f"A run of W&B, {wandb.run.id!r}, is in progress in this process, and `WandbLogger` logs to it. If you"
                " want another one, call `wandb.finish()` before."
            )
            return wandb.run
        if self._attach_id is not None and hasattr(wandb, "attach"):
            return wandb.attach(self._attach_id)
        os.makedirs(self._init["dir"], exist_ok=True)
        return wandb.init(**self._init, **({"mode": "offline"} if self._offline else {}))

    @property
    def name(self) -> str | None:
        """Name of the project."""
        project: str | None = self._init["project"]
        return project

    @property
    def version(self) -> str | None:
        """Id of the run; `None` before it has one."""
        id: str | None = self._init["id"]
        return id

    @property
    def save_dir(self) -> str:
        """Local folder of runs."""
        folder: str = self._init["dir"]
        return folder

    def take_version(self, version: str | None) -> None:
        """Go on with the run that a copy of this logger has begun in another process.

        Args:
            version: Its id.
        """
        self._init["id"] = version

    # ---- numbers and settings
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row.

        Args:
            metrics: Metric name to number, one-element tensor or NumPy scalar; objects of W&B pass.
            step: Place on the x axis; `None` stays where the last row was.
        """
        row = {name: to_scalar(value) for name, value in self._prefixed(metrics).items()}
        self.experiment.log(row if step is None else {**row, _STEP: step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the config of the run.

        Args:
            params: Name to value, nested as it is.
        """
        self.experiment.config.update(_plain(convert_params(params)), allow_val_change=True)

    @rank_zero_only
    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Have W&B record the gradients or parameters of a model.

        Args:
            model: The model.
            log: "gradients", "parameters", "all" or `None`.
            log_freq: Every so many batches.
            log_graph: Record the graph, too.
        """
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    # ---- pictures, text, tables, files
    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log images.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`, or whatever `wandb.Image` takes.
            step: Place on the x axis.
            kwargs: Of `wandb.Image`, e.g. `caption`, `masks`, `boxes`: one entry per image.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        pictures = [wandb.Image(_pixels(image), **options) for image, options in each(key, images, kwargs)]
        self.log_metrics({key: pictures}, step)

    @rank_zero_only
    def log_text(
        self,
        key: str,
        columns: list[str] | str | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a text, or a table of texts.

        Args:
            key: Name it is shown under.
            columns: The text; or, for a table, the names of its columns.
            data: Rows of a table.
            dataframe: A pandas table, in place of columns and rows.
            step: Place on the x axis.
        """
        if not isinstance(columns, str):
            self.log_table(key, columns, data, dataframe, step)
            return
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        self.log_metrics({key: wandb.Html(f"<pre>{html.escape(columns)}</pre>", inject=False)}, step)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table, whose cells may be objects of W&B.

        Args:
            key: Name it is shown under.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas table, in place of columns and rows.
            step: Place on the x axis.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        self.log_metrics({key: wandb.Table(columns=columns, data=data, dataframe=dataframe)}, step)

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Log how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers; those that are not finite are left out.
            step: Place on the x axis.
            bins: How many bins; W&B takes up to 512.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        counts = histogram(values, min(bins, _MOST_BINS))
        self.log_metrics({key: wandb.Histogram(np_histogram=counts)}, step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log sound; several are shown as `<key>/0`, `<key>/1` and so on, unless the package `soundfile` is installed.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`; arrays with two dimensions are (samples, channels), as W&B has it.
            step: Place on the x axis.
            kwargs: Of `wandb.Audio`, e.g. `sample_rate`, `caption`: one entry per sound.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        with ExitStack() as files:
            sounds = []
            for audio, options in each(key, audios, kwargs):
                path = files.enter_context(_as_wav(audio, options.get("sample_rate", 44100)))
                sounds.append(wandb.Audio(path, **options))
            if is_installed("soundfile"):
                row: dict[str, Any] = {key: sounds}
            else:  # W&B needs it for lists
                row = {f"{key}/{i}" if len(sounds) > 1 else key: sound for i, sound in enumerate(sounds)}
            self.log_metrics(row, step)  # W&B copies the files

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log film.

        Args:
            key: Name it is shown under.
            videos: As for `Logger.log_video`. Tensors and arrays are logged as GIF, or in another `format` if W&B finds
                what it needs for it.
            step: Place on the x axis.
            kwargs: Of `wandb.Video`, e.g. `fps`, `format`, `caption`: one entry per film.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        with ExitStack() as files:
            films = []
            for video, options in each(key, videos, kwargs):
                if isinstance(video, Tensor) or hasattr(video, "__array__"):
                    if options.get("format", "gif") != "gif":
                        video = video.numpy(force=True) if isinstance(video, Tensor) else video
                    else:
                        content = gif_bytes(video, options.pop("fps", 4))
                        video = files.enter_context(saved(content, ".gif"))
                films.append(wandb.Video(video, **options))
            self.log_metrics({key: films}, step)  # W&B copies the files

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Upload a file or a folder as an artifact of the run.

        Args:
            path: Local path.
            name: Of the artifact; default the file's own.
            type: Of the artifact, e.g. "dataset".
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        own_name = os.path.basename(os.path.normpath(path))
        artifact = wandb.Artifact(_NOT_IN_NAMES.sub("-", name or own_name), type)
        if os.path.isdir(path):
            artifact.add_dir(path)
        else:
            artifact.add_file(path, name=own_name)
        self.experiment.log_artifact(artifact)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Download an artifact.

        Args:
            artifact: Its name, e.g. `"entity/project/model-abc:best"`.
            save_dir: Local folder for it.
            artifact_type: Its type.
            use_artifact: Record that the run in progress uses it.

        Returns:
            The folder.
        """
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        folder: str = found.download(root=None if save_dir is None else os.fspath(save_dir))
        return folder

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> wandb.Artifact:
        """Record that the run uses an artifact, and return it.

        Args:
            artifact: Its name, e.g. `"entity/project/dataset:v1"`.
            artifact_type: Its type.
        """
        return self.experiment.use_artifact(artifact, type=artifact_type)

    # ---- checkpoints, the end
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload a checkpoint if one is due.

        Args:
            checkpoint_callback: The callback that wrote it.
        """
        for file in self._uploads.due(checkpoint_callback):
            self._upload(file)

    def _upload(self, file: CheckpointFile) -> None:
        wandb = require("wandb", extra="wandb", for_="WandbLogger")
        run = self.experiment
        name = self._checkpoint_name or f"model-{run.id}"
        artifact = wandb.Artifact(name=name, type="model", metadata=file.metadata)
        if os.path.isdir(file.path):
            artifact.add_dir(file.path, name="model.ckpt")
        else:
            artifact.add_file(file.path, name="model.ckpt", policy=self.add_file_policy)
        run.log_artifact(artifact, aliases=file.aliases)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the checkpoints that are due at the end, or end the run as failed.

        Args:
            status: How it ended.
        """
        if self._experiment is None:
            return
        if status == "failed":
            self.experiment.finish(exit_code=1)
            self._experiment = self._attach_id = None
            self._is_configured = False
            return
        for file in self._uploads.rest():
            self._upload(file)

    def __getstate__(self) -> dict[str, Any]:
        """All but the run, to which the copy in another process attaches itself."""
        run = self._experiment
        attach_id = self._attach_id if run is None else getattr(run, "_attach_id", None)
        return {**self.__dict__, "_experiment": None, "_is_configured": False, "_attach_id": attach_id}


def _plain(params: Mapping[Any, Any]) -> dict[str, Any]:
    """Hyperparameters as W&B keeps them: nested, with names in place of functions and classes."""
    plain: dict[str, Any] = {}
    for name, value in params.items():
        inner = as_mapping(value)
        if inner is not None:
            plain[str(name)] = _plain(inner)
        else:
            plain[str(name)] = qualified_name(value) if callable(value) and hasattr(value, "__qualname__") else value
    return plain


def _pixels(image: Any) -> Any:
    if isinstance(image, Tensor) and not image.is_floating_point():  # W&B takes integers for 0..1, too
        return as_image(image).numpy()
    return image


@contextmanager
def _as_wav(audio: Any, sample_rate: int) -> Iterator[Any]:
    """Sound as a file, since W&B needs a further package for arrays."""
    if isinstance(audio, Tensor) or getattr(audio, "ndim", 0) == 1:
        with saved(wav_bytes(audio, sample_rate), ".wav") as path:
            yield path
    elif getattr(audio, "ndim", 0) == 2:
        with saved(wav_bytes(audio.T, sample_rate), ".wav") as path:
            yield path
    else:
        yield audio
