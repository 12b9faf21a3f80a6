"""`SwanLabLogger`: the files that SwanLab writes offline, parsed with its own reader and protocol buffers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from fulmen.loggers import Logger, SwanLabLogger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import BackEnd, Kind


class BackEndOfLogger(BackEnd):
    package = "swanlab"
    extra = "swanlab"
    media = frozenset(("image", "figure", "text", "table", "audio", "video", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # half a second to begin a run

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.monkeypatch.setenv("SWANLAB_SAVE_DIR", str(self.folder / "home"))

    def make(self, **arguments: Any) -> Logger:
        return SwanLabLogger("p", mode="offline", log_dir=self.folder / "swan", **arguments)

    def again(self, logger: Logger) -> Logger:
        return self.make(id=logger.version)

    def tear_down(self) -> None:
        if sys.modules.get("swanlab") is not None:
            import swanlab

            if swanlab.has_run():
                swanlab.finish()

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for _, record in self._records(logger):
            if record.HasField("scalar") and record.scalar.key != "epoch" and not record.scalar.key.startswith("__"):
                points.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for run in self._runs(logger):
            content = yaml.safe_load((run / "files" / "config.yaml").read_text()) or {}
            found.update({name: entry["value"] for name, entry in content.items()})
        return flatten_dict(found)

    def status(self, logger: Logger) -> str:
        states = [record.finish.state for _, record in self._records(logger) if record.HasField("finish")]
        from swanlab.proto.swanlab.run.v1.run_pb2 import RunState

        return {"RUN_STATE_CRASHED": "failed", "RUN_STATE_FINISHED": "success"}[RunState.Name(states[0])]

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        notes = self._config(logger).get("checkpoints", {})
        names = [Path(record.save.name) for _, record in self._records(logger) if record.HasField("save")]
        kept = [path.name for path in names if path.parent.name == "checkpoints"]
        return {name: set(notes[name]["aliases"].split(", ")) for name in kept}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        found: list[tuple[int | None, Any]] = []
        for run, record in self._records(logger):
            if kind == "artifact" and record.HasField("save") and record.save.name == key:
                found.append((None, Path(record.save.target_path).read_bytes()))
            if kind != "artifact" and record.HasField("media") and record.media.key == key:
                paths = [next((run / "media").rglob(item.filename)) for item in record.media.value.items]
                found += [(record.media.step, _content(kind, path)) for path in paths]
        return found

    def _config(self, logger: Logger) -> dict[str, Any]:
        *_, run = self._runs(logger)
        content = yaml.safe_load((run / "files" / "config.yaml").read_text()) or {}
        return {name: entry["value"] for name, entry in content.items()}

    def _runs(self, logger: Logger) -> list[Path]:
        return sorted((self.folder / "swan").glob(f"run-*-{logger.version}*"), key=lambda run: run.stat().st_ctime_ns)

    def _records(self, logger: Logger) -> Iterator[tuple[Path, Any]]:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record
        from swanlab.sdk.internal.core_python.store import DataStoreReader

        for run in self._runs(logger):
            reader = DataStoreReader()
            reader.open(next(run.glob("*.swanlab")))
            while (content := reader.scan()) is not None:
                record = Record()
                record.ParseFromString(content)
                yield run, record
            reader.close()


def _content(kind: Kind, path: Path) -> Any:
    if kind in ("image", "figure"):
        with Image.open(path) as image:
            return image.size
    if kind == "table":
        content = json.loads(path.read_text())
        columns = [column["field"] for column in content["colDefs"]]
        return columns, [[row[column] for column in columns] for row in content["rowData"]]
    return path.read_text() if kind == "text" else path.stat().st_size
