"""What a `ModelCheckpoint` knows about its files, as values: the state before and after a save can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from fulmen.callbacks.monitor import worst_score

__all__ = ["Plan", "Records"]


@dataclass(frozen=True, slots=True)
class Records:
    """Paths and scores of the kept checkpoints; the fields are the public attributes of `ModelCheckpoint`."""

    best_model_path: str
    best_model_score: Tensor | None
    current_score: Tensor | None
    best_k_models: dict[str, Tensor]
    kth_best_model_path: str
    kth_value: Tensor
    last_model_path: str

    @classmethod
    def empty(cls, mode: str) -> Records:
        """Return the records before anything is saved."""
        return cls("", None, None, {}, "", worst_score(mode), "")

    def with_newest(self, path: str) -> Records:
        """Return the records after a save without a monitored metric, where the newest counts as the best."""
        return replace(self, best_model_path=path)

    def with_scored(self, path: str, score: Tensor, *, keep: int, mode: str) -> tuple[Records, tuple[str, ...]]:
        """Return the records after a scored save, and the files that are no longer among the best.

        Args:
            path: The new file; an entry of the same path is replaced.
            score: Its score; NaN counts as the worst.
            keep: How many are kept, -1 for all.
            mode: "min" or "max".
        """
        score = worst_score(mode) if bool(score.isnan()) else score
        models = {other: value for other, value in self.best_k_models.items() if other != path} | {path: score}
        # stable: of equal scores the older file ranks first
        ranking = sorted(models, key=lambda other: float(models[other]), reverse=mode == "max")
        keep = len(ranking) if keep == -1 else keep
        kept, dropped = ranking[:keep], ranking[keep:]
        models = {other: value for other, value in models.items() if other in kept}
        records = replace(
            self,
            best_model_path=kept[0],
            best_model_score=models[kept[0]],
            current_score=score,
            best_k_models=models,
            kth_best_model_path=kept[-1],
            kth_value=models[kept[-1]],
        )
        return records, tuple(dropped)

    def owned(self) -> set[str]:
        """Return all paths that the records name."""
        return {self.best_model_path, self.last_model_path, *self.best_k_models} - {""}


@dataclass(frozen=True, slots=True)
class Plan:
    """One save, decided before anything is written."""

    records: Records  # what is true once all files are written
    model_path: str = ""  # file to write, none if empty
    last_path: str = ""  # "last" file to write or link, none if empty
    obsolete: tuple[str, ...] = field(default=())  # files to delete afterwards
