"""`NeptuneLogger`: the queue of operations that Neptune's client writes offline, to be synced later."""

from __future__ import annotations

import base64
import csv
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from fulmen.loggers import Logger, NeptuneLogger
from tests.loggers.back_ends.adapter import BackEnd, Kind

_QUIET: dict[str, Any] = {
    "capture_stdout": False,
    "capture_stderr": False,
    "capture_hardware_metrics": False,
    "capture_traceback": False,
    "git_ref": False,
    "source_files": [],
}


class BackEndOfLogger(BackEnd):
    package = "neptune"
    extra = "neptune"
    media = frozenset(("image", "figure", "text", "table", "audio", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # its package takes two seconds to import

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.monkeypatch.setenv("NEPTUNE_DATA_DIRECTORY", str(self.folder / "neptune"))

    def make(self, log_model: Any = False, prefix: str = "", **arguments: Any) -> Logger:
        warnings.filterwarnings("ignore", ".*non-standard float value")  # Neptune leaves out NaN, and says so
        logger = NeptuneLogger(
            mode="offline", project="a/b", prefix=prefix, log_model_checkpoints=log_model, **_QUIET, **arguments
        )
        logger.LOGGER_JOIN_CHAR = "-"  # type: ignore[misc]  # as the suite expects it; "/" is in test_trackers.py
        return logger

    def again(self, logger: Logger) -> Logger:
        return self.make(run_id=logger.version)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for name, operation in self._operations("LogFloats"):
            if name != "epoch":
                points.setdefault(name, []).extend((int(each["step"]), each["value"]) for each in operation["values"])
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return {
            name.removeprefix("hyperparams/"): operation["value"]
            for name, operation in self._operations("Assign")
            if name.startswith("hyperparams/")
        }

    def status(self, logger: Logger) -> str:
        failed = [operation["value"] for name, operation in self._operations("AssignBool") if name == "sys/failed"]
        return "failed" if failed[-1] else "success"

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        uploads = list(self._operations("UploadFile"))
        return {f"{name.removeprefix('model/checkpoints/')}.{operation['ext']}": set() for name, operation in uploads}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind in ("image", "figure", "text"):
            series = [each for name, each in self._operations("Log") if name == key]
            values = [value for each in series for value in each["values"]]
            if kind == "text":
                return [(int(value["step"]), value["value"]) for value in values]
            pictures = [base64.b64decode(value["value"]["data"]) for value in values]
            sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
            return [(int(value["step"]), size) for value, size in zip(values, sizes, strict=True)]
        if kind == "artifact":
            return [(None, content) for name, content in self._files() if name == f"artifacts/{key}"]
        files = [(name, content) for name, content in self._files() if name.startswith(f"{key}/")]
        found: list[tuple[int | None, Any]] = []
        for name, content in files:
            step = int(name.removeprefix(f"{key}/").partition("_")[0])
            if kind == "audio":
                found.append((step, len(content)))
                continue
            columns, *rows = csv.reader(io.StringIO(content.decode()))
            found.append((step, (columns, rows)))
        return found

    def _files(self) -> Iterator[tuple[str, bytes]]:
        for folder in self._runs():
            for name, operation in self._operations("UploadFile"):
                staged = operation["tmp_file_name"]
                path = Path(operation["file_path"]) if staged is None else folder / "upload_path" / staged
                if path.exists():
                    yield name, path.read_bytes()

    def _runs(self) -> list[Path]:
        folders = (self.folder / "neptune" / "offline").iterdir()
        return sorted(folders, key=lambda folder: json.loads((folder / "metadata.json").read_text())["createdAt"])

    def _operations(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for folder in self._runs():
            for path in sorted(folder.glob("data-*.log")):
                text, decoder, position = path.read_text(), json.JSONDecoder(), 0
                while position < len(text.rstrip()):
                    record, position = decoder.raw_decode(text, position)
                    position += len(text[position:]) - len(text[position:].lstrip())
                    operation = record["obj"]["type"]
                    if operation.startswith(kind) and operation != "UploadFileSet":
                        yield "/".join(record["obj"]["path"]), record["obj"]
