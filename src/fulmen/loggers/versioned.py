"""Loggers that keep each run in a folder of its own: `<save_dir>/<name>/version_<n>`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from fulmen.loggers.logger import Logger
from fulmen.utilities.files import ensure_writable, get_filesystem, is_local, local_path
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["VersionedLogger", "claim_version", "next_version"]

_VERSION_FOLDER = re.compile(r"version_(\d+)")


def next_version(root_dir: str) -> int:
    """Return the number after the highest that is taken.

    Args:
        root_dir: Folder of the versions; it need not exist.
    """
    if is_local(root_dir):
        names = os.listdir(root_dir) if os.path.isdir(root_dir) else []
    else:
        filesystem = get_filesystem(root_dir)
        paths = filesystem.ls(root_dir, detail=False) if filesystem.isdir(root_dir) else []
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
    numbers = (int(match[1]) for match in map(_VERSION_FOLDER.fullmatch, names) if match)
    return max(numbers, default=-1) + 1


def claim_version(root_dir: str) -> int:
    """Make the next version folder, so that no other process gets the same number.

    On object stores, which cannot make a folder exclusively, the number is only looked up.

    Args:
        root_dir: Folder of the versions; made if absent.

    Returns:
        The number of the new folder.

    Raises:
        OSError: The folder is not writable; the message names it and says what to do.
    """
    version = next_version(root_dir)
    if not is_local(root_dir):
        return version
    ensure_writable(root_dir)
    while True:
        with suppress(FileExistsError):  # another run was faster
            os.mkdir(os.path.join(root_dir, f"version_{version}"))
            return version
        version += 1


class VersionedLogger(Logger):
    """Base of the loggers that write files.

    Args:
        save_dir: Where all experiments are kept; `~` and environment variables are expanded.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder. `None` takes the next free number at first use.
        prefix: Put in front of every metric's name, joined by `LOGGER_JOIN_CHAR`.
    """

    LOGGER_JOIN_CHAR = "-"
    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self, save_dir: str | os.PathLike[str], name: str | None, version: int | str | None, prefix: str
    ) -> None:
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix

    @property
    def save_dir(self) -> str:
        """Folder given by the user, as given."""
        return self._save_dir

    @property
    def name(self) -> str:
        """Name of the experiment; empty if it has none."""
        return self._name

    @property
    def root_dir(self) -> str:
        """Folder of all versions of the experiment."""
        save_dir = os.path.expandvars(os.path.expanduser(self._save_dir))
        return os.path.join(local_path(save_dir) if is_local(save_dir) else save_dir, self._name)

    @property
    def version(self) -> int | str:
        """The run; without one given, reading it on rank 0 makes the next folder and so reserves the number."""
        if self._version is None:
            self._version = (claim_version if rank_zero_only.rank == 0 else next_version)(self.root_dir)
        return self._version

    def take_version(self, version: int | str) -> None:
        """Go on as the run that a copy of this logger has begun in another process.

        Args:
            version: The copy's version.
        """
        self._version = version

    @property
    def log_dir(self) -> str:
        """Folder of this run."""
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def _is_here(self, position: dict[str, Any]) -> bool:
        """Tell whether a position in a log is one in the log of this run."""
        there = position.get("log_dir")
        if not isinstance(there, str) or self._version is None:
            return False
        return os.path.realpath(there) == os.path.realpath(self.log_dir) if is_local(there) else there == self.log_dir

    def _prefixed(self, metrics: dict[str, Any]) -> dict[str, Any]:
        if not self._prefix:
            return metrics
        prefix = self._prefix + self.LOGGER_JOIN_CHAR
        return {prefix + name: value for name, value in metrics.items()}
