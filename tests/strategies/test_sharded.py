"""What strategies with divided weights share: optimizers made early, buffers, layers made late, errors on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import run_all, run_ranks
from tests.strategies import sharded_runs as runs

WAYS = ("fsdp", "tensor")


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each of two ranks returned; all in one start of the processes. What must come last is last."""
    folder = tmp_path_factory.mktemp("runs")
    work: dict[str, Any] = {
        **{f"early {way}": (runs.early, (folder, way)) for way in WAYS},
        **{f"fabric {way}": (runs.early_in_fabric, (way,)) for way in WAYS},
        **{f"norm {way}": (runs.batch_norm, (folder, way)) for way in ("ddp", "fsdp", "data")},
        "late": (runs.made_late, (folder, "fsdp")),
        "scalar": (runs.scalar, (folder,)),
        "caught": (runs.caught, (folder,)),
        "colwise": (runs.colwise_alone, (folder,)),
    }
    of_ranks = run_ranks(run_all, 2, list(work.values()), timeout=200)
    return {name: [of_rank[number] for of_rank in of_ranks] for number, name in enumerate(work)}


@pytest.mark.parametrize("way", WAYS)
def test_an_optimizer_that_is_older_than_the_parts_trains_them(
    on_two: dict[str, list[Any]], way: str, tmp_path: Path
) -> None:
    expected = runs.early(tmp_path, "one")

    for name in (f"early {way}", f"fabric {way}"):
        for weights in on_two[name]:
            torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)


def test_all_ranks_evaluate_with_the_buffers_that_are_saved(on_two: dict[str, list[Any]]) -> None:
    for way in ("ddp", "fsdp", "data"):
        (inside, after, outputs), (inside_1, after_1, outputs_1) = on_two[f"norm {way}"]
        assert inside == inside_1 == pytest.approx(after, abs=1e-6) == after_1
        assert outputs == outputs_1
    values = [on_two[f"norm {way}"][0][0] for way in ("ddp", "fsdp", "data")]
    assert values == pytest.approx(values[:1] * 3, abs=1e-5)


def test_layers_made_on_the_meta_device_are_loaded_and_trained_in_one_process(
    on_two: dict[str, list[Any]], tmp_path: Path
) -> None:
    trained, loaded = runs.made_late(tmp_path, "one")
    torch.testing.assert_close(loaded, trained, rtol=0, atol=0)

    for of_rank in on_two["late"]:
        torch.testing.assert_close(of_rank, [trained, trained], rtol=1e-5, atol=1e-6)


def test_a_layer_that_cannot_fill_itself_is_refused_without_a_checkpoint(tmp_path: Path) -> None:
    class Silent(runs.MadeLate):
        def configure_model(self) -> None:
            super().configure_model()
            self.scale = torch.nn.Parameter(torch.ones(4, device="meta"))

    with pytest.raises(RuntimeError, match=r"\['scale'\] have no values"):
        runs.trainer(tmp_path, "one").fit(Silent(), torch.utils.data.DataLoader(runs.data(8), 4))


def test_a_missing_checkpoint_is_the_same_error_on_all_ranks(on_two: dict[str, list[Any]]) -> None:
    first, second = on_two["caught"]
    assert "nothing.ckpt" in first
    assert first == second


def test_a_parameter_that_cannot_be_divided_is_named(on_two: dict[str, list[Any]]) -> None:
    assert "['logit_scale'] of `Scaled`" in on_two["scalar"][0]


def test_a_plan_whose_outputs_nobody_takes_says_what_to_add(on_two: dict[str, list[Any]]) -> None:
    assert "has to be 'rowwise'" in on_two["colwise"][0]
