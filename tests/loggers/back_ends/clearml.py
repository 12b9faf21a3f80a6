"""`ClearMLLogger`: the folder of an offline session, to be imported by a server later."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from fulmen.loggers import ClearMLLogger, Logger
from tests.loggers.back_ends.adapter import BackEnd, Kind


class BackEndOfLogger(BackEnd):
    package = "clearml"
    extra = "clearml"
    media = frozenset(("image", "figure", "text", "table", "histogram", "audio", "video", "artifact"))
    keeps_checkpoints = True
    slow = True  # seconds to import its package and to close a session

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.monkeypatch.setenv("CLEARML_CACHE_DIR", str(self.folder / "clearml"))
        self.monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
        self.monkeypatch.setenv("HOME", str(self.folder))
        self.is_hurried = False

    def make(self, **arguments: Any) -> Logger:
        for name in ("auto_resource_monitoring", "auto_connect_arg_parser", "auto_connect_streams"):
            arguments[name] = False
        logger = ClearMLLogger("p", "t", **arguments)
        self._hurry()
        return logger

    def _hurry(self) -> None:
        """Report from this process, as by `report_use_subprocess: false`, and do not wait ten seconds when closing."""
        if not self.is_hurried:
            from clearml import Task
            from clearml.backend_interface.metrics.reporter import BackgroundReportService

            name = "_BackgroundReportService__daemon_live_check_timeout"
            assert hasattr(BackgroundReportService, name)
            self.monkeypatch.setattr(BackgroundReportService, name, 0.0)
            self.monkeypatch.setattr(Task, "_report_subprocess_enabled", False)
            self.is_hurried = True

    def again(self, logger: Logger) -> Logger:
        return self.make(task_id=logger.version)

    def tear_down(self) -> None:
        if sys.modules.get("clearml") is None:
            return
        from clearml import Task

        task = Task.current_task()
        if task is not None:
            task.close()

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for event in self._events(logger):
            if event["type"] == "training_stats_scalar":
                title, series = event["metric"], event["variant"]
                name = series if title == series else f"{title}/{series}"
                if name != "epoch":
                    points.setdefault(name, []).append((event["iter"], event["value"]))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return {name: entry["value"] for name, entry in self._task(logger)["hyperparams"]["General"].items()}

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        artifacts = self._task(logger)["execution"]["artifacts"]
        return {_note(each, "original_filename"): set(_note(each, "aliases").split(", ")) for each in artifacts}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind == "artifact":
            artifacts = self._task(logger)["execution"]["artifacts"]
            return [(None, Path(each["uri"]).read_bytes()) for each in artifacts if each["key"] == key]
        events = [event for event in self._events(logger) if event["metric"] == key]
        return [(event["iter"], _content(kind, event)) for event in events]

    def _archive(self, logger: Logger) -> zipfile.ZipFile:
        return zipfile.ZipFile(next(self.folder.rglob(f"{logger.version}.zip")))

    def _task(self, logger: Logger) -> dict[str, Any]:
        with self._archive(logger) as archive:
            task: dict[str, Any] = json.loads(archive.read("task.json"))
        return task

    def _events(self, logger: Logger) -> Iterator[dict[str, Any]]:
        with self._archive(logger) as archive:
            for line in archive.read("metrics.jsonl").decode().splitlines():
                if line:
                    yield from json.loads(line)


def _note(artifact: dict[str, Any], name: str) -> str:
    entries = artifact.get("display_data") or []
    return str(dict(entries)[name])


def _content(kind: Kind, event: dict[str, Any]) -> Any:
    if kind in ("table", "histogram"):
        (part,) = json.loads(event["plot_str"])["data"]
        if kind == "histogram":
            return sum(part["y"])
        columns = part["cells"]["values"]
        return part["header"]["values"], [list(row) for row in zip(*columns, strict=True)]
    path = Path(event["url"])
    if kind in ("image", "figure"):
        with Image.open(path) as image:
            return image.size
    return path.read_text() if kind == "text" else path.stat().st_size
