"""Ranks, the process group and its life, and what processes say to each other."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment
from fulmen.strategies import DDPStrategy, SingleDeviceStrategy
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.strategies.launchers import ExternalLauncher, MultiProcessingLauncher, SubprocessScriptLauncher
from fulmen.strategies.process_group import leave_group
from fulmen.utilities.rank_zero import rank_zero_only
from tests.distributed_harness import run_ranks
from tests.strategies.ranks import joined

CPU = torch.device("cpu")


@pytest.fixture
def strategy(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return DDPStrategy(parallel_devices=[CPU] * 3, cluster_environment=LightningEnvironment())


# ---- alone


def test_ranks_follow_from_devices_nodes_and_environment(strategy, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "2")
    strategy.num_nodes = 4
    strategy.set_local_rank(1)

    assert strategy.num_processes == 3
    assert strategy.world_size == 12
    assert (strategy.node_rank, strategy.local_rank, strategy.global_rank) == (2, 1, 7)
    assert not strategy.is_global_zero
    assert rank_zero_only.rank == 7
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 12, "rank": 7}
    assert strategy.root_device == CPU


def test_before_devices_are_known_the_error_says_who_chooses_them():
    with pytest.raises(RuntimeError, match="parallel_devices"):
        _ = DDPStrategy().root_device
    with pytest.raises(RuntimeError, match="cluster_environment"):
        _ = DDPStrategy().launcher


@pytest.mark.parametrize(
    "talk",
    [
        lambda strategy: strategy.all_reduce(torch.ones(1)),
        lambda strategy: strategy.reduce(torch.ones(1)),
        lambda strategy: strategy.all_gather(torch.ones(1)),
        lambda strategy: strategy.gather_objects(1),
        lambda strategy: strategy.agree([1]),
        lambda strategy: strategy.reduce_boolean_decision(True),
        lambda strategy: strategy.control_group,
        lambda strategy: strategy.process_group,
    ],
)
def test_talking_before_the_launch_says_to_launch(strategy, talk):
    with pytest.raises(RuntimeError, match="have not been launched"):
        talk(strategy)


def test_before_the_launch_broadcast_and_barrier_are_about_this_process(strategy):
    assert strategy.broadcast("mine") == "mine"
    strategy.barrier("early")
    strategy.meet("early")
    strategy.report_fault(ValueError("nobody hears it"))


@pytest.mark.parametrize(
    ("start_method", "kind"),
    [
        ("popen", SubprocessScriptLauncher),
        ("spawn", MultiProcessingLauncher),
        ("fork", MultiProcessingLauncher),
        ("forkserver", MultiProcessingLauncher),
    ],
)
def test_the_start_method_chooses_the_launcher(start_method, kind, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    strategy = DDPStrategy(
        parallel_devices=[CPU] * 2, cluster_environment=LightningEnvironment(), start_method=start_method
    )

    assert type(strategy.launcher) is kind
    assert strategy.launcher is strategy.launcher
    assert pickle.loads(pickle.dumps(strategy)).num_processes == 2


def test_processes_that_exist_are_not_started(strategy, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")

    assert type(strategy.launcher) is ExternalLauncher


def test_the_backend_follows_the_device_unless_it_is_given():
    assert DDPStrategy(parallel_devices=[CPU], process_group_backend="mpi").process_group_backend == "mpi"
    for device, backend in (("cpu", "gloo"), ("cuda", "nccl"), ("xpu", "xccl"), ("mps", "gloo")):
        strategy = DDPStrategy(parallel_devices=[torch.device(device, 0)])
        assert strategy.process_group_backend == backend


def test_one_process_talks_to_itself():
    strategy = SingleDeviceStrategy()

    assert strategy.gather_objects("x") == ["x"]
    assert strategy.agree([1, 2]) == [1, 2]
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}
    assert strategy.num_exchanges == 0
    assert not strategy.needs_shadow_steps
    assert strategy.launcher is None
    strategy.meet("alone")
    strategy.report_fault(ValueError())


# ---- two ranks


def _talk() -> dict[str, Any]:
    strategy = joined(timeout=timedelta(seconds=60))
    rank = strategy.global_rank
    watch = strategy.fault_watch
    assert strategy.control_group is dist.group.WORLD  # gloo does both
    assert strategy.process_group is dist.group.WORLD
    counted = strategy.num_exchanges
    value = torch.tensor([1.0 + rank])
    nested = {"loss": value, "count": rank, "rest": [torch.tensor(rank == 0), 0.5 * rank], "name": "kept"}
    results: dict[str, Any] = {
        "reduced": strategy.all_reduce(nested),
        "in_place": value.item(),
        "largest": strategy.reduce(torch.tensor(rank), reduce_op=dist.ReduceOp.MAX),
        "gathered": strategy.all_gather({"a": torch.ones(rank + 1), "b": 3 * rank, "c": ("text", torch.zeros(2))}),
        "nothing": strategy.all_gather({"name": "x"}),
        "objects": strategy.gather_objects([rank] * rank),
        "agreed": strategy.agree([rank, 5 - rank]),
        "all": strategy.reduce_boolean_decision(rank == 0),
        "any": strategy.reduce_boolean_decision(rank == 0, all=False),
        "sent": strategy.broadcast({"from": rank}, src=1),
    }
    strategy.barrier("here")
    strategy.meet("came")
    results["exchanges"] = strategy.num_exchanges - counted
    second = joined()  # another run of the same program
    results["second"] = second.agree([rank], "sum")
    results["same_watch"] = second.fault_watch is watch and watch is not None
    wrong = DDPStrategy(parallel_devices=[CPU] * 3, cluster_environment=LightningEnvironment())
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        wrong.setup_environment()
    except RuntimeError as error:
        results["wrong_size"] = str(error)
    if rank == 0:
        try:
            strategy.meet("stopped after 5 steps", timeout_s=1.0)
        except RuntimeError as error:
            results["missed"] = str(error)
    leave_group()
    results["left"] = not dist.is_initialized()
    return results


@pytest.mark.distributed
def test_two_ranks_reduce_gather_and_decide():
    of_ranks = run_ranks(_talk, timeout=110)

    for results in of_ranks:
        reduced = results["reduced"]
        assert (reduced["loss"].item(), reduced["count"].item(), reduced["name"]) == (1.5, 0.5, "kept")
        assert [value.item() for value in reduced["rest"]] == [0.5, 0.25]
        assert results["in_place"] == 1.5
        assert results["largest"].item() == 1
        gathered = results["gathered"]
        assert [len(part) for part in gathered["a"]] == [1, 2]
        assert gathered["b"].tolist() == [0, 3]
        assert gathered["c"][0] == "text"
        assert gathered["c"][1].shape == (2, 2)
        assert results["nothing"] == {"name": "x"}
        assert results["objects"] == [[], [1]]
        assert results["agreed"] == [1, 5]
        assert (results["all"], results["any"]) == (False, True)
        assert results["sent"] == {"from": 1}
        assert results["exchanges"] > 10
        assert results["second"] == [1]
        assert results["same_watch"]
        assert "already in a process group of 2" in results["wrong_size"]
        assert results["left"]
    assert "Rank 0 of 2 stopped after 5 steps" in of_ranks[0]["missed"]


def _use_groups_of_others(folder: str) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = dist.group.WORLD
    strategy = DDPStrategy(parallel_devices=[CPU] * 2, cluster_environment=TorchElasticEnvironment())
    strategy.setup_environment()
    results = {"is_used": strategy.process_group is own, "watches": FaultWatch.running() is not None}
    results["sum"] = strategy.agree([rank], "sum") == [1]
    strategy.barrier()
    leave_group()
    results["is_left_alone"] = dist.is_initialized()
    dist.destroy_process_group()
    return results


@pytest.mark.distributed
def test_a_group_that_someone_else_made_is_used_and_left_alone(tmp_path):
    for results in run_ranks(_use_groups_of_others, 2, str(tmp_path), timeout=110):
        assert results == {"is_used": True, "watches": True, "sum": True, "is_left_alone": True}


def _end_quietly(queue: Any, port: str) -> None:
    os.environ.update(
        RANK="0", LOCAL_RANK="0", GROUP_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port, TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    strategy = DDPStrategy(parallel_devices=[CPU], cluster_environment=TorchElasticEnvironment())
    strategy.setup_environment()
    destroy = dist.destroy_process_group

    def told(*args: Any) -> None:
        destroy(*args)
        queue.put("destroyed")

    dist.destroy_process_group = told  # type: ignore[assignment]  # it notes the call
    queue.put(strategy.all_gather(torch.ones(3)).shape)


@pytest.mark.distributed
def test_a_worker_leaves_the_group_when_it_ends():
    from tests.distributed_harness import free_port

    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    worker = context.Process(target=_end_quietly, args=(queue, str(free_port())))
    worker.start()
    worker.join(100)

    assert worker.exitcode == 0
    assert queue.get() == (1, 3)
    assert queue.get() == "destroyed"


@pytest.mark.parametrize("nothing", [[], None])
def test_no_devices_are_devices_that_nobody_has_chosen(strategy, nothing):
    strategy.parallel_devices = nothing
    strategy.take_devices([CPU] * 2, num_nodes=1)

    assert "parallel_devices" not in strategy.chosen_parts
    assert strategy.parallel_devices == [CPU] * 2
