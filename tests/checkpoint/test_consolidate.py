from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict as sharded_state
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from fulmen.checkpoint.consolidate import command, consolidate, read_sharded
from tests.distributed_harness import run_ranks


def model_and_optimizer(mesh: DeviceMesh | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    if mesh is not None:
        fully_shard(model, mesh=mesh).set_force_sum_reduction_for_comms(True)  # the mean of torch 2.8's gloo is the sum
    groups: list[dict[str, Any]] = [
        {"params": [*model[2].parameters()]},
        {"params": [*model[0].parameters()], "lr": 0.5},
    ]
    return model, torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(4, 7)).square().mean().backward()
        optimizer.step()


def save_sharded(folder: str, weights: str) -> Any:
    """Save what Lightning's sharded strategies save, in their layout, from each rank its shards."""
    dist.init_process_group("gloo")
    model, optimizer = model_and_optimizer(init_device_mesh("cpu", (2,)))
    train(model, optimizer)
    state, optimizer_state = sharded_state.get_state_dict(model, optimizer)
    save({weights: state, "optimizer_0": optimizer_state}, checkpoint_id=folder)
    if dist.get_rank() == 0:
        torch.save({"epoch": 3, "global_step": 2, "lr_schedulers": []}, Path(folder) / "meta.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=["model", "state_dict"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded") / "step=2.ckpt"
    run_ranks(save_sharded, 2, str(path), request.param, timeout=200)
    return path


@pytest.mark.distributed
def test_one_file_holds_what_two_ranks_have_saved(folder: Path, tmp_path: Path) -> None:
    expected_model, expected_optimizer = model_and_optimizer()
    train(expected_model, expected_optimizer)

    checkpoint = torch.load(consolidate(folder, tmp_path / "whole.ckpt"), weights_only=True)

    assert (checkpoint["epoch"], checkpoint["global_step"]) == (3, 2)
    model, optimizer = model_and_optimizer()
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict())
    ours, theirs = optimizer.state_dict(), expected_optimizer.state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"])
    assert ours["param_groups"] == theirs["param_groups"]


@pytest.mark.distributed
def test_command_names_the_file_and_refuses_what_it_cannot_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder.with_name("step=2.ckpt.consolidated")
    command([str(folder), "--fabric"])
    assert capsys.readouterr().out == f"saved {target}\n"
    assert "optimizer_0" in torch.load(target, weights_only=True)

    for arguments, words in (
        ([str(folder)], f"`{target}` exists, and is not overwritten"),
        ([str(tmp_path / "absent")], "There is no checkpoint folder"),
        ([str(tmp_path)], "is no sharded checkpoint: it has no file `.metadata`"),
        ([str(folder), "--output_file", str(tmp_path / "w.safetensors")], f"fulmen convert {folder}"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(arguments)
        assert caught.value.code == 1
        assert words in capsys.readouterr().err
    target.unlink()
    assert not (tmp_path / "w.safetensors").exists()
    with pytest.raises(SystemExit):
        command(["--help"])
    assert "folders of DeepSpeed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.distributed
def test_shards_are_read_as_they_were_saved(folder: Path) -> None:
    content = read_sharded(folder)

    names = content["optimizer_0"]["param_groups"][0]["params"]
    assert names == ["2.weight", "2.bias"]
    assert content["optimizer_0"]["state"]["0.weight"]["exp_avg"].shape == (5, 7)


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def call_of(module: bytes, name: bytes, argument: bytes) -> bytes:
    """Return a pickle that calls a function by its name, which may have dots."""
    words = [b"\x8c" + bytes([len(word)]) + word for word in (module, name, argument)]
    return b"\x80\x04" + words[0] + words[1] + b"\x93" + words[2] + b"\x85R."


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_nothing_in_a_folder_is_run(tmp_path: Path) -> None:
    trace, plain, evil = tmp_path / "trace", tmp_path / "plain", tmp_path / "evil"
    weight = torch.arange(3, dtype=torch.bfloat16)
    save({"model": {"w": weight}, "notes": {"a": [1, "b"]}}, checkpoint_id=plain, no_dist=True)
    save({"model": {"w": weight}, "x": RunsCode(trace)}, checkpoint_id=evil, no_dist=True)
    found = read_sharded(plain)

    assert torch.equal(found["model"]["w"], weight)
    assert found["notes"] == {"a": [1, "b"]}
    with pytest.raises(pickle.UnpicklingError, match=r"`x` holds"):
        read_sharded(evil)
    hidden = call_of(b"torch.distributed.checkpoint.metadata", b"os.mkdir", str(trace).encode())
    for index in (pickle.dumps(RunsCode(trace)), hidden):
        (plain / ".metadata").write_bytes(index)
        with pytest.raises(pickle.UnpicklingError, match="which no index needs"):
            read_sharded(plain)
    assert not trace.exists()
