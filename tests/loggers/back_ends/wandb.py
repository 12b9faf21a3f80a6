"""`WandbLogger`: the offline files of W&B, parsed with its own protocol buffers."""

from __future__ import annotations

import html
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fulmen.loggers import Logger, WandbLogger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import BackEnd, Kind

_BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Records of a `.wandb` file: a log in LevelDB's format, after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        length, part = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _when_complete(path: Path) -> list[Any]:
    """Records of a run that was ended: its process may still be writing when `wandb.finish` returns."""
    deadline = time.monotonic() + 60
    while True:
        found = list(records(path))
        if (found and found[-1].HasField("exit")) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


class BackEndOfLogger(BackEnd):
    package = "wandb"
    extra = "wandb"
    media = frozenset(("image", "figure", "text", "table", "histogram", "audio", "video", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # starts a process of its own

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
            self.monkeypatch.setenv(name, str(self.folder))
        self.monkeypatch.setenv("WANDB_MODE", "offline")
        self.monkeypatch.setenv("WANDB_SILENT", "true")
        self.monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
        self.monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")

    def make(self, **arguments: Any) -> Logger:
        return WandbLogger(save_dir=self.folder, **arguments)

    def again(self, logger: Logger) -> Logger:
        return WandbLogger(save_dir=self.folder, id=str(logger.version))

    def close(self, logger: Logger) -> None:
        logger.finalize("success")
        self.tear_down()

    def tear_down(self) -> None:
        if sys.modules.get("wandb") is not None:
            import wandb

            wandb.finish()

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for row in self._rows(logger):
            step = row.pop("trainer/global_step", None)
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    points.setdefault(name, []).append((step, float(value)))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for record in self._records(logger):
            change = record.run.config if record.HasField("run") else record.config
            for item in change.update:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        return flatten_dict({name: value for name, value in config.items() if not name.startswith("_")})

    def status(self, logger: Logger) -> str:
        codes = [record.exit.exit_code for record in self._records(logger) if record.HasField("exit")]
        return "failed" if codes[0] else "success"

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        artifacts = [record.artifact for record in self._records(logger) if record.HasField("artifact")]
        models = [artifact for artifact in artifacts if artifact.type == "model"]
        return {json.loads(model.metadata)["original_filename"]: set(model.aliases) for model in models}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind == "artifact":
            artifacts = [record.artifact for record in self._records(logger) if record.HasField("artifact")]
            files = [entry for artifact in artifacts if artifact.name == key for entry in artifact.manifest.contents]
            return [(None, Path(entry.local_path).read_bytes()) for entry in files]
        found = [(row.get("trainer/global_step"), row[key]) for row in self._rows(logger) if key in row]
        return [(step, content) for step, value in found for content in self._contents(logger, kind, value)]

    def _contents(self, logger: Logger, kind: Kind, value: dict[str, Any]) -> list[Any]:
        if kind == "histogram":
            return [sum(value["values"])]
        if kind in ("image", "figure"):
            return [(value["width"], value["height"])] * len(value["filenames"])
        files = self._folder(logger) / "files"
        if kind in ("audio", "video"):
            several = value.get(kind) or value.get(f"{kind}s") or [value]  # the first with soundfile only
            paths = value.get("filenames") or [each["path"] for each in several]
            return [(files / path).stat().st_size for path in paths]
        text = (files / value["path"]).read_text()
        if kind == "table":
            content = json.loads(text)
            return [(content["columns"], content["data"])]
        return [html.unescape(text.removeprefix("<pre>").removesuffix("</pre>"))]

    def _rows(self, logger: Logger) -> Iterator[dict[str, Any]]:
        for record in self._records(logger):
            if record.HasField("history"):
                row: dict[str, Any] = {}
                for item in record.history.item:
                    inner, path = row, list(item.nested_key) or [item.key]
                    for name in path[:-1]:
                        inner = inner.setdefault(name, {})
                    inner[path[-1]] = json.loads(item.value_json)
                yield {name: value for name, value in row.items() if not name.startswith("_")}

    def _records(self, logger: Logger) -> Iterator[Any]:
        for path in sorted((self.folder / "wandb").glob(f"offline-run-*-{logger.version}/*.wandb")):
            yield from _when_complete(path)

    def _folder(self, logger: Logger) -> Path:
        return next((self.folder / "wandb").glob(f"offline-run-*-{logger.version}"))
