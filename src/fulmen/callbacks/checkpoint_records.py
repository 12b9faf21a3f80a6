"""What a `ModelCheckpoint` knows about its files, as values: the state before and after a save can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
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
            score: Its score; NaN and infinity count as the worst.
            keep: How many are kept, -1 for all.
            mode: "min" or "max".
        """
        score = score if bool(score.isfinite()) else worst_score(mode)
        models = {other: value for other, value in self.best_k_models.items() if other != path} | {path: score}
        ranking = _ranking(models, mode)
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

    @classmethod
    def restored(
        cls, state: Mapping[str, Any], *, mode: str, is_own: Callable[[str], bool]
    ) -> tuple[Records, tuple[str, ...]]:
        """Return the records that a checkpoint holds, and the paths in it that are none of ours.

        The checkpoint may come from anywhere: what is ranked is ranked anew, and of the paths only own ones count.

        Args:
            state: Values by the names of the fields; absent ones are as before the first save.
            mode: "min" or "max".
            is_own: Tells whether a path may be one of the callback's files.
        """
        named = state.get("best_k_models")
        named = named if isinstance(named, Mapping) else {}
        paths = [*named, *(state.get(each.name) for each in fields(cls) if each.name.endswith("_path"))]
        given = [path for path in paths if path not in ("", None)]
        own = {path for path in given if isinstance(path, str) and is_own(path)}
        models = {path: _score(score, mode) for path, score in named.items() if path in own}
        best, last = state.get("best_model_path", ""), state.get("last_model_path", "")
        best_score, current = state.get("best_model_score"), state.get("current_score")
        records = replace(
            cls.empty(mode),
            best_model_path=best if best in own else "",
            best_model_score=None if best_score is None or best not in own else _score(best_score, mode),
            current_score=None if current is None else _score(current, mode),
            last_model_path=last if last in own else "",
        )
        return records._with_ranked(models, mode), tuple(dict.fromkeys(str(path) for path in given if path not in own))

    def without(self, missing: set[str], mode: str) -> Records:
        """Return the records without files that are no longer there."""
        models = {path: score for path, score in self.best_k_models.items() if path not in missing}
        records = replace(
            self,
            last_model_path="" if self.last_model_path in missing else self.last_model_path,
            kth_best_model_path="",
            kth_value=worst_score(mode),
        )
        if self.best_model_path in missing:
            records = replace(records, best_model_path="", best_model_score=None)
        return records._with_ranked(models, mode)

    def _with_ranked(self, models: dict[str, Tensor], mode: str) -> Records:
        """Return these records with the scored files, and what follows from their ranking."""
        if not models:
            return replace(self, best_k_models={})
        ranking = _ranking(models, mode)
        return replace(
            self,
            best_model_path=ranking[0],
            best_model_score=models[ranking[0]],
            best_k_models=models,
            kth_best_model_path=ranking[-1],
            kth_value=models[ranking[-1]],
        )

    def owned(self) -> set[str]:
        """Return all paths that the records name."""
        return {self.best_model_path, self.last_model_path, *self.best_k_models} - {""}


def _ranking(models: Mapping[str, Tensor], mode: str) -> list[str]:
    # stable: of equal scores the older file ranks first
    return sorted(models, key=lambda path: float(models[path]), reverse=mode == "max")


def _score(value: Any, mode: str) -> Tensor:
    """Return a score from a checkpoint as a score; whatever is none counts as the worst."""
    if not isinstance(value, (int, float, Tensor)) or torch.as_tensor(value).numel() != 1:
        return worst_score(mode)
    score = torch.as_tensor(value).detach().cpu().reshape(())
    return worst_score(mode) if bool(score.isnan()) else score


@dataclass(frozen=True, slots=True)
class Plan:
    """One save, decided before anything is written."""

    records: Records  # what is true once all files are written
    model_path: str = ""  # file to write, none if empty
    last_path: str = ""  # "last" file to write or link, none if empty
    obsolete: tuple[str, ...] = field(default=())  # files to delete afterwards
