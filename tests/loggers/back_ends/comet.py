"""`CometLogger`: the archives that Comet writes offline, to be uploaded later."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from fulmen.loggers import CometLogger, Logger
from tests.loggers.back_ends.adapter import BackEnd, Kind

_QUIET: dict[str, Any] = {
    "log_code": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "parse_args": False,
    "auto_output_logging": False,
    "display_summary_level": 0,
}


class BackEndOfLogger(BackEnd):
    package = "comet_ml"
    extra = "comet"
    media = frozenset(("image", "figure", "text", "table", "histogram", "audio", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # about a second to write an archive

    def make(self, **arguments: Any) -> Logger:
        return CometLogger(
            project="p", online=False, offline_directory=str(self.folder / "comet"), **_QUIET, **arguments
        )

    def again(self, logger: Logger) -> Logger:
        return self.make(experiment_key=logger.version, mode="get")

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for message in self._messages(logger, "metric_msg"):
            metric = message["metric"]
            if metric["metricName"] not in ("epoch", "process duration"):
                points.setdefault(metric["metricName"], []).append((metric["step"], float(metric["metricValue"])))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        given = [message["param"] for message in self._messages(logger, "parameter_msg")]
        return {
            param["paramName"].replace("|", "/"): param["paramValue"] for param in given if param["source"] == "manual"
        }

    def status(self, logger: Logger) -> str:
        found = [message["value"] for message in self._messages(logger, "log_other") if message["key"] == "status"]
        return str(found[0])

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        uploads = [message for message, _ in self._uploads(logger) if message["upload_type"] == "model-element"]
        return {
            upload["additional_params"]["fileName"]: set(upload["metadata"]["aliases"].split(", "))
            for upload in uploads
        }

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        found = []
        for message, content in self._uploads(logger):
            about = message["additional_params"]
            names = (about.get("figName"), about.get("fileName"), (message.get("metadata") or {}).get("name"))
            if not {key, f"{key}.csv", f"{key}.wav"} & set(names):
                continue
            value: Any = content if kind == "artifact" else len(content)
            if kind in ("image", "figure"):
                value = Image.open(io.BytesIO(content)).size
            elif kind == "text":
                value = content.decode()
            elif kind == "table":
                columns, *rows = csv.reader(io.StringIO(content.decode()))
                value = (columns, rows)
            elif kind == "histogram":
                value = None if "histogram" in message["upload_type"] else message["upload_type"]
            found.append((about["step"], value))
        return found

    def _archives(self, logger: Logger) -> Iterator[zipfile.ZipFile]:
        paths = (self.folder / "comet").glob(f"{logger.version}*.zip")
        for path in sorted(paths, key=lambda path: Path(path).stat().st_mtime_ns):
            with zipfile.ZipFile(path) as archive:
                yield archive

    def _messages(self, logger: Logger, kind: str) -> Iterator[dict[str, Any]]:
        for archive in self._archives(logger):
            for line in archive.read("messages.json").decode().splitlines():
                message = json.loads(line)
                if message["type"] == kind:
                    yield message["payload"]

    def _uploads(self, logger: Logger) -> Iterator[tuple[dict[str, Any], bytes]]:
        for archive in self._archives(logger):
            for line in archive.read("messages.json").decode().splitlines():
                message = json.loads(line)
                if message["type"] == "file_upload":
                    payload = message["payload"]
                    name = payload["file_path"]
                    yield payload, archive.read(name) if name in archive.namelist() else Path(name).read_bytes()
