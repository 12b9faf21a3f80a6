"""Checkpoints of every strategy are resumed by every other one, as if nothing had changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.plugins.io.distributed_io import ShardedCheckpoint
from tests.distributed import conversions
from tests.distributed.conversions import KINDS, differences
from tests.distributed_harness import run_all, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


def of_size(processes: int) -> list[str]:
    return [kind for kind, (size, _, _) in KINDS.items() if size == processes]


def saved_tensors(path: Path) -> dict[str, Any]:
    content = ShardedCheckpoint(path).read_whole() if path.is_dir() else torch.load(path, weights_only=True)
    return {name: content[name] for name in ("state_dict", "optimizer_states")}


def check(folder: Path, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    """See that each run got what had been saved, and went on as the run on one device that nobody interrupted."""
    _, uninterrupted = conversions.fit("one", str(folder), epochs=2)
    expected = torch.tensor(uninterrupted.losses[4:])
    for (name, kind), result in results.items():
        wrong = differences(saved_tensors(folder / f"{name}.ckpt"), result["loaded"])
        assert not wrong, f"{name} -> {kind}: {wrong}"
        far = (torch.tensor(result["losses"]) - expected).abs().max()
        assert far < 1e-5, f"{name} -> {kind}: losses differ by {far}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture(scope="module")
def played(folder: Path) -> list[Any]:
    """What rank 0 of two returns, which play one after the other in the same processes."""
    place, kinds = str(folder), ["fsdp"]
    conversions.save(place, ["one"])
    jobs = [
        (conversions.save, (place, kinds)),
        (conversions.continue_from, (place, kinds, ["one", *kinds])),
        (conversions.keep_in_background, (place,)),
        (conversions.save_and_load_by_fabric, (place,)),
    ]
    return run_ranks(run_all, 2, jobs, timeout=250)[0]  # type: ignore[no-any-return]  # what they return


def test_shards_of_two_processes_are_resumed_by_one_and_back(folder: Path, played: list[Any]) -> None:
    assert isinstance(played[1], dict), played[1]
    assert (folder / "fsdp.ckpt" / ".metadata").is_file()
    check(folder, {**played[1], **conversions.continue_from(str(folder), ["one"], ["fsdp"])})


def test_folders_are_kept_removed_and_linked_in_the_background(folder: Path, played: list[Any]) -> None:
    assert isinstance(played[2], dict), played[2]
    _, uninterrupted = conversions.fit("one", str(folder), epochs=2)

    assert played[2]["names"] == ["last.ckpt", "step=3.ckpt", "step=4.ckpt"]
    assert played[2]["losses"] == pytest.approx(uninterrupted.losses, abs=1e-5)


def test_fabric_keeps_several_sharded_models_in_one_folder(played: list[Any]) -> None:
    assert isinstance(played[3], dict), played[3]
    assert played[3] == {"wrong": [], "step": 3, "rest": {}, "numbers": [0, 1, 2, 3]}


@pytest.mark.slow
def test_every_strategy_resumes_what_every_other_has_saved(tmp_path: Path) -> None:
    folder, names = str(tmp_path), list(KINDS)
    conversions.save(folder, of_size(1))
    results = {}
    for size in (2, 4):
        run_ranks(conversions.save, size, folder, of_size(size), timeout=900)
    for size in (2, 4):
        results.update(run_ranks(conversions.continue_from, size, folder, of_size(size), names, timeout=1200)[0])
    results.update(conversions.continue_from(folder, of_size(1), names))

    assert len(results) == len(KINDS) ** 2
    check(tmp_path, results)
