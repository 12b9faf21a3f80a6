"""`TrackioLogger`: the local database of Trackio, read with sqlite3, and its folders of media and artifacts."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from fulmen.loggers import Logger, TrackioLogger
from tests.loggers.back_ends.adapter import BackEnd, Kind


class BackEndOfLogger(BackEnd):
    package = "trackio"
    extra = "trackio"
    media = frozenset(("image", "figure", "text", "table", "histogram", "audio", "video", "artifact"))
    keeps_checkpoints = True
    slow = True  # its package takes a second to import

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.monkeypatch.setenv("TRACKIO_DIR", str(self.folder / "trackio"))
        home = self.folder / "trackio"
        places = {"TRACKIO_DIR": home, "MEDIA_DIR": home / "media", "ARTIFACTS_DIR": home / "artifacts"}
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "trackio" and module]
        for module in modules:
            for name in places.keys() & vars(module).keys():  # settled when the package was imported
                self.monkeypatch.setattr(module, name, places[name])

    def make(self, **arguments: Any) -> Logger:
        return TrackioLogger("p", auto_log_gpu=False, auto_log_cpu=False, **arguments)

    def again(self, logger: Logger) -> Logger:
        return self.make(name=logger.version, resume="must")

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for step, row in self._rows():
            for name, value in row.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    points.setdefault(name, []).append((step, float(value)))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self._query("select config from configs")[-1][0])
        return config

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        found = self._query(
            "select manifest, alias from artifact_versions left join artifact_aliases"
            " on artifact_aliases.artifact_id = artifact_versions.artifact_id"
        )
        names: dict[str, set[str]] = {}
        for manifest, alias in found:
            names.setdefault(json.loads(manifest)[0]["path"], set()).add(alias)
        return names

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind == "artifact":
            blobs = (self.folder / "trackio" / "artifacts").rglob("*")
            return [(None, path.read_bytes()) for path in blobs if path.is_file()]
        values = [(step, value) for step, row in self._rows() for name, value in row.items() if name.startswith(key)]
        return [(step, self._content(kind, value)) for step, value in values]

    def _content(self, kind: Kind, value: dict[str, Any]) -> Any:
        if kind == "text":
            return value["_value"]
        if kind == "histogram":
            return sum(value["values"])
        if kind == "table":
            rows = value["_value"]
            return list(rows[0]), [list(row.values()) for row in rows]
        path = self.folder / "trackio" / "media" / value["file_path"]
        if kind in ("image", "figure"):
            with Image.open(path) as image:
                return image.size
        return path.stat().st_size

    def _rows(self) -> list[tuple[int, dict[str, Any]]]:
        return [(step, json.loads(row)) for step, row in self._query("select step, metrics from metrics order by id")]

    def _query(self, query: str) -> list[Any]:
        with sqlite3.connect(Path(self.folder, "trackio", "p.db")) as connection:
            found = connection.execute(query).fetchall()
        connection.close()
        return found
