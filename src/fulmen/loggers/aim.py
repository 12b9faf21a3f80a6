"""Runs of Aim."""

from __future__ import annotations

import os
from typing import Any, Literal

from torch import Tensor

from fulmen.loggers.media import as_image, each, histogram, png_bytes, saved, wav_bytes
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.files import ensure_writable
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["AimLogger"]


class AimLogger(RunLogger):
    """Log to a run of Aim. Needs the package `aim`: `pip install 'fulmen[aim]'`.

    The run is begun at the first use and closed by `finalize`; later use goes on with it. Its attribute `status` says
    how it ended. Aim keeps one value per metric and step, the last: a run that goes on from a checkpoint replaces what
    was logged after it as it comes to the same steps.

    Args:
        repo: Folder or address of the repository; default `.aim` in the working directory or above.
        experiment: Experiment of the run; default Aim's `default`.
        train_metric_prefix: Metrics whose names begin so are logged without it, in the context `{"subset": "train"}`,
            in which Aim groups them; an empty string or `None` leaves names as they are.
        val_metric_prefix: The same for `{"subset": "val"}`.
        test_metric_prefix: The same for `{"subset": "test"}`.
        system_tracking_interval: Seconds between measurements of the machine; `None` for none.
        log_system_params: Record packages, environment variables and arguments of the process; Aim needs
            `setuptools<81` for it.
        capture_terminal_logs: Record what the process prints.
        run_name: Name of the run as shown.
        run_hash: A run to go on with.
        artifacts_uri: Where artifacts are kept; default the folder `artifacts` of a local repository.
        log_model: Which checkpoints are kept as artifacts of the run: False none, True those that are left when
            training has ended, `"all"` each at the time it is saved.
        prefix: Put in front of every metric's name, joined by `-`.

    Raises:
        ModuleNotFoundError: aim is not installed.
        ValueError: `log_model` is something else.

    Example::

        logger = AimLogger("logs", experiment="mnist")
        trainer = Trainer(logger=logger)
    """

    package = "aim"
    extra = "aim"

    def __init__(
        self,
        repo: str | os.PathLike[str] | None = None,
        experiment: str | None = None,
        train_metric_prefix: str | None = "train_",
        val_metric_prefix: str | None = "val_",
        test_metric_prefix: str | None = "test_",
        system_tracking_interval: float | None = 10,
        log_system_params: bool = False,
        capture_terminal_logs: bool = True,
        run_name: str | None = None,
        run_hash: str | None = None,
        artifacts_uri: str | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
    ) -> None:
        super().__init__(experiment, run_hash, prefix, log_model)
        self._repo = None if repo is None else os.fspath(repo)
        subsets = {"train": train_metric_prefix, "val": val_metric_prefix, "test": test_metric_prefix}
        self._subsets = {start: subset for subset, start in subsets.items() if start}
        self._settings = {
            "system_tracking_interval": system_tracking_interval,
            "log_system_params": log_system_params,
            "capture_terminal_logs": capture_terminal_logs,
        }
        self._run_name = run_name
        self._artifacts_uri = artifacts_uri

    @property
    def save_dir(self) -> str | None:
        """Folder or address of the repository, as given."""
        return self._repo

    def _open(self) -> Any:
        new = {} if self._continues else {"experiment": self._name}
        run = self._module().Run(self._run_id, repo=self._repo, **new, **self._settings)
        if not self._continues and self._run_name is not None:
            run.name = self._run_name
        self._run_id = run.hash
        return run

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        for name, value in metrics.items():
            start = next((start for start in self._subsets if name.startswith(start) and name != start), None)
            if start is None:
                run.track(value, name=name, step=step, epoch=epoch)
            else:
                context = {"subset": self._subsets[start]}
                run.track(value, name=name[len(start) :], step=step, epoch=epoch, context=context)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        for name, value in params.items():
            run["hparams", name] = value

    def _close(self, run: Any, status: str) -> None:
        run["status"] = status
        run.close()

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: Further arguments of `aim.Image`, e.g. `caption`; a list has one entry per image.
        """
        aim = self._module()
        made = []
        for image, options in each(key, images, kwargs):
            with saved(png_bytes(as_image(image)), ".png") as path:
                made.append(aim.Image(path, **options))
        self.experiment.track(made, name=key, step=step)

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Record a text.

        Args:
            key: Name it is shown under.
            text: The text.
            step: Place on the x axis.
        """
        self.experiment.track(self._module().Text(text), name=key, step=step)

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Record how values are distributed.

        Args:
            key: Name it is shown under.
            values: Tensor, array or sequence of numbers.
            step: Place on the x axis.
            bins: How many bins of equal width, at most 512.
        """
        counts, edges = histogram(values, bins)
        made = self._module().Distribution(hist=counts, bin_range=(edges[0], edges[-1]))
        self.experiment.track(made, name=key, step=step)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sound.

        Args:
            key: Name it is shown under.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100, and `caption`; a list has one entry per sound.
        """
        aim = self._module()
        made = []
        for audio, options in each(key, audios, {"sample_rate": 44100, **kwargs}):
            rate = options.pop("sample_rate")
            if isinstance(audio, (str, os.PathLike)):
                suffix = os.path.splitext(os.fspath(audio))[1]
                made.append(aim.Audio(os.fspath(audio), format=suffix[1:], **options))
                continue
            with saved(wav_bytes(audio, rate), ".wav") as path:
                made.append(aim.Audio(path, format="wav", **options))
        self.experiment.track(made, name=key, step=step)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a file or a folder with the run.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: Not used.
        """
        run = self._with_artifacts()
        log = run.log_artifacts if os.path.isdir(path) else run.log_artifact
        # waits, as the file may be deleted when the next checkpoint is saved
        log(os.fspath(path), name or os.path.basename(os.path.normpath(path)), block=True)

    def _with_artifacts(self) -> Any:
        run = self.experiment
        if run.artifacts_uri is None:
            uri = self._artifacts_uri
            if uri is None:
                if run.repo.is_remote_repo:
                    raise ValueError(
                        f"`AimLogger(repo={self._repo!r})` cannot keep files: the repository is on a server, and it is"
                        " not said where they go. Give `artifacts_uri`, e.g. 's3://bucket/folder'."
                    )
                folder = os.path.join(os.path.abspath(run.repo.path), "artifacts")
                ensure_writable(folder)
                uri = f"file://{folder}"
            run.set_artifacts_uri(uri)
        return run

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.basename(os.path.normpath(file.path))
        self.log_artifact(file.path, name)
        self.experiment["checkpoints", name] = {**_plain(file.metadata), "aliases": list(file.aliases)}


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in metadata.items()}
