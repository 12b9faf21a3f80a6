from __future__ import annotations

import math
from dataclasses import fields

import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.callbacks.checkpoint_records import Records


def save_all(scores, keep, mode):
    records = Records.empty(mode)
    deleted: list[str] = []
    for number, score in enumerate(scores):
        records, dropped = records.with_scored(f"f{number}", torch.tensor(score), keep=keep, mode=mode)
        deleted += dropped
    return records, deleted


def test_best_and_kth_are_the_ends_of_the_ranking():
    records, deleted = save_all([3.0, 1.0, 2.0], keep=2, mode="min")

    assert records.best_model_path == "f1"
    assert records.best_model_score == 1.0
    assert (records.kth_best_model_path, records.kth_value) == ("f2", 2.0)
    assert set(records.best_k_models) == {"f1", "f2"}
    assert deleted == ["f0"]


def test_nan_ranks_last():
    records, _ = save_all([math.nan, 5.0], keep=2, mode="max")

    assert records.best_model_path == "f1"
    assert records.kth_value == -math.inf


@given(
    scores=st.lists(st.floats(width=32), min_size=1, max_size=12),
    keep=st.sampled_from([-1, 1, 2, 3]),
    mode=st.sampled_from(["min", "max"]),
)
def test_bad_scores_never_beat_finite_ones_and_records_come_back_from_a_checkpoint(scores, keep, mode):
    records, _ = save_all(scores, keep, mode)
    state = {each.name: getattr(records, each.name) for each in fields(records)}
    restored, foreign = Records.restored(state, mode=mode, is_own=lambda path: True)

    finite = [score for score in scores if math.isfinite(score)]
    if finite:
        assert float(records.best_model_score) == (min(finite) if mode == "min" else max(finite))
    assert restored == records
    assert foreign == ()


def test_paths_of_others_are_left_out_and_the_rest_is_ranked_anew():
    records, _ = save_all([3.0, 1.0, 2.0], keep=3, mode="min")
    state = {each.name: getattr(records, each.name) for each in fields(records)} | {"last_model_path": "/etc/f1"}
    restored, foreign = Records.restored(state, mode="min", is_own=lambda path: path not in ("f1", "/etc/f1"))

    assert foreign == ("f1", "/etc/f1")
    assert restored.best_model_path == "f2"
    assert restored.best_model_score == 2.0
    assert restored.kth_best_model_path == "f0"
    assert restored.last_model_path == ""
    assert restored.without({"f2"}, "min").best_model_path == "f0"


def test_keeping_all_deletes_nothing():
    records, deleted = save_all([3.0, 1.0, 2.0], keep=-1, mode="max")

    assert deleted == []
    assert len(records.best_k_models) == 3
    assert records.kth_best_model_path == "f1"


@given(
    scores=st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12),
    keep=st.sampled_from([-1, 1, 2, 3]),
    mode=st.sampled_from(["min", "max"]),
)
def test_kept_files_are_the_best_ones_and_the_rest_is_deleted(scores, keep, mode):
    records, deleted = save_all(scores, keep, mode)

    ranked = sorted(scores, reverse=mode == "max")
    kept = [float(score) for score in records.best_k_models.values()]
    assert sorted(kept, reverse=mode == "max") == ranked[: len(scores) if keep == -1 else keep]
    assert float(records.best_model_score) == ranked[0]
    assert set(deleted) | set(records.best_k_models) == {f"f{number}" for number in range(len(scores))}
    assert not set(deleted) & set(records.best_k_models)
