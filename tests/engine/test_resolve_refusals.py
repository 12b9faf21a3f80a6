"""What cannot be is refused when the Trainer is made, and the message says what to do instead."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch

from fulmen.accelerators import CPUAccelerator, CUDAAccelerator
from fulmen.engine.resolve import resolve_strategy
from fulmen.plugins import (
    AsyncCheckpointIO,
    DoublePrecision,
    LayerSync,
    MixedPrecision,
    Precision,
    TorchCheckpointIO,
)
from fulmen.plugins.environments import LightningEnvironment
from fulmen.strategies import SingleDeviceStrategy
from fulmen.strategies.ddp import DDPStrategy
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import is_installed
from tests.engine.launched import slurm, torchrun

CPU = torch.device("cpu")
ME = MisconfigurationException


class OtherSync(LayerSync):
    """A plugin of a user."""

    def apply(self, model):
        return model

    def revert(self, model):
        return model


# machine, variables of a launcher, arguments, type of the error, parts of its message: what is wrong, what to do
REFUSED: list[tuple[str, dict[str, str], dict[str, Any], type[Exception], list[str]]] = [
    # names
    ("cpu", {}, {"accelerator": "foo"}, ValueError, ["'foo'", "not known", "'cpu'"]),
    ("cpu", {}, {"accelerator": None}, ValueError, ["None", "not known", "'cpu'"]),
    ("cpu", {}, {"strategy": "foo"}, ValueError, ["'foo'", "not known", "'ddp'"]),
    (
        "cpu",
        {},
        {"strategy": SingleDeviceStrategy},
        ValueError,
        ["not known", "Make an object of it: `SingleDeviceStrategy(...)`"],
    ),
    ("cpu", {}, {"precision": "nf4-dq"}, ValueError, ["'nf4-dq'", "`plugins=BitsandbytesPrecision("]),
    ("cpu", {}, {"precision": "8"}, ValueError, ["'8'", "not known", "'bf16-mixed'"]),
    ("cpu", {}, {"plugins": [3]}, ME, ["3", "none of the kinds", "Precision"]),
    # hardware that is not there
    ("cpu", {}, {"accelerator": "gpu"}, ME, ["needs a GPU", "'cpu'"]),
    ("cpu", {}, {"accelerator": "cuda"}, ME, ["CUDAAccelerator", "one that is there: ['cpu']"]),
    ("cpu", {}, {"accelerator": "mps", "devices": 1}, ME, ["MPSAccelerator", "one that is there: ['cpu']"]),
    ("two gpus", {}, {"accelerator": "mps"}, ME, ["MPSAccelerator", "'cuda'"]),
    # devices
    ("cpu", {}, {"devices": 0}, ME, ["`devices=0`", "selects no device", "'auto'"]),
    ("cpu", {}, {"devices": []}, ME, ["`devices=[]`", "selects no device", "'auto'"]),
    ("cpu", {}, {"devices": -1}, TypeError, ["`devices=-1`", "number of processes", "'auto'"]),
    ("cpu", {}, {"devices": [0, 1]}, TypeError, ["`devices=[0, 1]`", "number of processes", "'auto'"]),
    ("cpu", {}, {"devices": None}, TypeError, ["`devices=None`", "number of processes", "'auto'"]),
    ("cpu", {}, {"devices": 1.5}, TypeError, ["`devices=1.5`", "number of processes", "'auto'"]),
    ("two gpus", {}, {"devices": 3}, ME, ["`devices=3`", "do not exist", "[0, 1]"]),
    ("two gpus", {}, {"devices": [0, 2]}, ME, ["[2] do not exist", "[0, 1]"]),
    ("two gpus", {}, {"devices": [1, 1]}, ME, ["names a device twice", "Remove"]),
    ("two gpus", {}, {"devices": "x"}, ME, ["`devices='x'`", "'auto'"]),
    ("two gpus", {}, {"devices": True}, TypeError, ["`devices=True`", "'auto'"]),
    ("mac", {}, {"accelerator": "mps", "devices": 2}, ME, ["`devices=2`", "[1] do not exist"]),
    ("cpu", {}, {"num_nodes": 0}, ValueError, ["`num_nodes=0`", "1 or more"]),
    ("cpu", {}, {"num_nodes": "2"}, ValueError, ["`num_nodes='2'`", "1 or more"]),
    # strategies and devices
    ("cpu", {}, {"strategy": "single_device", "devices": 2}, ME, ["one device", "`strategy='ddp'`"]),
    ("two gpus", {}, {"strategy": "single_device", "devices": -1}, ME, ["one device", "`strategy='ddp'`"]),
    ("cpu", {}, {"strategy": SingleDeviceStrategy("cpu"), "devices": 2}, ME, ["one device", "`strategy='ddp'`"]),
    ("cpu", {}, {"strategy": "single_device", "num_nodes": 2}, ME, ["`num_nodes=2`", "`strategy='ddp'`"]),
    (
        "cpu",
        {},
        {"strategy": DDPStrategy(parallel_devices=[CPU] * 2), "devices": 3},
        ME,
        ["`devices=3`", "comes with 2", "Leave out `devices`"],
    ),
    (
        "two gpus",
        {},
        {"strategy": DDPStrategy(parallel_devices=[CPU] * 2), "accelerator": "cuda"},
        ME,
        ["on the device `cpu`", "`accelerator='auto'`"],
    ),
    ("two gpus", {}, {"strategy": SingleDeviceStrategy("cpu"), "accelerator": "cuda"}, ME, ["`cpu`", "'auto'"]),
    ("mac", {}, {"strategy": "ddp"}, ValueError, ["MPS", "`accelerator='cpu'`"]),
    ("mac", {}, {"strategy": DDPStrategy()}, ValueError, ["`DDPStrategy`", "MPS", "`accelerator='cpu'`"]),
    ("mac", {}, {"num_nodes": 2}, ValueError, ["2 processes", "MPS", "one machine", "`accelerator='cpu'`"]),
    ("two gpus", {}, {"strategy": "dp"}, ValueError, ["Fabric only", "`strategy='ddp'`"]),
    # numbers
    ("cpu", {}, {"precision": "transformer-engine"}, ME, ["only GPUs", "'bf16-mixed'"]),
    ("cpu", {}, {"precision": "fp8-mixed"}, ME, ["only GPUs", "'bf16-mixed'", "emulate=True"]),
    ("mac", {}, {"precision": "64-true"}, ME, ["64-bit", "'32-true'"]),
    ("mac", {}, {"plugins": DoublePrecision()}, ME, ["64-bit", "'32-true'"]),
    # two answers to one question
    ("cpu", {}, {"precision": 32, "plugins": DoublePrecision()}, ValueError, ["Choose one"]),
    ("cpu", {}, {"plugins": [TorchCheckpointIO(), AsyncCheckpointIO()]}, ME, ["two of the kind", "Remove one"]),
    ("cpu", {}, {"plugins": [Precision(), MixedPrecision("bf16-mixed", "cpu")]}, ME, ["two of the kind"]),
    ("cpu", {}, {"plugins": OtherSync(), "sync_batchnorm": True}, ME, ["sync_batchnorm=True", "Choose one"]),
    ("cpu", {}, {"strategy": DDPStrategy(accelerator=CPUAccelerator()), "accelerator": "cpu"}, ME, ["given twice"]),
    (
        "cpu",
        {},
        {"strategy": DDPStrategy(cluster_environment=LightningEnvironment()), "plugins": LightningEnvironment()},
        ME,
        ["`cluster_environment` is given twice", "Choose one"],
    ),
    ("cpu", {}, {"strategy": DDPStrategy(precision_plugin=Precision()), "precision": 64}, ME, ["given twice"]),
    (
        "cpu",
        {},
        {"strategy": DDPStrategy(accelerator=CUDAAccelerator())},
        ME,
        ["The strategy's accelerator", "CUDAAccelerator", "['cpu']"],
    ),
    # other numbers of processes than were started
    ("cpu", torchrun(), {"devices": 1}, ValueError, ["`devices=1`", "started 2", "`devices=2`", "'single_device'"]),
    ("cpu", torchrun(), {"devices": 3}, ValueError, ["3 process", "started 2", "--nproc-per-node=3"]),
    ("cpu", torchrun(), {"devices": 2, "num_nodes": 2}, ValueError, ["`num_nodes=2`", "1 machine", "--nnodes=2"]),
    ("cpu", torchrun(), {"strategy": "ddp", "devices": 1}, ValueError, ["started 2", "`devices=2`"]),
    ("cpu", torchrun(3, nodes=2), {"devices": 1}, ValueError, ["`devices=1`", "started 2"]),
    ("cpu", torchrun(3, nodes=2), {"devices": 2, "num_nodes": 4}, ValueError, ["`num_nodes=4`", "`num_nodes=2`"]),
    ("cpu", torchrun(0, per_node=1), {"devices": 2}, ValueError, ["2 process", "started 1"]),
    ("two gpus", torchrun(3, per_node=4), {}, ME, ["4 processes", "2 device", "CUDA_VISIBLE_DEVICES"]),
    ("cpu", slurm(), {"devices": 1}, ValueError, ["`devices=1`", "started 2", "--ntasks-per-node=1"]),
    ("cpu", slurm(), {"devices": 4}, ValueError, ["4 process", "started 2", "--ntasks-per-node=4"]),
    ("cpu", slurm(3, nodes=2), {"devices": 2, "num_nodes": 3}, ValueError, ["`num_nodes=3`", "`num_nodes=2`"]),
    ("cpu", slurm(0, per_node=1), {"devices": 2}, ValueError, ["2 process", "started 1"]),
    ("cpu", {"LOCAL_RANK": "1"}, {"strategy": "ddp", "devices": 1}, ValueError, ["number 1", "more devices"]),
]


@pytest.mark.parametrize(("machine", "variables", "arguments", "error", "parts"), REFUSED, indirect=["machine"])
def test_refused(machine, variables, arguments, error, parts, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(error) as caught:
        resolve_strategy(**arguments)

    assert caught.type is error
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert message.endswith("."), message


def test_fork_is_refused_where_there_is_none(only_cpu, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])

    for name in ("ddp_fork", "ddp_notebook", "ddp_fork_find_unused_parameters_true"):
        with pytest.raises(ValueError, match=r"cannot do.*'ddp'"):
            resolve_strategy(strategy=name, devices=2)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_find_unused_parameters_true"])
@pytest.mark.parametrize("devices", [1, 2])
def test_launchers_that_need_a_script_are_refused_in_a_console(only_cpu, console, strategy, devices):
    with pytest.raises(MisconfigurationException, match=r"no script.*'ddp_notebook'"):
        resolve_strategy(strategy=strategy, devices=devices)


@pytest.mark.skipif(is_installed("torch_xla"), reason="is about its absence")
@pytest.mark.parametrize("arguments", [{"accelerator": "tpu"}, {"strategy": "xla"}, {"strategy": "single_xla"}])
def test_xla_says_which_package_it_needs(arguments):
    with pytest.raises(ModuleNotFoundError, match=r"torch_xla.*fulmen\[xla\]"):
        resolve_strategy(**arguments)
