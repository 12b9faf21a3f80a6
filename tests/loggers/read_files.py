"""Reading back what loggers write into `<log_dir>/media` and `<log_dir>/artifacts`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from fulmen.loggers import Logger

__all__ = ["content_of", "media_in_files"]


def media_in_files(logger: Logger, kind: str, key: str) -> list[tuple[int | None, Any]]:
    """As `BackEnd.media_of`, from the index of the folder."""
    folder = Path(str(logger.log_dir))
    if kind == "artifact":
        return [(None, (folder / "artifacts" / key).read_bytes())]
    lines = [json.loads(line) for line in (folder / "media/index.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["key"] == key and line["kind"] == ("image" if kind == "figure" else kind)]
    return [(line["step"], content_of(folder / "media" / line["file"], kind)) for line in found]


def content_of(path: Path, kind: str) -> Any:
    """What the suite compares of a file."""
    if kind in ("image", "figure"):
        with Image.open(path) as image:
            return image.size
    if kind == "table":
        with path.open(newline="") as file:
            columns, *rows = csv.reader(file)
        return columns, rows
    if kind == "histogram":
        return sum(json.loads(path.read_text())["counts"])
    return path.read_text() if kind == "text" else path.stat().st_size
