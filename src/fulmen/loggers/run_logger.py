"""What loggers share whose tracker gives a run that is opened, written to and closed."""

from __future__ import annotations

from abc import abstractmethod
from argparse import Namespace
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Literal

from fulmen.loggers.logger import Logger, rank_zero_experiment
from fulmen.loggers.params import convert_params, flatten_dict, sanitize_params, to_scalar
from fulmen.loggers.tracker import CheckpointFile, CheckpointUploads, check_installed
from fulmen.utilities.lazy import require
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["RunLogger", "plain_tree"]

_LEVEL = "\0"  # joins the names of levels; no name has it


def plain_tree(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Return hyperparameters as nested dicts whose values are plain scalars.

    Args:
        params: What `convert_params` takes; values may be mappings, namespaces and dataclass instances.

    Returns:
        A new dict with the same nesting; each leaf a bool, int, float or str.
    """
    tree: dict[str, Any] = {}
    for name, value in sanitize_params(flatten_dict(convert_params(params), delimiter=_LEVEL)).items():
        *outer, last = name.split(_LEVEL)
        branch = tree
        for level in outer:
            branch = branch.setdefault(level, {})
        branch[last] = value
    return tree


class RunLogger(Logger):
    """Base of loggers whose tracker gives a run. A new one must open it, write metrics and settings, and close it.

    The run is opened at the first use on rank 0 and closed by `finalize`; later use goes on with the same run, and so
    does a copy in another process.

    Args:
        name: What the run is listed under, e.g. its project.
        run_id: A run to go on with; `None` begins a new one.
        prefix: Put in front of every metric's name, joined by `LOGGER_JOIN_CHAR`.
        log_model: Which checkpoints are kept with the run: False none, True those that are left when training has
            ended, `"all"` each at the time it is saved.

    Raises:
        ModuleNotFoundError: The tracker's package is not installed.
        ValueError: `log_model` is something else.
    """

    package: ClassVar[str]  # module of the tracker
    extra: ClassVar[str]  # of fulmen, that installs it

    def __init__(
        self,
        name: str | None,
        run_id: str | None,
        prefix: str | None = None,
        log_model: bool | Literal["all"] = False,
        /,  # else LightningCLI takes them for what the `**kwargs` of a subclass stand for
    ) -> None:
        check_installed(self.package, extra=self.extra, for_=type(self).__name__)
        self._uploads = CheckpointUploads(log_model, type(self).__name__)
        self._name = name
        self._run_id = run_id
        self._prefix = prefix
        self._run: Any = None
        self._continues = run_id is not None  # the tracker has the run already
        self._was_open = False
        self._next_step = 0

    # ---- what a tracker must do
    @abstractmethod
    def _open(self) -> Any:
        """Begin the run, or go on with `self._run_id` if `self._continues`; sets `self._run_id`."""

    @abstractmethod
    def _write(self, run: Any, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        """Record one row of numbers."""

    @abstractmethod
    def _write_params(self, run: Any, params: dict[str, Any]) -> None:
        """Record settings, which are what `plain_tree` returns."""

    @abstractmethod
    def _close(self, run: Any, status: str) -> None:
        """Tell the tracker how the run ended, and have it written."""

    def _upload(self, file: CheckpointFile) -> None:
        """Keep a checkpoint with the run."""
        raise self._cannot("artifact")

    # ---- the run
    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The tracker's own object for the run, opened at the first use; on other ranks a stand-in without effect."""
        if self._run is None:
            self._run = self._open()
            self._continues = self._was_open = True
        return self._run

    @property
    def name(self) -> str:
        """What the run is listed under; the tracker's own name if that was not given."""
        return self._name or self.extra

    @property
    def version(self) -> str | None:
        """Id of the run; on rank 0, reading it begins the run, as only the tracker knows the id of a new one."""
        if self._run_id is None and rank_zero_only.rank == 0:
            _ = self.experiment
        return self._run_id

    def take_version(self, version: str) -> None:
        """Go on as the run that a copy of this logger has begun in another process.

        Args:
            version: The copy's version.
        """
        self._run_id = version
        self._continues = self._was_open = True

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record one row of values.

        Args:
            metrics: Metric name to number, one-element tensor or NumPy scalar. A whole number called `epoch` goes to
                the tracker's field for it, too, where there is one.
            step: Place on the x axis; `None` takes the number after the last row's.

        Raises:
            ValueError: A value has more than one element.
        """
        if step is None:
            step = self._next_step
        self._next_step = int(step) + 1
        row = {name: to_scalar(value) for name, value in metrics.items()}
        epoch = row.get("epoch")
        whole = int(epoch) if isinstance(epoch, (int, float)) and epoch == epoch // 1 else None
        self._write(self.experiment, dict(self._prefixed(row)), int(step), whole)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Record the settings of the run.

        Args:
            params: Name to value; nested ones stay nested, objects become text.
        """
        self._write_params(self.experiment, plain_tree(params))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload a checkpoint if one is due.

        Args:
            checkpoint_callback: The callback that wrote it.
        """
        for file in self._uploads.due(checkpoint_callback):
            self._upload(file)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run; a later use goes on with it.

        Args:
            status: How it ended: `"success"`, `"failed"` or `"finished"`.
        """
        if status != "failed":
            for file in self._uploads.rest():
                self._upload(file)
        if self._run is not None:
            run, self._run = self._run, None
            self._close(run, status)

    def _module(self, name: str | None = None) -> ModuleType:
        return require(name or self.package, extra=self.extra, for_=type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        """All but the open run, so that the logger can go to other processes, which go on with it."""
        return {**self.__dict__, "_run": None}
