"""DeepSpeed, with the real package on the CPU over gloo; without it, what needs no package.

`make test-deepspeed` runs all of it in an environment of its own.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import pytest
import torch

from fulmen import Trainer
from fulmen.plugins import AsyncCheckpointIO, MixedPrecision
from fulmen.plugins.precision import DeepSpeedPrecision
from fulmen.strategies import STRATEGY_REGISTRY, DeepSpeedStrategy
from fulmen.strategies.deepspeed_config import check_config, complete_config
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed
from tests.distributed_harness import run_all, run_ranks, run_script
from tests.strategies import deepspeed_ranks as ranks

pytestmark = pytest.mark.timeout(900)  # two modules' worth of runs in one start of processes
needs_deepspeed = pytest.mark.skipif(
    not is_installed("deepspeed"), reason="needs DeepSpeed, which `make test-deepspeed` installs"
)


# ---- without the package


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"stage": 4}, ValueError, ["stage=4", "Choose 1"]),
        ({"stage": 2, "offload_parameters": True}, ValueError, ["offload_parameters", "stage 3"]),
        ({"offload_optimizer": True, "offload_optimizer_device": "nvme"}, ValueError, ["'nvme'", "stage 3"]),
        ({"zero_optimization": False, "offload_optimizer": True}, ValueError, ["stage 1", "the stage is 0"]),
        ({"offload_params_device": "disk"}, ValueError, ["'disk'", "'cpu' or 'nvme'"]),
        ({"remote_device": "disk"}, ValueError, ["remote_device='disk'", "'nvme'"]),
        ({"config": "nowhere.json"}, MisconfigurationException, ["'nowhere.json'", "does not exist"]),
        ({"config": 3}, TypeError, ["config=3", "dict"]),
        ({"config": {}, "stage": 3}, ValueError, ["config", "['stage']"]),
        ({"config": {"zero_optimization": {"stage": 7}}}, ValueError, ["7", "Choose one of"]),
        ({"config": {"optimizer": {"params": {"lr": "auto"}}}}, ValueError, ["optimizer.params.lr", "Write the value"]),
        ({"config": {"zero_optimisation": {"stage": 3}}}, ValueError, ["'zero_optimisation'", "`zero_optimization`"]),
        ({"config": {"gradient_cliping": 0.1}}, ValueError, ["'gradient_cliping'", "`gradient_clipping`"]),
        ({"config": {"stage": 3}}, ValueError, ["'stage'", "move it into the section"]),
    ],
)
def test_impossible_arguments_are_refused_with_what_to_do(arguments, error, words):
    with pytest.raises(error) as caught:
        DeepSpeedStrategy(**arguments)

    assert all(word in str(caught.value) for word in words)


@pytest.mark.skipif(is_installed("deepspeed"), reason="DeepSpeed is installed")
@pytest.mark.parametrize("strategy", ["deepspeed", "deepspeed_stage_3_offload"])
def test_without_the_package_the_error_says_how_to_install_it(strategy):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fulmen\[deepspeed\]'"):
        Trainer(strategy=strategy, accelerator="cpu", devices=2)


def test_all_names_of_lightning_are_registered():
    names = {name for name in STRATEGY_REGISTRY.names() if name.startswith("deepspeed")}

    suffixes = ["1", "1_offload", "2", "2_offload", "3", "3_offload", "3_offload_nvme"]
    assert names == {"deepspeed", *(f"deepspeed_stage_{suffix}" for suffix in suffixes)}
    nvme = STRATEGY_REGISTRY["deepspeed_stage_3_offload_nvme"]["init_params"]
    assert nvme["offload_params_device"] == nvme["remote_device"] == "nvme"


def test_precision_is_one_of_those_that_deepspeed_has():
    batch = DeepSpeedPrecision("bf16-mixed").convert_input({"x": torch.ones(2), "n": torch.ones(2, dtype=torch.long)})

    assert batch["x"].dtype is torch.bfloat16
    assert batch["n"].dtype is torch.long
    with pytest.raises(ValueError, match=r"precision='64-true'.*not supported in DeepSpeed"):
        DeepSpeedPrecision("64-true")  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="'norm'"):
        DeepSpeedPrecision("32-true").clip_gradients(None, 1.0, "value")  # type: ignore[arg-type]


_SCALER = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 5, "hysteresis": 2, "min_loss_scale": 1}
_complete = partial(complete_config, scaler=_SCALER, micro_batch_size=3, for_trainer=True, clip_val=None)


def test_auto_values_and_precision_come_from_the_run():
    config = {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto",
              "train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}  # fmt: skip

    completed = _complete(config, precision="bf16-mixed", clip_val=0.5)

    assert completed["bf16"]["enabled"] is True
    assert completed["fp16"]["enabled"] is False
    assert completed["gradient_clipping"] == 0.5
    assert completed["train_micro_batch_size_per_gpu"] == 3
    assert _complete({}, precision="16-mixed")["fp16"]["loss_scale_window"] == 5
    assert config["gradient_clipping"] == "auto"


@pytest.mark.parametrize(
    ("config", "run", "words"),
    [
        ({"gradient_accumulation_steps": 4}, {}, ["accumulate_grad_batches=4", "Remove it"]),
        ({"gradient_clipping": 1.0}, {"clip_val": 0.5}, ["1.0", "0.5", "Remove one"]),
        ({"bf16": {"enabled": True}}, {}, ["enables `bf16`", "precision='bf16-mixed'"]),
        ({"train_micro_batch_size_per_gpu": 3}, {"loader_batch_size": 4}, ["=3", "trains with 4", "batch_size=4"]),
        ({"train_batch_size": 4}, {"loader_batch_size": 4, "num_micro_batches": 6}, ["=4", "trains with 24"]),
    ],
)
def test_a_config_that_contradicts_the_trainer_is_refused(config, run, words):
    with pytest.raises(MisconfigurationException) as caught:
        _complete(config, **{"precision": "32-true", **run})

    assert all(word in str(caught.value) for word in words)


def test_batch_sizes_that_agree_with_the_trainer_are_taken():
    config = {"train_micro_batch_size_per_gpu": 4, "train_batch_size": 24}

    completed = _complete(config, precision="32-true", loader_batch_size=4, num_micro_batches=6)

    assert completed["train_micro_batch_size_per_gpu"] == 4
    assert "train_batch_size" not in completed  # DeepSpeed would not find the windows in it


def test_names_at_the_top_that_deepspeed_knows_and_comments_are_taken():
    check_config({"comms_logger": {"enabled": False}, "data_types": {}, "_note": "ours", "timers": {}}, "0.19.8")
    with pytest.raises(ValueError, match="'new_section'"):
        check_config({"new_section": {}}, "0.19.8")
    with pytest.warns(UserWarning, match=r"'new_section'.*newer than the names"):
        check_config({"new_section": {}}, "0.25.1")


# ---- with the package


@needs_deepspeed
def test_config_comes_from_a_dict_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))

    assert DeepSpeedStrategy(config=path).zero_stage_3
    assert not DeepSpeedStrategy(config={"zero_optimization": {"stage": 1}}).zero_stage_3
    monkeypatch.setenv(DeepSpeedStrategy.DEEPSPEED_ENV_VAR, str(path))
    assert DeepSpeedStrategy().zero_stage_3
    with pytest.warns(UserWarning, match=r"in\s+place of the arguments \['stage'\]"):
        DeepSpeedStrategy(stage=1)
    nvme = STRATEGY_REGISTRY.get("deepspeed_stage_2").config
    assert nvme == {"zero_optimization": {"stage": 3}}


@needs_deepspeed
def test_arguments_of_nvme_are_passed_on():
    zero = DeepSpeedStrategy(
        stage=3, offload_optimizer=True, offload_parameters=True, offload_params_device="nvme", nvme_path="/disk",
        offload_optimizer_device="nvme", params_buffer_size=7, optimizer_buffer_count=9, thread_count=2,
    ).config  # fmt: skip

    assert zero["zero_optimization"]["offload_param"]["buffer_size"] == 7
    assert zero["zero_optimization"]["offload_param"]["nvme_path"] == "/disk"
    assert zero["zero_optimization"]["offload_optimizer"]["buffer_count"] == 9
    assert zero["aio"]["thread_count"] == 2


@needs_deepspeed
def test_parts_that_deepspeed_has_of_its_own_are_refused():
    strategy = STRATEGY_REGISTRY.get("deepspeed")
    for plugin, word in ((MixedPrecision("bf16-mixed", "cpu"), "DeepSpeedPrecision"), (AsyncCheckpointIO(), "folders")):
        with pytest.raises(MisconfigurationException, match=word):
            Trainer(strategy=strategy, plugins=[plugin], accelerator="cpu", devices=2)
    assert isinstance(Trainer(strategy="deepspeed", accelerator="cpu", precision="bf16-mixed").precision_plugin,
                      DeepSpeedPrecision)  # fmt: skip


def _close(one: Any, other: Any, tolerance: float = 1e-5) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name], tolerance) for name in one)
    return len(one) == len(other) and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _mean(of_ranks: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*of_ranks, strict=True)]


_PARTS = {
    **{f"trainer {stage}": (ranks.train_with_trainer, (stage,)) for stage in (0, 1, 2, 3)},
    **{f"fabric {stage}": (ranks.train_with_fabric, (stage,)) for stage in (1, 2, 3)},
    **{f"manual {stage}": (ranks.train_by_hand, (stage,)) for stage in (1, 2, 3)},
    **{f"no length {stage}": (ranks.train_without_length, (stage,)) for stage in (1, 2, 3)},
    "refusals": (ranks.refusals, ()),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[Any]]:
    """By part, what each rank returned; all in one start of processes."""
    by_rank = run_ranks(run_all, 2, list(_PARTS.values()), timeout=600)
    return {name: [results[index] for results in by_rank] for index, name in enumerate(_PARTS)}


def _of(trained: dict[str, list[Any]], name: str) -> list[Any]:
    for result in trained[name]:
        assert not isinstance(result, str), result
    return trained[name]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_trainer_learns_as_on_one_device(trained, stage):
    losses, weights = ranks.train_on_one_device()

    of_ranks = _of(trained, f"trainer {stage}")
    assert len(losses) > 100
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)
    assert [each[2] for each in of_ranks] == [ranks.STEPS] * 2


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fabric_learns_as_on_one_device(trained, stage):
    losses, weights = ranks.train_layers_on_one_device()

    of_ranks = _of(trained, f"fabric {stage}")
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_manual_optimization_learns_as_on_one_device(trained, stage):
    losses, weights = ranks.train_on_one_device(ranks.ManualNet, max_steps=20)

    of_ranks = _of(trained, f"manual {stage}")
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_window_that_ends_early_counts_as_on_one_device(trained, stage):
    weights = ranks.train_without_length_on_one_device()

    assert _close(_of(trained, f"no length {stage}")[0], weights)


@needs_deepspeed
@pytest.mark.slow
def test_what_only_a_run_can_refuse_is_refused_with_what_to_do(trained):
    (said, _) = trained["refusals"]

    assert isinstance(said, dict), said
    expected = {
        "optimizer alone": ["NotImplementedError", "setup(model, optimizer)"],
        "two optimizers": ["ValueError", "only one optimizer"],
        "clip": ["NotImplementedError", "gradient_clipping': 1.0"],
        "clip by value": ["NotImplementedError", "by norm"],
        "filter": ["TypeError", "Leave it out"],
        "no model": ["ValueError", "exactly one model"],
        "loss.backward()": ["RuntimeError", "fabric.backward(loss)"],
        "two models": ["RuntimeError", "fabric.backward(loss, model=model)"],
        "two models, named": ["nothing"],
        "config of a trainer": ["MisconfigurationException", "accumulate_grad_batches=2"],
        "clip by value in fit": ["MisconfigurationException", "gradient_clip_algorithm='norm'"],
        "two optimizers in fit": ["MisconfigurationException", "single optimizer"],
        "two optimizers, by hand": ["MisconfigurationException", "single optimizer"],
        "unknown name in a section": ["ValueError", "'stages' in `zero_optimization`", "`stage`"],
        "wrong value in a section": ["ValueError", "'reduce_bucket_size' in `zero_optimization` is 'many'"],
        "other batch size": ["MisconfigurationException", "=3", "trains with 4"],
    }
    for name, words in expected.items():
        assert all(word in said[name] for word in words), (name, said[name])


_SAVED = {
    **{f"resume {stage}": (ranks.resume, stage) for stage in (1, 2, 3)},
    **{f"save {stage}": (ranks.save_and_load, stage) for stage in (1, 2, 3)},
    **{f"file {stage}": (ranks.load_file_and_train, stage) for stage in (2, 3)},
    **{f"fabric {stage}": (ranks.resume_fabric, stage) for stage in (2, 3)},
    **{f"frozen {stage}": (ranks.save_frozen_and_damage, stage) for stage in (2, 3)},
}
_FURTHER = {
    **{f"again {stage}": (ranks.runs_after_each_other, (stage,)) for stage in (2, 3)},
    "late": (ranks.train_without_warnings_of_torch, ()),
    **{f"bf16 {stage}": (ranks.train_in_bf16, (stage,)) for stage in (2, 3)},
    "offload 2": (ranks.train_offloaded, (2,)),
    "offload 3": (ranks.train_offloaded, (3,)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, list[Any]]:
    """By part, what each rank returned; all in one start of processes."""
    folder = tmp_path_factory.mktemp("deepspeed")
    ranks.save_on_one_device(str(folder / "one_device.ckpt"))
    parts = {}
    for name, (function, stage) in _SAVED.items():
        place = folder if name.startswith("file") else folder / name
        os.makedirs(place, exist_ok=True)
        parts[name] = function, (stage, str(place))
    parts.update(_FURTHER)  # type: ignore[arg-type]
    by_rank = run_ranks(run_all, 2, list(parts.values()), timeout=600)
    return {name: [results[index] for results in by_rank] for index, name in enumerate(parts)}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_that_goes_on_inside_an_epoch_equals_one_that_was_not_interrupted(saved, stage):
    for whole, first, second, weights, steps, leftovers in _of(saved, f"resume {stage}"):
        assert first + second == whole[0]
        assert weights == whole[1]
        assert steps == 18
        assert leftovers == []


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_consolidated_weights_equal_the_gathered_ones_and_load_elsewhere(saved, stage):
    results = _of(saved, f"save {stage}")[0]

    assert results["consolidated"] == results["gathered"] == results["weights only"]
    assert {"checkpoint", "latest"} <= set(results["files"])
    losses = {name: value for name, value in results.items() if name.startswith("val")}
    assert max(losses.values()) - min(losses.values()) < 1e-6, losses


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_weights_in_bfloat16_come_out_in_32_bit(saved, stage):
    results = _of(saved, f"frozen {stage}")[0]

    assert results["types"] == ["torch.float32"]
    assert results["loaded"] == results["weights"]
    assert f"can go on from it with DeepSpeed, on 2 process(es) at stage {stage} of ZeRO" in results["inspect"]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_folders_that_cannot_be_used_say_why(saved, stage):
    for said in _of(saved, f"frozen {stage}"):
        expected = {
            "other strategy": ["ValueError", "folder of DeepSpeed", "on 2 process(es) at stage", "fulmen consolidate"],
            "cut: fit": ["DamagedFileError", "zero_pp_rank_1_mp_rank_00_optim_states.pt"],
            "cut: load": ["DamagedFileError", "zero_pp_rank_1_mp_rank_00_optim_states.pt"],
            "missing: fit": ["DamagedFileError", "zero_pp_rank_1_mp_rank_00_optim_states.pt` is missing"],
            "missing: load": ["DamagedFileError", "zero_pp_rank_1_mp_rank_00_optim_states.pt` is missing"],
            "no weights: fit": ["DamagedFileError", "mp_rank_00_model_states.pt"],
            "no weights: load": ["DamagedFileError", "mp_rank_00_model_states.pt"],
        }
        for name, words in expected.items():
            assert all(word in said[name] for word in words), (name, said[name])


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_weights_of_a_file_load_into_the_engine(saved, stage):
    losses, weights = ranks.go_on_with_new_optimizer()

    of_ranks = _of(saved, f"file {stage}")
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_fabric_goes_on_from_what_it_saved(saved, stage):
    for whole, resumed, step, rest in _of(saved, f"fabric {stage}"):
        assert resumed == whole
        assert step == 5
        assert rest == {}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_module_can_be_used_by_one_run_after_the_other(saved, stage):
    for first, second, num_predictions, learning_rates in _of(saved, f"again {stage}"):
        assert second < first
        assert learning_rates == [ranks.LEARNING_RATE] * 2  # the optimizer can be looked at after fit and validate
        assert num_predictions == ranks.BATCHES_PER_EPOCH * 2 - 1


@needs_deepspeed
@pytest.mark.slow
def test_layers_that_are_made_in_shards_learn_the_same(saved):
    losses, weights = ranks.train_on_one_device(max_steps=10)

    of_ranks = _of(saved, "late")
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_offloading_changes_nothing_in_the_results(saved, stage):
    losses, weights = ranks.train_on_one_device(max_steps=10)

    of_ranks = _of(saved, f"offload {stage}")
    assert _close(_mean([each[0] for each in of_ranks]), losses)
    assert _close(of_ranks[0][1], weights)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_trains_with_weights_in_32_bit_behind(saved, stage):
    _, weights = ranks.train_on_one_device(max_steps=20)

    (losses, kept, dtype), _ = _of(saved, f"bf16 {stage}")
    assert dtype == "torch.bfloat16"
    assert _close(kept, weights, tolerance=0.05)
    assert kept["layers.0.weight"] != torch.tensor(kept["layers.0.weight"]).bfloat16().tolist()
    assert losses[-1] < losses[0]


_FAILING = """
import sys

import torch
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.global_rank == 1:
            raise ValueError("nothing is learned here")
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = Trainer(accelerator="cpu", devices=2, strategy="deepspeed_stage_3", max_epochs=1, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=True)
trainer.fit(Net(), DataLoader(torch.randn(40, 4), batch_size=4))
"""


@needs_deepspeed
@pytest.mark.slow
def test_an_error_of_one_rank_ends_all_and_is_shown(tmp_path):
    result = run_script(_FAILING, cwd=tmp_path, timeout=300)

    assert result.returncode != 0
    assert "ValueError: nothing is learned here" in result.stderr
    assert "Params per Device" in result.stderr + result.stdout
