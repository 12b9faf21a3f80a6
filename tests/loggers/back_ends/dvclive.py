"""`DVCLiveLogger`: the plots, metrics and parameters in DVCLive's folder, beside a repository of DVC."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from fulmen.loggers import DVCLiveLogger, Logger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import BackEnd, Kind


class BackEndOfLogger(BackEnd):
    package = "dvclive"
    extra = "dvclive"
    media = frozenset(("image", "figure", "artifact"))
    takes_rows_back = True
    keeps_checkpoints = True
    slow = True  # its package takes a second to import

    def make(self, **arguments: Any) -> Logger:
        return DVCLiveLogger(dir=self.folder / "live", save_dvc_exp=False, **arguments)

    def again(self, logger: Logger) -> Logger:
        return self.make(resume=True)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        folder = self.folder / "live" / "plots" / "metrics"
        points = {}
        for path in sorted(folder.rglob("*.tsv")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            with path.open(newline="") as file:
                _, *rows = csv.reader(file, delimiter="\t")
            if name != "epoch":
                points[name] = [(int(step), float(value)) for step, value in rows]
        return points

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return flatten_dict(yaml.safe_load((self.folder / "live" / "params.yaml").read_text()))

    def checkpoints(self, logger: Logger) -> dict[str, set[str]]:
        return {path.name: set() for path in (self.folder / "live" / "artifacts").glob("*.ckpt")}

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind == "artifact":
            return [(None, (self.folder / "live" / "artifacts" / key).read_bytes())]
        return [(_step(path), _size(path)) for path in sorted((self.folder / "live/plots/images" / key).iterdir())]


def _step(path: Path) -> int:
    found = re.match(r"\d+", path.stem)
    assert found is not None
    return int(found[0])


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return (image.width, image.height)
