"""Workers of Ray Train; `make test-ray` runs it with Ray, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fulmen import Trainer, seed_everything
from fulmen.demos.boring_classes import BoringModel
from fulmen.engine.resolve import resolve_strategy
from fulmen.plugins.environments import LightningEnvironment, RayEnvironment
from tests.distributed_harness import run_ranks
from tests.plugins.environments.ray_program import SETTINGS

PROGRAM = Path(__file__).with_name("ray_program.py")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: `make test-ray`")


class _Context:
    """What `ray.train.get_context()` returns in the fourth worker of two machines with two each."""

    def get_world_size(self) -> int:
        return 4

    def get_world_rank(self) -> int:
        return 3

    def get_local_rank(self) -> int:
        return 1

    def get_local_world_size(self) -> int:
        return 2

    def get_node_rank(self) -> int:
        return 1


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    train: Any = ModuleType("ray.train")
    train.get_context = _Context
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "ray.train", train)


def test_it_is_detected_in_workers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_context() -> None:
        raise RuntimeError("not in a worker")

    monkeypatch.delitem(sys.modules, "ray.train", raising=False)
    assert not RayEnvironment.detect()
    monkeypatch.setitem(sys.modules, "ray.train", SimpleNamespace(get_context=no_context))
    assert not RayEnvironment.detect()


@pytest.mark.usefixtures("worker")
def test_ranks_and_sizes_are_those_of_ray() -> None:
    environment = RayEnvironment()

    assert RayEnvironment.detect()
    assert environment.creates_processes_externally
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank(), environment.workers_of_machine) == (1, 1, 2)
    with pytest.raises(ValueError, match=r"Ray Train started.*ScalingConfig\(num_workers=6\)"):
        environment.validate_settings(3, 2)


@pytest.mark.usefixtures("worker")
def test_trainer_takes_devices_and_machines_from_ray() -> None:
    strategy = resolve_strategy(accelerator="cpu")

    assert isinstance(strategy.cluster_environment, RayEnvironment)
    assert (strategy.world_size, strategy.num_nodes, strategy.global_rank) == (4, 2, 3)


class _OfSize(LightningEnvironment):
    """As `ray.train.lightning.RayLightningEnvironment`: of Lightning's kind, but it knows the ranks by itself."""

    def world_size(self) -> int:
        return 4

    def global_rank(self) -> int:
        return 3

    def local_rank(self) -> int:
        return 1

    def node_rank(self) -> int:
        return 1


def test_trainer_takes_devices_and_machines_from_an_environment_that_derives_from_the_local_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    strategy = resolve_strategy(accelerator="cpu", plugins=_OfSize())

    assert (strategy.world_size, strategy.num_nodes, strategy.global_rank) == (4, 2, 3)


# ---- with Ray itself


def run_on_ray(what: str, folder: Path) -> dict[str, Any]:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), what, str(folder)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    path = folder / "result.json"
    assert path.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def weights_without_ray() -> list[float]:
    seed_everything(1, verbose=False)
    model = BoringModel()
    Trainer(**SETTINGS, devices=2, strategy="ddp").fit(model)
    weights: list[float] = model.layer.weight.flatten().tolist()
    return weights


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_in_workers_of_ray_gives_the_weights_of_a_run_without(tmp_path: Path) -> None:
    result = run_on_ray("ours", tmp_path)

    assert (result["world_size"], result["environment"], result["strategy"]) == (2, "RayEnvironment", "DDPStrategy")
    assert result["weights"] == run_ranks(weights_without_ray, 2, timeout=200)[0]


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rays_own_classes_for_lightning_work_through_the_compat_layer(tmp_path: Path) -> None:
    result = run_on_ray("theirs", tmp_path)

    assert (result["world_size"], result["is_fulmen"]) == (2.0, 1.0)
    assert (result["epoch"], result["step"]) == (1, 8)
    assert result["files"] == ["checkpoint.ckpt"]
