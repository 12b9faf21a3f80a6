"""Pictures, sound, tables and files of a run in a folder of its own, for loggers that write files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

from fulmen.loggers.text_file import append_text, copy_into, read_text, replace_bytes, replace_text

__all__ = ["MediaFile", "MediaFolder"]

_UNSAFE = re.compile(r"[^\w.\- ]")


@dataclass(frozen=True, slots=True)
class MediaFile:
    """Content of one file, or the path of one to copy, with what is noted of it."""

    content: bytes | str
    suffix: str
    notes: dict[str, Any] = field(default_factory=dict)


class MediaFolder:
    """`<log_dir>/media`: a file `<key>/<step>[_<i>].<suffix>` for each thing, listed in `index.jsonl`.

    What is logged again under one key at one step gets the next free number `<i>`. A line of `index.jsonl` has
    the members `kind`, `key`, `step`, `file` (relative to the folder) and what was noted, e.g. `caption`.

    Args:
        folder: Local path or URL; made at the first use.
    """

    NAME_INDEX_FILE = "index.jsonl"

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.index_path = os.path.join(folder, self.NAME_INDEX_FILE)
        self._taken: set[str] | None = None  # files in the index; not looked up yet
        self._num_lines = 0

    @property
    def num_lines(self) -> int:
        """How many things there are."""
        self._look_up()
        return self._num_lines

    def _look_up(self) -> set[str]:
        if self._taken is None:
            lines = self._lines()
            self._num_lines, self._taken = len(lines), {_file_of(line) for line in lines}
        return self._taken

    def write(self, kind: str, key: str, step: int | None, files: list[MediaFile]) -> None:
        """Add what one call logged.

        Args:
            kind: `image`, `text`, ...
            key: Name it is logged under; `/` makes folders.
            step: Place on the x axis.
            files: What is logged.
        """
        parts = [_UNSAFE.sub("_", part) for part in key.split("/") if part not in ("", ".", "..")]
        folder = "/".join(parts) or "_"
        if folder.partition("/")[0] == self.NAME_INDEX_FILE:
            folder = f"_{folder}"
        stem = f"{kind}_{self.num_lines}" if step is None else str(int(step))
        lines = []
        for index, file in enumerate(files):
            name = self._free_name(f"{folder}/{stem}", file.suffix, index if len(files) > 1 else None)
            path = os.path.join(self.folder, name)
            if isinstance(file.content, str):
                copy_into(file.content, path)
            else:
                replace_bytes(path, file.content)
            line = {"kind": kind, "key": key, "step": step, "file": name, **file.notes}
            lines.append(json.dumps(line, default=str) + "\n")
        append_text(self.index_path, "".join(lines))
        self._num_lines += len(lines)

    def _free_name(self, stem: str, suffix: str, index: int | None) -> str:
        taken = self._look_up()
        name = f"{stem}{suffix}" if index is None else f"{stem}_{index}{suffix}"
        while name in taken:
            index = (index or 0) + 1
            name = f"{stem}_{index}{suffix}"
        taken.add(name)
        return name

    def go_back(self, num_lines: int) -> None:
        """Take things off the index that were logged after a checkpoint; the run logs them again, to the same files.

        Args:
            num_lines: How many there were then.
        """
        lines = self._lines()
        if 0 <= num_lines < len(lines):
            replace_text(self.index_path, "".join(lines[:num_lines]))
            self._taken = None

    def _lines(self) -> list[str]:
        return (read_text(self.index_path) or "").splitlines(keepends=True)


def _file_of(line: str) -> str:
    try:
        return str(json.loads(line)["file"])
    except (ValueError, KeyError, TypeError):  # a line that was cut off
        return ""
