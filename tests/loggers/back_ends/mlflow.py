"""`MLFlowLogger` with MLflow's own database, SQLite."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fulmen.loggers import Logger, MLFlowLogger
from tests.loggers.back_ends.adapter import BackEnd, Kind
from tests.loggers.read_files import content_of


@functools.cache
def empty_database() -> tempfile.TemporaryDirectory[str]:
    """A database with its tables, as making them takes seconds."""
    from mlflow.tracking import MlflowClient

    folder = tempfile.TemporaryDirectory()
    MlflowClient(f"sqlite:///{folder.name}/mlflow.db").search_experiments()
    return folder


class BackEndOfLogger(BackEnd):
    package = "mlflow"
    extra = "mlflow"
    media = frozenset(("image", "figure", "text", "table", "audio", "video", "artifact"))
    keeps_checkpoints = True
    knows_failure = True
    slow = True  # makes the tables of a database

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
        self.monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        self.uri: str | None = None
        (self.folder / "runs").mkdir()
        shutil.copy(Path(empty_database().name, "mlflow.db"), self.folder / "runs")

    def make(self, **arguments: Any) -> Logger:
        return MLFlowLogger(save_dir=str(self.folder / "runs"), tracking_uri=self.uri, **arguments)

    def again(self, logger: Logger) -> Logger:
        return MLFlowLogger(save_dir=str(self.folder / "runs"), tracking_uri=self.uri, run_id=str(logger.version))

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        client = self._client()
        names = [name for name in client.get_run(logger.version).data.metrics if name != "epoch"]
        return {
            name: [(each.step, each.value) for each in client.get_metric_history(logger.version, name)]
            for name in names
        }

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return dict(self._client().get_run(logger.version).data.params)

    def status(self, logger: Logger) -> str:
        return {"FINISHED": "success", "FAILED": "failed"}[self._client().get_run(logger.version).info.status]

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        paths = self._artifacts(logger, "model")
        aliases = [self._download(logger, path).read_text() for path in paths if path.endswith("aliases.txt")]
        files = [Path(path).name for path in paths if path.endswith(".ckpt")]
        return {name: set(ast.literal_eval(text)) for name, text in zip(files, aliases, strict=True)}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind == "artifact":
            return [(None, self._download(logger, key).read_bytes())]
        found: list[tuple[int | None, Any]] = []
        if kind in ("image", "figure"):
            for path in self._artifacts(logger, "images"):
                parts = unquote(path.removeprefix("images/")).replace("%", "+").split("+")
                if path.endswith(".png") and parts[0].replace("~", "/").replace("#", "/") == key:
                    found.append((int(parts[2]), content_of(self._download(logger, path), kind)))
            return found
        for path in self._artifacts(logger, f"{kind}/{key}"):
            local = self._download(logger, path)
            step = int(Path(path).stem.split("_")[0])
            if kind == "table":
                table = json.loads(local.read_text())
                found.append((step, (table["columns"], table["data"])))
            else:
                found.append((step, content_of(local, kind)))
        return found

    def _artifacts(self, logger: Logger, folder: str) -> list[str]:
        paths: list[str] = []
        for each in self._client().list_artifacts(logger.version, folder):
            paths += self._artifacts(logger, each.path) if each.is_dir else [each.path]
        return sorted(paths)

    def _download(self, logger: Logger, path: str) -> Path:
        return Path(self._client().download_artifacts(logger.version, path, str(self._scratch())))

    def _scratch(self) -> Path:
        folder = self.folder / "downloaded"
        folder.mkdir(exist_ok=True)
        return folder

    def _client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri or f"sqlite:///{self.folder}/runs/mlflow.db")
