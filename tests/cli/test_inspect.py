"""`fulmen inspect`: what it says of files of all kinds, whole and broken ones."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fulmen.checkpoint.untrusted import StandIn, read_untrusted
from tests.cli.trained import Net
from tests.distributed_harness import run_ranks


class Settings(dict[str, Any]):
    """A mapping of a program's own, as a checkpoint may hold it."""


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def changed(source: Path, target: Path, change: Any) -> Path:
    checkpoint = torch.load(source, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def test_it_shows_progress_weights_settings_and_states(fulmen, trained) -> None:
    ended = fulmen("inspect", trained)
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]

    assert ended.code == 0
    assert lines[0] == str(trained)
    assert "kind checkpoint of fulmen, layout of Lightning 2.6.6" in lines
    assert "epoch 1" in lines
    assert "global step 6" in lines
    assert "position at the end of epoch 1, after 3 batches" in lines
    assert "resume `fit(ckpt_path=...)` can go on from it" in lines
    assert "checksums match" in lines
    assert "values all finite" in lines
    assert "weights under `state_dict`: 66 values in 9 tensors, 268 B" in lines
    assert "encoder.1 5 33 136 B float32, int64" in lines
    assert "head 2 9 36 B float32" in lines
    assert "width 8" in lines
    assert "EarlyStopping{'monitor': 'loss', 'mode': 'min'}" in lines
    assert "step_size 1" in lines
    assert any(line.startswith("0 lr=0.00") and "for 6 parameters" in line for line in lines)
    assert max(map(len, ended.out.splitlines())) <= max(80, len(str(trained)) + 25)


def test_all_shows_each_tensor(fulmen, trained) -> None:
    lines = [" ".join(line.split()) for line in fulmen("inspect", trained, "--all", columns=200).out.splitlines()]

    assert "encoder.0.weight 8 x 2 float32 16" in lines
    assert "encoder.1.num_batches_tracked scalar int64 1" in lines


def test_depth_groups_by_the_first_parts_of_names(fulmen, trained) -> None:
    lines = [" ".join(line.split()) for line in fulmen("inspect", trained, "--depth", 1).out.splitlines()]

    assert "encoder 7 57 232 B float32, int64" in lines


def test_many_modules_are_grouped_until_they_fit(fulmen, tmp_path) -> None:
    torch.save({f"blocks.{i}.{part}.weight": torch.zeros(2) for i in range(15) for part in "abc"}, tmp_path / "w.pt")
    lines = [" ".join(line.split()) for line in fulmen("inspect", tmp_path / "w.pt").out.splitlines()]

    assert "blocks.3 3 6 24 B float32" in lines


def test_json_holds_everything(fulmen, trained) -> None:
    ended = fulmen("inspect", trained, "--json")
    found = json.loads(ended.out)

    assert (ended.code, found["format"], found["epoch"], found["global_step"]) == (0, "fulmen", 1, 6)
    assert found["hyper_parameters"] == {"width": 8, "lr": 0.1, "act": None}
    assert found["health"] == {"checksums": "match", "finite": True, "not_loaded": [], "problems": []}
    assert {each["name"]: each["shape"] for each in found["weights"]}["head.weight"] == [1, 8]
    assert found["optimizers"][0]["param_groups"][0]["num_params"] == 6
    assert found["lr_schedulers"][0]["last_epoch"] == 2
    assert found["can_resume"] is True


def test_a_file_with_weights_only_says_that_training_cannot_go_on(fulmen, trained) -> None:
    ended = fulmen("inspect", trained.with_name("weights.ckpt"))

    assert ended.code == 0
    assert "no: it holds no optimizer states" in ended.out


# ---- health


def test_nan_and_infinity_are_found_and_counted(fulmen, trained, tmp_path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["head.weight"][0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])

    path = changed(trained, tmp_path / "bad.ckpt", spoil)
    ended = fulmen("inspect", path)

    assert ended.code == 1
    assert "`head.weight`: 1 NaN and 2 infinite of 8 values" in ended.out
    assert "float32 NOT FINITE" in " ".join(ended.out.split())
    assert fulmen("inspect", path, "--quick").code == 0


def test_a_state_of_an_optimizer_that_is_not_finite_is_a_problem(fulmen, trained, tmp_path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].fill_(torch.nan)

    ended = fulmen("inspect", changed(trained, tmp_path / "bad.ckpt", spoil))

    assert ended.code == 1
    assert "optimizer 0: 16 NaN of 16 values" in ended.out


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_files_are_said_to_be(fulmen, trained, tmp_path, damage) -> None:
    content = bytearray(trained.read_bytes())
    if damage == "flipped":
        weight = torch.load(trained, weights_only=True)["state_dict"]["encoder.0.weight"].numpy().tobytes()
        content[content.find(weight)] ^= 1
    path = tmp_path / "bad.ckpt"
    path.write_bytes({"cut": content[:5000], "empty": b"", "text": b"no checkpoint"}.get(damage, bytes(content)))
    ended = fulmen("inspect", path)

    assert ended.code == 1
    assert "unreadable" in ended.out
    assert "is damaged" in " ".join(ended.out.split())


def test_a_missing_file_and_a_missing_key_end_with_a_message(fulmen, trained, tmp_path) -> None:
    missing = fulmen("inspect", tmp_path / "nowhere.ckpt")
    key = fulmen("inspect", trained, "--key", "ema.model")

    assert (missing.code, key.code) == (1, 1)
    assert "there is no file or folder" in missing.err
    assert "no weights under 'ema.model'; it has 'callbacks', 'epoch'" in key.err


# ---- what is not plain data


def test_objects_are_named_and_not_made(fulmen, trained, tmp_path) -> None:
    def add(checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"] |= {
            "act": nn.ReLU(),
            "where": Path("x"),
            "mapping": Settings(a=1),
            "part": partial(Net, width=3),
            "kinds": [Settings(b=Path("y"))],
        }

    ended = fulmen("inspect", changed(trained, tmp_path / "objects.ckpt", add), "--json")
    found = json.loads(ended.out)

    assert ended.code == 0
    assert found["hyper_parameters"]["act"] == "<torch.nn.modules.activation.ReLU, not loaded>"
    assert found["hyper_parameters"]["mapping"] == {"a": 1}
    assert found["hyper_parameters"]["width"] == 8
    assert "functools.partial" in found["health"]["not_loaded"]
    assert len(found["weights"]) == 9


def test_pickled_hyperparameters_stay_closed(fulmen, tmp_path) -> None:
    checkpoint = {"pytorch-lightning_version": "2.6.6", "state_dict": {"w": torch.ones(1)}, "epoch": 0,
                  "global_step": 0, "hyper_parameters": {"lr": 0.1},
                  "fulmen": {"version": 1, "pickled_hparams": {"hyper_parameters": {"act": b"anything"}}}}  # fmt: skip
    torch.save(checkpoint, tmp_path / "x.ckpt")
    found = json.loads(fulmen("inspect", tmp_path / "x.ckpt", "--json").out)

    assert found["hyper_parameters"] == {"lr": 0.1, "act": "<pickled, not loaded>"}


@pytest.mark.skipif(os.name != "posix", reason="the trap is of POSIX")
@pytest.mark.parametrize("where", ["callbacks", "hyper_parameters"])
def test_a_hostile_file_runs_nothing(fulmen, trained, tmp_path, where) -> None:
    mark = tmp_path / "code_ran"
    path = changed(trained, tmp_path / "hostile.ckpt", lambda checkpoint: checkpoint[where].update(x=Trap(mark)))
    ended = fulmen("inspect", path)

    assert ended.code == 1
    assert "asks for `posix.mkdir`" in " ".join(ended.out.split())
    assert not mark.exists()


def test_trust_makes_the_objects(fulmen, trained, tmp_path) -> None:
    path = changed(
        trained, tmp_path / "objects.ckpt", lambda checkpoint: checkpoint["hyper_parameters"].update(where=Path("x"))
    )

    assert json.loads(fulmen("inspect", path, "--json", "--trust").out)["hyper_parameters"]["where"] == "x"


def test_a_stand_in_says_what_it_stands_for(tmp_path) -> None:
    torch.save({"x": nn.ReLU(), "y": torch.ones(2)}, tmp_path / "x.pt")
    content, refused = read_untrusted(str(tmp_path / "x.pt"))

    assert refused == ["torch.nn.modules.activation.ReLU"]
    assert isinstance(content["x"], StandIn)
    assert repr(content["x"]) == "<torch.nn.modules.activation.ReLU, not loaded>"
    assert torch.equal(content["y"], torch.ones(2))


def test_a_whole_module_cannot_be_read_without_its_code(fulmen, tmp_path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    ended = fulmen("inspect", tmp_path / "model.pt")

    assert ended.code == 1
    assert "save `model.state_dict()`" in " ".join(ended.out.split())


# ---- other kinds of files


def test_a_state_dict_and_a_file_of_fabric(fulmen, tmp_path) -> None:
    model = nn.Linear(2, 3)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save({"model": model.state_dict(), "step": 7, "ema": {"n": 1}}, tmp_path / "fabric.ckpt")
    plain, fabric = fulmen("inspect", tmp_path / "plain.pt").out, fulmen("inspect", tmp_path / "fabric.ckpt").out

    assert "weights (a state_dict)" in plain
    assert "weights: 9 values in 2 tensors, 36 B" in plain
    assert "weights under `model`: 9 values in 2 tensors" in fabric
    assert "step  7" in fabric


def test_the_old_format_of_torch(fulmen, tmp_path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    assert "3 values in 1 tensor," in fulmen("inspect", tmp_path / "old.pt").out


def test_safetensors(fulmen, tmp_path) -> None:
    save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "w.safetensors", {"format": "pt"})
    ended = fulmen("inspect", tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-2])
    (tmp_path / "text.safetensors").write_bytes(b"no tensors at all")

    assert ended.code == 0
    assert "weights: 3 values in 1 tensor, 6 B" in ended.out
    for damaged in ("cut", "text"):
        ended = fulmen("inspect", tmp_path / f"{damaged}.safetensors")
        assert (ended.code, "is damaged" in " ".join(ended.out.split())) == (1, True)


def save_shards(folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_saver import save

    dist.init_process_group("gloo")
    save({"model": nn.Linear(2, 3).state_dict(), "note": "of a run"}, checkpoint_id=folder)
    if dist.get_rank() == 0:
        torch.save({"epoch": 3, "global_step": 2}, Path(folder) / "meta.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_folder_of_shards(fulmen, tmp_path) -> None:
    run_ranks(save_shards, 2, str(tmp_path / "shards"))
    ended = fulmen("inspect", tmp_path / "shards")

    assert ended.code == 0
    assert "folder of shards" in ended.out
    assert "9 values in 2 tensors" in ended.out
    assert "epoch        3" in ended.out


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint of a Trainer as a folder."""
    from fulmen.plugins.io.distributed_io import save_sharded

    state = {"state": {"w": {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": ["w"], "lr": 0.1}]}
    content = {"pytorch-lightning_version": "2.6.6", "epoch": 3, "global_step": 2, "loops": {}}
    save_sharded({**content, "state_dict": {"w": torch.ones(3)}, "optimizer_states": [state]}, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_damaged_folder_is_said_to_be_by_both_commands(fulmen, shards, name, damage) -> None:
    if damage == "missing":
        (shards / name).unlink()
    else:
        content = (shards / name).read_bytes()
        (shards / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"no checkpoint")
    ended = fulmen("inspect", shards, columns=1000)

    assert ended.code == 1
    assert [name in line for line in ended.out.splitlines() if "PROBLEM" in line] == [True]
    assert ended.err == ""
    ended = fulmen("consolidate", shards)
    assert ended.code == (0 if (name, damage) == ("meta.pt", "missing") else 1)
    assert name in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_whole_folder_is_healthy_and_can_be_resumed(fulmen, shards) -> None:
    ended = fulmen("inspect", shards)

    assert ended.code == 0
    assert "can go on from it" in ended.out
    assert "checksums  match" in ended.out


def test_a_folder_that_is_no_checkpoint_ends_with_a_message(fulmen, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    ended = fulmen("inspect", tmp_path / "empty")

    assert ended.code == 1
    assert "is no sharded checkpoint" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_folder_of_deepspeed_without_weights_is_recognised(fulmen, tmp_path) -> None:
    folder = tmp_path / "of_deepspeed"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    torch.save({}, folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")

    for words in (("inspect", folder), ("consolidate", folder)):
        ended = fulmen(*words, columns=1000)
        assert ended.code == 1
        assert "of DeepSpeed" in ended.out + ended.err
        assert "_model_states.pt" in ended.out + ended.err


def test_the_index_of_a_hostile_folder_runs_nothing(fulmen, tmp_path) -> None:
    import pickle

    mark = tmp_path / "code_ran"
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".metadata").write_bytes(pickle.dumps(Trap(mark)))
    ended = fulmen("inspect", tmp_path / "shards")
    consolidated = fulmen("consolidate", tmp_path / "shards")

    assert (ended.code, consolidated.code) == (1, 1)
    assert "mkdir" in ended.out
    assert "which no index needs" in consolidated.err
    assert not mark.exists()


def test_objects_in_a_hostile_folder_run_nothing(fulmen, tmp_path) -> None:
    import warnings

    from torch.distributed.checkpoint.state_dict_saver import save

    mark = tmp_path / "code_ran"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"w": torch.ones(2), "trap": Trap(mark)}, checkpoint_id=tmp_path / "shards", no_dist=True)
    ended = fulmen("inspect", tmp_path / "shards")

    assert ended.code == 1
    assert not mark.exists()
