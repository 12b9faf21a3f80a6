"""`CSVLogger`: its files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from fulmen.loggers import CSVLogger, Logger
from tests.loggers.back_ends.adapter import KINDS, BackEnd, Kind
from tests.loggers.read_files import media_in_files


class BackEndOfLogger(BackEnd):
    package = None
    extra = None
    media = frozenset(KINDS)
    takes_rows_back = True

    def make(self, **arguments: Any) -> Logger:
        return CSVLogger(self.folder / "logs", **arguments)

    def again(self, logger: Logger) -> Logger:
        return CSVLogger(self.folder / "logs", version=logger.version)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        points: dict[str, list[tuple[int, float]]] = {}
        with Path(str(logger.log_dir), "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        points.setdefault(name, []).append((int(row["step"]), float(value)))
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        from fulmen.loggers.params import flatten_dict

        return flatten_dict(yaml.safe_load(Path(str(logger.log_dir), "hparams.yaml").read_text()))

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        return media_in_files(logger, kind, key)
