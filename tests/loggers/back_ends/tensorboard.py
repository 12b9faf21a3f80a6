"""`TensorBoardLogger`: its event files, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fulmen.loggers import Logger, TensorBoardLogger
from fulmen.loggers.params import flatten_dict
from tests.loggers.back_ends.adapter import KINDS, BackEnd, Kind
from tests.loggers.read_files import media_in_files


class BackEndOfLogger(BackEnd):
    package = "tensorboard"
    extra = "loggers"
    media = frozenset(KINDS)
    takes_rows_back = True

    def make(self, **arguments: Any) -> Logger:
        return TensorBoardLogger(self.folder / "logs", **arguments)

    def again(self, logger: Logger) -> Logger:
        for path in Path(str(logger.log_dir)).glob("events*"):  # TensorBoard sorts files by the second in their names
            path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
        return TensorBoardLogger(self.folder / "logs", version=logger.version)

    def metrics(self, logger: Logger) -> dict[str, list[tuple[int, float]]]:
        events = self._events(logger)
        tags = [tag for tag in events.Tags()["scalars"] if tag not in ("hp_metric", "epoch")]
        curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
        return {tag: curve for tag, curve in curves.items() if curve}  # TensorBoard keeps the names of dropped ones

    def hyperparameters(self, logger: Logger) -> dict[str, Any]:
        return flatten_dict(yaml.safe_load(Path(str(logger.log_dir), "hparams.yaml").read_text()))

    def media_of(self, logger: Logger, kind: Kind, key: str) -> list[tuple[int | None, Any]]:
        if kind in ("table", "artifact"):
            return media_in_files(logger, kind, key)
        events = self._events(logger)
        if kind in ("image", "figure", "video"):
            tags = [tag for tag in events.Tags()["images"] if tag == key or tag.startswith(f"{key}/")]
            found = [event for tag in tags for event in events.Images(tag)]
            return [(e.step, len(e.encoded_image_string) if kind == "video" else (e.width, e.height)) for e in found]
        if kind == "histogram":
            return [(e.step, int(e.histogram_value.num)) for e in events.Histograms(key)]
        if kind == "audio":
            tags = [tag for tag in events.Tags()["audio"] if tag == key or tag.startswith(f"{key}/")]
            return [(e.step, len(e.encoded_audio_string)) for tag in tags for e in events.Audio(tag)]
        return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(f"{key}/text_summary")]

    def _events(self, logger: Logger) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        everything = {"scalars": 0, "images": 0, "audio": 0, "histograms": 0, "tensors": 0}
        return EventAccumulator(str(logger.log_dir), size_guidance=everything).Reload()
