from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen import LightningModule, Trainer
from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.plugins.io.distributed_io import ShardedCheckpoint, Shards, load_mapped, save_sharded, verify_folder
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.staging import remove_leftovers
from tests.support import quiet

VERSION = {"pytorch-lightning_version": "2.6.6"}


def checkpoint(value: float = 1.0) -> dict[str, Any]:
    """A checkpoint of a Trainer with all that goes into shards."""
    weight = torch.full((3, 4), value)
    state = {"a.weight": {"step": torch.tensor(2.0), "exp_avg": weight * 2}}
    groups = [{"params": ["a.weight"], "lr": 0.1, "betas": (0.9, 0.99)}, {"params": ["b"], "lr": 0.2}]
    return {
        **VERSION,
        "epoch": 3,
        "state_dict": {"a.weight": weight, "b": torch.arange(5), "c": torch.zeros(2, dtype=torch.bfloat16)},
        "optimizer_states": [{"state": state, "param_groups": groups}, {"state": {}, "param_groups": groups[:1]}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_sharded(checkpoint(), tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def shards_in(folder: Path) -> Path:
    (found,) = folder.glob("*.distcp")
    return found


# ---- what a folder holds


def test_a_folder_has_the_files_that_lightning_knows_and_nothing_hidden_stays(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())

    assert names == [".metadata", "__0_0.distcp", "meta.pt"]
    assert [path.name for path in folder.parent.iterdir()] == ["x.ckpt"]
    assert torch.load(folder / "meta.pt", weights_only=True) == {**VERSION, "epoch": 3}


def test_states_stay_on_the_disk_until_they_are_asked_for(folder: Path) -> None:
    found = ShardedCheckpoint(folder)
    weights, states = found["state_dict"], found["optimizer_states"]

    assert isinstance(weights, Shards)
    assert list(weights) == ["a.weight", "b", "c"]
    assert (weights.size("a.weight"), weights.dtype("c")) == ((3, 4), torch.bfloat16)
    assert torch.equal(weights["b"], torch.arange(5))
    assert states[0]["param_groups"] == checkpoint()["optimizer_states"][0]["param_groups"]
    assert torch.equal(states[0]["state"]["a.weight"]["exp_avg"], torch.full((3, 4), 2.0))
    assert "state" not in states[1]


def test_a_whole_folder_is_what_one_device_saves(folder: Path) -> None:
    whole = ShardedCheckpoint(folder).read_whole()

    assert type(whole) is dict
    assert whole["epoch"] == 3
    first, second = whole["optimizer_states"]
    assert [group["params"] for group in first["param_groups"]] == [[0], [1]]
    assert torch.equal(first["state"][0]["exp_avg"], torch.full((3, 4), 2.0))
    assert second == {"state": {}, "param_groups": [{"params": [0], "lr": 0.1, "betas": (0.9, 0.99)}]}


def test_tensors_are_read_into_memory_that_is_there(folder: Path) -> None:
    target = torch.zeros(3, 4)
    weights = ShardedCheckpoint(folder)["state_dict"]
    weights.read_into({"a.weight": target})

    assert bool((target == 1).all())
    with pytest.raises(ValueError, match=r"`a.weight` has the shape \(3, 4\) in the checkpoint .*x.ckpt`, but \(2,\)"):
        weights.read_into({"a.weight": torch.zeros(2)})
    with pytest.raises(KeyError, match=r"x.ckpt` has no tensor `absent`"):
        weights.read_into({"absent": torch.zeros(2)})


# ---- writing


def test_an_older_checkpoint_of_the_name_is_replaced_be_it_file_or_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    TorchCheckpointIO().save_checkpoint({"epoch": 1}, path)
    for value in (2.0, 3.0):
        save_sharded(checkpoint(value), path)
        assert float(ShardedCheckpoint(path)["state_dict"]["a.weight"][0, 0]) == value
    TorchCheckpointIO().save_checkpoint({"epoch": 4}, path)

    assert torch.load(path, weights_only=True) == {"epoch": 4}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(FileExistsError, match="is not empty and is no sharded checkpoint"):
        save_sharded(checkpoint(), tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_server_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"`memory://x` cannot be written to a server.*save_distributed_checkpoint"):
        save_sharded(checkpoint(), "memory://x")


def test_a_failed_save_leaves_the_older_one_and_no_half_one(folder: Path) -> None:
    broken = {**checkpoint(7.0), "callbacks": {"x": lambda: None}}  # cannot be pickled

    with pytest.raises(Exception, match="pickle"):
        save_sharded(broken, folder)
    assert float(ShardedCheckpoint(folder)["state_dict"]["a.weight"][0, 0]) == 1.0
    assert os.listdir(folder.parent) == ["x.ckpt"]


def test_a_staging_folder_of_a_living_writer_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    program = (
        "import sys; from fulmen.utilities.staging import create_folder_beside\n"
        "print(create_folder_beside(sys.argv[1])[0], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "x.ckpt")], stdin=-1, stdout=-1, text=True
    ) as writer:
        assert writer.stdout is not None
        staged = writer.stdout.readline().strip()
        assert remove_leftovers(str(tmp_path)) == []
        assert os.path.isdir(staged)
        writer.kill()
    save_sharded(checkpoint(), tmp_path / "y.ckpt")

    assert os.listdir(tmp_path) == ["y.ckpt"]


def test_a_background_save_keeps_what_was_there_when_it_was_called(tmp_path: Path) -> None:
    background = AsyncCheckpointIO()
    content = checkpoint()
    save_sharded(content, tmp_path / "x.ckpt", checkpoint_io=background)
    content["state_dict"]["a.weight"].fill_(9)
    background.wait()

    assert float(background.load_checkpoint(tmp_path / "x.ckpt")["state_dict"]["a.weight"][0, 0]) == 1.0
    background.remove_checkpoint(tmp_path / "x.ckpt")
    background.teardown()
    assert os.listdir(tmp_path) == []


# ---- damage


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.find(torch.full((2,), 1.0).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    path.write_bytes(b"garbage")


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("__0_0.distcp", remove, "`__0_0.distcp` is missing"),
        ("__0_0.distcp", cut, "is truncated"),
        ("__0_0.distcp", change, "does not match its checksum"),
        (".metadata", garble, "its index `.metadata` cannot be read"),
        ("meta.pt", cut, "meta.pt"),
    ],
)
def test_damage_is_noticed_and_names_the_folder_or_its_file(folder: Path, name: str, damage: Any, words: str) -> None:
    verify_folder(folder)
    damage(folder / name)

    for read in (verify_folder, lambda path: ShardedCheckpoint(path).read_whole()):
        with pytest.raises(DamagedFileError, match=r"x\.ckpt") as caught:
            read(folder)
        assert words in str(caught.value) or "truncated" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"state_dict.a.weight", b"state_dict.a.weighu"),
        (b"optimizer_0.state.a.weight.step", b"optimizer_0.state.a.weight.stdp"),
        (b"__0_0.distcp", b"__0_0.distcq"),
        (b"relative_path", b"relativd_path"),
        (b"chunks", b"chunjs"),
        (b"storage_data", b"storagd_data"),
        (b"planner_data", b"plannes_data"),
    ],
)
def test_an_index_with_a_changed_byte_is_said_to_be_damaged(folder: Path, old: bytes, new: bytes) -> None:
    content = (folder / ".metadata").read_bytes()
    places = [place for place in range(len(content)) if content.startswith(old, place)]
    assert places

    for place in places:  # a name is there once for each list that it is in
        (folder / ".metadata").write_bytes(content[:place] + new + content[place + len(old) :])
        with pytest.raises(DamagedFileError, match=r"x\.ckpt"):
            Net.load_from_checkpoint(folder)


def test_a_folder_that_a_module_cannot_be_loaded_from_says_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_sharded({"net": {"w": torch.ones(2)}, "step": 3}, tmp_path / "fabric")
    for path, error, words in (
        (tmp_path / "empty", ValueError, "has no file `.metadata`"),
        (tmp_path / "fabric", KeyError, "has no entry 'state_dict'"),
    ):
        with pytest.raises(error) as caught:
            Net.load_from_checkpoint(path)
        assert words in str(caught.value)
    for name, words in (("meta.pt", "has no file `meta.pt`"), (".metadata", "its index `.metadata` is missing")):
        (folder / name).unlink()
        with pytest.raises(DamagedFileError) as caught:
            Net.load_from_checkpoint(folder)
        assert words in str(caught.value)


def test_what_is_no_folder_of_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no checkpoint folder"):
        ShardedCheckpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has no file `\.metadata`"):
        ShardedCheckpoint(tmp_path)


def test_a_mapped_file_is_checked_and_leaves_its_tensors_on_the_disk(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "w.ckpt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    found = load_mapped(tmp_path / "w.ckpt")["w"]

    assert bool((found == 1).all())
    assert "w.ckpt" in Path("/proc/self/maps").read_text()
    assert bool((load_mapped(tmp_path / "old.ckpt")["w"] == 1).all())
    change(tmp_path / "w.ckpt")
    with pytest.raises(DamagedFileError, match=r"w\.ckpt"):
        load_mapped(tmp_path / "w.ckpt")


# ---- a Trainer on one device


class Net(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)
        self.steps: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps.append(self.global_step)
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def names_of(state: dict[str, Any]) -> dict[str, Any]:
    names = ["layer.weight", "layer.bias"]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: each for number, each in state["state"].items()}, "param_groups": groups}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two checkpoints of one run as folders, of steps 2 and 4, in the folder `checkpoints`."""
    data: Any = torch.randn(8, 4)
    for epochs in (1, 2):
        trainer = Trainer(**quiet(tmp_path, max_epochs=epochs))
        trainer.fit(Net(), torch.utils.data.DataLoader(data, 4))
        trainer.save_checkpoint(tmp_path / "plain.ckpt")
        content = torch.load(tmp_path / "plain.ckpt", weights_only=True)
        content["optimizer_states"] = [names_of(state) for state in content["optimizer_states"]]
        save_sharded(content, tmp_path / "checkpoints" / f"step={2 * epochs}.ckpt")
    return tmp_path / "checkpoints"


def resumed(folder: Path, ckpt_path: Any) -> Net:
    from fulmen.callbacks import ModelCheckpoint

    model = Net()
    saver = ModelCheckpoint(dirpath=folder, filename="new-{step}", save_last=True)
    saver.CHECKPOINT_NAME_LAST = "step"
    arguments = {**quiet(folder, max_epochs=3), "enable_checkpointing": True, "callbacks": [saver]}
    data: Any = torch.randn(8, 4)
    Trainer(**arguments).fit(model, torch.utils.data.DataLoader(data, 4), ckpt_path=ckpt_path)
    return model


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_folder_is_resumed_and_loaded_as_a_file_is(folders: Path, tmp_path: Path) -> None:
    expected = torch.load(tmp_path / "plain.ckpt", weights_only=True)["state_dict"]
    model = Net.load_from_checkpoint(folders / "step=4.ckpt", width=4)

    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)
    assert resumed(folders, folders / "step=2.ckpt").steps == [2, 3, 4, 5]
    with pytest.raises(IsADirectoryError, match=r"without the shards of a checkpoint"):
        resumed(folders, folders)


@pytest.mark.filterwarnings("ignore:The checkpoint folder", "ignore:Damaged checkpoints are passed over")
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.auto.. passed over")
@pytest.mark.parametrize("word", ["last", "auto"])
def test_the_newest_whole_folder_is_found(folders: Path, word: str) -> None:
    before = {path.name for path in folders.iterdir()}
    assert resumed(folders, word).steps == [4, 5]
    for path in folders.iterdir():
        if path.name not in before:
            TorchCheckpointIO().remove_checkpoint(path)
    shards_in(folders / "step=4.ckpt").unlink()

    assert resumed(folders, word).steps == [2, 3, 4, 5]
