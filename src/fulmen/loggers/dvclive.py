"""Experiments of DVCLive."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from fulmen.loggers.media import as_image, each, png_bytes, saved
from fulmen.loggers.run_logger import RunLogger
from fulmen.loggers.text_file import replace_text
from fulmen.loggers.tracker import CheckpointFile
from fulmen.utilities.files import ensure_writable
from fulmen.utilities.rank_zero import rank_zero_info, rank_zero_only

__all__ = ["DVCLiveLogger"]


class DVCLiveLogger(RunLogger):
    """Log to a folder of DVCLive. Needs the package `dvclive`: `pip install 'fulmen[dvclive]'`.

    The folder is begun at the first use, and what was in it is removed, unless `resume` says otherwise or the run goes
    on from a checkpoint that it wrote: then values that were logged after the checkpoint are taken back. `finalize`
    ends the experiment, which DVC then keeps if there is a repository. DVCLive does not note that a run failed.

    Args:
        run_name: Name of the experiment for DVC, as `exp_name` of `Live`; made up by default.
        prefix: Put in front of every metric's name, joined by `-`.
        log_model: Which checkpoints are kept in `<dir>/artifacts`, and by DVC if there is a repository: False none,
            True those that are left when training has ended, `"all"` each at the time it is saved.
        dir: Folder of the run; default `dvclive`.
        resume: Go on with what is in the folder.
        kwargs: Further arguments of `dvclive.Live`, e.g. `report`, `save_dvc_exp`, `monitor_system`.

    Raises:
        ModuleNotFoundError: dvclive is not installed.
        ValueError: `log_model` is something else.

    Example::

        logger = DVCLiveLogger(dir="logs/mnist")
        trainer = Trainer(logger=logger)
    """

    package = "dvclive"
    extra = "dvclive"

    def __init__(
        self,
        run_name: str | None = None,
        prefix: str = "",
        log_model: bool | Literal["all"] = False,
        dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        **kwargs: Any,
    ) -> None:
        self._dir = os.path.abspath("dvclive" if dir is None else os.fspath(dir))
        super().__init__(run_name, os.path.basename(self._dir), prefix, log_model)
        self._continues = resume
        self._settings = kwargs

    @property
    def save_dir(self) -> str:
        """Folder that the run's folder is in."""
        return os.path.dirname(self._dir)

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return self._dir

    def _open(self) -> Any:
        return self._module().Live(dir=self._dir, resume=self._continues, exp_name=self._name, **self._settings)

    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        run.step = step
        for name, value in metrics.items():
            run.log_metric(name, value)

    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        run.log_params(params)

    def _close(self, run: Any, status: str) -> None:
        run.end()

    @rank_zero_only
    def save(self) -> None:
        """Write the newest values to `metrics.json`; curves are written at once."""
        if self._run is not None:
            self._run.make_summary()

    # ---- resuming
    def position(self) -> dict[str, Any]:
        """Return the number of values of each metric."""
        if not self._continues:
            return {}
        rows = {name: len(path.read_text().splitlines()) - 1 for name, path in self._curves().items()}
        return {"log_dir": self._dir, "rows": rows}

    @rank_zero_only
    def resume_at(self, position: dict[str, Any]) -> None:
        """Take back the values after a checkpoint of a run in the same folder.

        Args:
            position: What `position` returned when the checkpoint was written.
        """
        there = position.get("log_dir")
        if not isinstance(there, str) or os.path.realpath(there) != os.path.realpath(self._dir):
            return
        self._continues = True
        num_taken = 0
        for name, path in self._curves().items():
            lines = path.read_text().splitlines(keepends=True)
            num_kept = int(position["rows"].get(name, 0))
            num_taken += max(0, len(lines) - 1 - num_kept)
            if num_kept == 0:
                path.unlink()
            elif num_kept < len(lines) - 1:
                replace_text(str(path), "".join(lines[: num_kept + 1]))
        if num_taken:
            rank_zero_info(
                f"{self._dir!r}: {num_taken} values that were logged after the checkpoint are taken back; the run logs"
                " them again."
            )

    @rank_zero_only
    def begin_anew(self) -> None:
        """Begin an empty folder at the first use, also with `resume=True`."""
        self._continues = False

    def _curves(self) -> dict[str, Path]:
        folder = Path(self._dir, "plots", "metrics")
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.tsv"))}

    # ---- pictures and files
    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images as `plots/images/<key>/<step>.png`, which DVC shows by step; more than one have numbers.

        Args:
            key: Name they are shown under.
            images: As for `Logger.log_image`.
            step: Place on the x axis; `None` is the step of the last row.
            kwargs: None are known.

        Raises:
            TypeError: There are other arguments.
        """
        if kwargs:
            raise TypeError(
                f"`DVCLiveLogger.log_image` got {sorted(kwargs)!r}, but DVCLive's images have nothing but a name."
                " Leave them out."
            )
        live = self.experiment
        place = live.step if step is None else step
        for index, (image, _) in enumerate(each(key, images, kwargs)):
            with saved(png_bytes(as_image(image)), ".png") as path:
                live.log_image(f"{key}/{place}{f'_{index}' if len(images) > 1 else ''}.png", path)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Keep a copy of a file or a folder in `<dir>/artifacts`, and have DVC track it if there is a repository.

        Args:
            path: Local path.
            name: What it is called there; default its own name.
            type: What DVC lists it as, e.g. `"model"` or `"dataset"`.
        """
        self._keep(path, name or os.path.basename(os.path.normpath(path)), type, {})

    def _keep(self, path: str, name: str, kind: str, metadata: dict[str, Any]) -> None:
        live = self.experiment
        target = os.path.join(self._dir, "artifacts", name)
        ensure_writable(os.path.dirname(target))
        if os.path.isdir(path):
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
        live.log_artifact(target, type=kind, meta=metadata)

    def _upload(self, file: CheckpointFile) -> None:
        name = os.path.basename(os.path.normpath(file.path))
        self._keep(file.path, name, "model", {**file.metadata, "aliases": list(file.aliases)})
