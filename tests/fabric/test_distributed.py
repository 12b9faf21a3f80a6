"""Two processes: equal to one with the double batch, however they were started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen import Fabric
from tests.distributed_harness import free_port, run_ranks, run_script
from tests.fabric.loop import train

pytestmark = pytest.mark.distributed
LOOP = Path(__file__).with_name("loop.py")
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}


def expected() -> list[float]:
    return train(Fabric(accelerator="cpu", devices=1))


def result_of(process: subprocess.CompletedProcess[str]) -> list[float]:
    assert process.returncode == 0, process.stderr
    result: list[float] = json.loads(process.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("way", ["script", "function", "ddp_spawn", "ddp_fork"])
def test_two_processes_train_like_one(way: str) -> None:
    assert result_of(run_script(LOOP, way, env=ENVIRONMENT, timeout=110)) == pytest.approx(expected(), abs=1e-6)


def test_torchrun_trains_like_one_process() -> None:
    process = run_script(LOOP, "script", torchrun=True, nproc=2, env=ENVIRONMENT, timeout=110)

    assert result_of(process) == pytest.approx(expected(), abs=1e-6)


def test_the_command_trains_like_one_process() -> None:
    command = [sys.executable, "-m", "fulmen.cli", "run", "--accelerator=cpu", "--devices=2", "--strategy=ddp"]
    process = subprocess.run(
        [*command, f"--main-port={free_port()}", str(LOOP), "command"],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert result_of(process) == pytest.approx(expected(), abs=1e-6)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out

    def training_step(self, x: torch.Tensor) -> Any:
        return self(x).sum()

    def loss(self, x: torch.Tensor) -> Any:
        return self(x).sum()

    def number(self) -> int:
        return 3


def _gradient(fabric: Fabric, model: Any, loss: torch.Tensor) -> float:
    model.zero_grad()
    fabric.backward(loss)
    return float(model.layer.weight.grad[0, 0])


def _use_everything(folder: Path) -> dict[str, Any]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    found: dict[str, Any] = {}
    try:
        fabric.setup(Network())
    except RuntimeError as error:
        found["before launch"] = "launch" in str(error)
    fabric.launch()
    rank = fabric.global_rank
    found["ranks"] = (rank, fabric.local_rank, fabric.node_rank, fabric.world_size, fabric.is_global_zero)
    # ---- module: each rank's gradient of the weight is rank + 1
    model = fabric.setup(Network())
    x = torch.full((1, 2), rank + 1.0)
    found["forward"] = _gradient(fabric, model, model(x).sum())
    found["training_step"] = _gradient(fabric, model, model.training_step(x))
    with fabric.no_backward_sync(model):
        found["held back"] = _gradient(fabric, model, model(x).sum())
    try:
        model.loss(x)
    except RuntimeError as error:
        found["refused"] = "mark_forward_method('loss')" in str(error)
    model.mark_forward_method(model.module.loss)
    found["marked"] = _gradient(fabric, model, model.loss(x))
    found["other method"] = model.number()
    found["names"] = [*model.state_dict(), *(name for name, _ in model.named_parameters())]
    network: Any = torch.compile(Network(), backend="eager")
    compiled = fabric.setup(network)
    found["compiled"] = _gradient(fabric, compiled, compiled(x).sum())
    found["compiled around"] = type(compiled._forward_module._orig_mod).__name__
    # ---- talk
    data = {"a": torch.tensor([float(rank)]), "b": rank, "c": "x"}
    gathered, summed = fabric.all_gather(data), fabric.all_reduce(data, reduce_op="sum")
    found["gathered"] = (gathered["a"].tolist(), gathered["b"].tolist(), gathered["c"])
    found["summed"] = (summed["a"].tolist(), summed["b"].item())
    found["broadcast"] = fabric.broadcast({"rank": rank}, src=1)
    with fabric.rank_zero_first():
        found["first"] = (folder / "made").exists()
        (folder / "made").touch()
    fabric.barrier("all")
    # ---- keep
    with torch.no_grad():
        model.layer.weight.fill_(rank)
    fabric.save(folder / "a.ckpt", {"model": model, "steps": 3})
    state = {"model": model, "steps": 0}
    fabric.load(folder / "a.ckpt", state)
    found["loaded"] = (model.layer.weight.tolist(), state["steps"], list(torch.load(folder / "a.ckpt")["model"]))
    with fabric.init_module():
        found["made on"] = nn.Linear(1, 1).weight.device.type
    return found


def test_everything_on_two_ranks(tmp_path: Path) -> None:
    zero, one = run_ranks(_use_everything, 2, tmp_path, timeout=110)

    assert zero.pop("ranks") == (0, 0, 0, 2, True)
    assert one.pop("ranks") == (1, 1, 0, 2, False)
    assert (zero.pop("first"), one.pop("first")) == (False, True)
    assert (zero.pop("held back"), one.pop("held back")) == (1.0, 2.0)
    assert zero == one
    assert zero == {
        "before launch": True,
        "forward": 1.5,
        "training_step": 1.5,
        "refused": True,
        "marked": 1.5,
        "other method": 3,
        "names": ["layer.weight", "layer.bias"] * 2,
        "compiled": 1.5,
        "compiled around": "DistributedDataParallel",
        "gathered": ([[0.0], [1.0]], [0, 1], "x"),
        "summed": ([1.0], 1),
        "broadcast": {"rank": 1},
        "loaded": ([[0.0, 0.0]], 3, ["layer.weight", "layer.bias"]),
        "made on": "cpu",
    }


def test_an_error_on_one_rank_ends_both_with_its_traceback(tmp_path: Path) -> None:
    source = """
    import fulmen

    def fails(fabric):
        if fabric.global_rank == 1:
            raise ArithmeticError("only here")
        fabric.barrier()

    fulmen.Fabric(accelerator="cpu", devices=2, strategy="ddp").launch(fails)
    """
    process = run_script(source, cwd=tmp_path, timeout=110)

    assert process.returncode != 0
    assert "ArithmeticError: only here" in process.stderr.splitlines()[-1]
