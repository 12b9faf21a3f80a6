"""`JSONLogger`: its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fulmen.loggers import JSONLogger, Logger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import KINDS, BackEnd, Kind
from tests.loggers.read_files import media_in_files


class BackEndOfLogger(BackEnd):
    package = None
    extra = None
    media = frozenset(KINDS)
    takes_rows_back = True
    knows_failure = True

    def make(self, **arguments: Any) -> Logger:
        return JSONLogger(self.folder / "logs", **arguments)

    def again(self, logger: Logger) -> Logger:
        return JSONLogger(self.folder / "logs", version=logger.version)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        for line in Path(str(logger.log_dir), "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            step = row.pop("step")
            row.pop("epoch", None)
            for name, value in row.items():
                points.setdefault(name, []).append((step, float(value)))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return flatten_dict(self._run(logger)["hyperparameters"])

    def status(self, logger: Logger) -> str:
        return str(self._run(logger)["status"])

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        return media_in_files(logger, kind, key)

    def _run(self, logger: Logger) -> dict[str, Any]:
        run: dict[str, Any] = json.loads(Path(str(logger.log_dir), "run.json").read_text())
        return run
