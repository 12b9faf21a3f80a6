"""Loggers that keep each run in a folder of its own: `<save_dir>/<name>/version_<n>`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from contextlib import suppress
from typing import Any

from fulmen.loggers.logger import Logger
from fulmen.loggers.media import as_image, each, gif_bytes, histogram, png_bytes, table, wav_bytes
from fulmen.loggers.media_folder import MediaFile, MediaFolder
from fulmen.loggers.text_file import copy_into
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
    """Base of the loggers that write files. What has no other place goes to `<log_dir>/media` (see `MediaFolder`).

    Args:
        save_dir: Where all experiments are kept; `~` and environment variables are expanded.
        name: Folder of the experiment; `None` or an empty string for none.
        version: Number or name of the run's folder. `None` takes the next free number at first use.
        prefix: Put in front of every metric's name, joined by `LOGGER_JOIN_CHAR`.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self, save_dir: str | os.PathLike[str], name: str | None, version: int | str | None, prefix: str
    ) -> None:
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._media: MediaFolder | None = None

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

    # ---- pictures, text, tables, files
    @property
    def media(self) -> MediaFolder:
        """The folder of what is logged beside numbers; made at the first use."""
        if self._media is None:
            self._media = MediaFolder(os.path.join(self.log_dir, "media"))
        return self._media

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep images as PNG files in `<log_dir>/media/<key>`; files are copied.

        Args:
            key: Name; `/` makes folders.
            images: As for `Logger.log_image`.
            step: Place on the x axis.
            kwargs: Noted in the index, e.g. `caption`; a list has one entry per image.
        """
        pairs = each(key, images, kwargs)
        files = [_copy(image, notes) or MediaFile(png_bytes(as_image(image)), ".png", notes) for image, notes in pairs]
        self.media.write("image", key, step, files)

    @rank_zero_only
    def log_text(self, key: str, text: str, /, *, step: int | None = None) -> None:
        """Keep a text as a file in `<log_dir>/media/<key>`.

        Args:
            key: Name; `/` makes folders.
            text: The text.
            step: Place on the x axis.
        """
        self.media.write("text", key, step, [MediaFile(text.encode(), ".txt")])

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Keep a table as a CSV file in `<log_dir>/media/<key>`.

        Args:
            key: Name; `/` makes folders.
            columns: Names of the columns.
            data: Rows.
            dataframe: A pandas or polars table, in place of columns and rows.
            step: Place on the x axis.
        """
        names, rows = table(columns, data, dataframe)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        self.media.write("table", key, step, [MediaFile(text.getvalue().encode(), ".csv")])

    @rank_zero_only
    def log_histogram(self, key: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Keep the counts of values as a JSON file in `<log_dir>/media/<key>`, with the members `counts` and `edges`.

        Args:
            key: Name; `/` makes folders.
            values: Tensor, array or sequence of numbers; those that are not finite are left out.
            step: Place on the x axis.
            bins: How many bins of equal width.
        """
        counts, edges = histogram(values, bins)
        content = json.dumps({"counts": counts, "edges": edges}).encode()
        self.media.write("histogram", key, step, [MediaFile(content, ".json")])

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep sound as WAV files in `<log_dir>/media/<key>`; files are copied.

        Args:
            key: Name; `/` makes folders.
            audios: As for `Logger.log_audio`.
            step: Place on the x axis.
            kwargs: `sample_rate`, samples per second, by default 44100; all are noted in the index.
        """
        pairs = each(key, audios, {"sample_rate": 44100, **kwargs})
        files = [_copy(a, notes) or MediaFile(wav_bytes(a, notes["sample_rate"]), ".wav", notes) for a, notes in pairs]
        self.media.write("audio", key, step, files)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Keep film as animated GIF files in `<log_dir>/media/<key>`, which needs Pillow; files are copied.

        Args:
            key: Name; `/` makes folders.
            videos: As for `Logger.log_video`.
            step: Place on the x axis.
            kwargs: `fps`, frames per second, by default 4; all are noted in the index.
        """
        pairs = each(key, videos, {"fps": 4, **kwargs})
        files = [
            _copy(video, notes) or MediaFile(gif_bytes(video, notes["fps"]), ".gif", notes) for video, notes in pairs
        ]
        self.media.write("video", key, step, files)

    @rank_zero_only
    def log_artifact(self, path: str, name: str | None = None, *, type: str = "file") -> None:
        """Copy a file or a folder to `<log_dir>/artifacts`, in place of an earlier one of its name.

        Args:
            path: Local path.
            name: What the copy is called; default its own name.
            type: Not used: files have no types.
        """
        name = os.path.basename(os.path.normpath(path)) if name is None else name
        copy_into(path, os.path.join(self.log_dir, "artifacts", name))


def _copy(item: Any, notes: dict[str, Any]) -> MediaFile | None:
    if not isinstance(item, (str, os.PathLike)):
        return None
    path = os.fspath(item)
    return MediaFile(path, os.path.splitext(path)[1], notes)
