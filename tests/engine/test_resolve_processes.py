"""How many processes there are, who starts them, and which one this is."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from fulmen.accelerators import AcceleratorRegistry, CPUAccelerator
from fulmen.engine.resolve import explain
from fulmen.engine.resolve import resolve_strategy as resolve
from fulmen.plugins import DoublePrecision, TorchCheckpointIO
from fulmen.plugins.environments import (
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from fulmen.strategies import SingleDeviceStrategy
from fulmen.strategies.ddp import DDPStrategy
from fulmen.trainer import Trainer
from fulmen.utilities.rank_zero import rank_zero_only
from tests.distributed_harness import run_script
from tests.engine.launched import slurm, torchrun

CPU = torch.device("cpu")


def resolve_strategy(**arguments) -> Any:
    """The strategy without its type: tests look into parts of own classes."""
    return resolve(**arguments)


def start(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def where(strategy: Any) -> dict[str, int]:
    return {name: getattr(strategy, name) for name in ("world_size", "global_rank", "local_rank", "node_rank")}


# ---- nobody has started anything


@pytest.mark.parametrize("devices", [2, "2", " 2 "])
def test_several_cpu_devices_are_processes_of_ddp(only_cpu, devices):
    strategy = resolve_strategy(devices=devices)

    assert type(strategy) is DDPStrategy
    assert type(strategy.cluster_environment) is LightningEnvironment
    assert strategy.parallel_devices == [CPU, CPU]
    assert where(strategy) == {"world_size": 2, "global_rank": 0, "local_rank": 0, "node_rank": 0}


@pytest.mark.parametrize(
    "name", ["ddp", "DDP", "ddp_spawn", "ddp_fork", "Ddp_Notebook", "ddp_find_unused_parameters_true"]
)
def test_strategies_by_name_in_any_case(only_cpu, name):
    strategy = resolve_strategy(strategy=name, devices=2)

    assert type(strategy) is DDPStrategy
    assert strategy.world_size == 2


def test_ddp_on_one_device_stays_ddp(only_cpu):
    strategy = resolve_strategy(strategy="ddp")

    assert type(strategy) is DDPStrategy
    assert strategy.world_size == 1


def test_several_machines_are_ddp(only_cpu, monkeypatch):
    start(monkeypatch, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"})

    strategy = resolve_strategy(num_nodes=2, devices=2)

    assert type(strategy) is DDPStrategy
    assert where(strategy) == {"world_size": 4, "global_rank": 2, "local_rank": 0, "node_rank": 1}
    assert rank_zero_only.rank == 2


@pytest.mark.parametrize(
    ("devices", "indices"), [("auto", [0, 1]), (-1, [0, 1]), (1, [0]), ([1], [1]), ("1,", [1]), ([1, 0], [1, 0])]
)
def test_gpus_are_those_asked_for(two_gpus, devices, indices):
    trainer = Trainer(devices=devices, logger=False, enable_checkpointing=False, barebones=True)

    assert trainer.device_ids == indices
    assert trainer.num_devices == len(indices)


def test_rank_zero_knows_itself_and_logs(only_cpu, caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        resolve_strategy(devices=2)

    assert "GPU available: False, used: False" in caplog.messages


# ---- strategy objects


def test_a_strategy_object_gets_what_it_lacks(only_cpu):
    io, own = TorchCheckpointIO(), DDPStrategy(find_unused_parameters=True)

    strategy = resolve_strategy(strategy=own, devices=2, num_nodes=2, precision="64-true", plugins=io)

    assert strategy is own
    assert type(own.accelerator) is CPUAccelerator
    assert own.parallel_devices == [CPU, CPU]
    assert own.num_nodes == 2
    assert type(own.cluster_environment) is LightningEnvironment
    assert type(own.precision_plugin) is DoublePrecision
    assert own.checkpoint_io is io
    assert own.world_size == 4


def test_a_strategy_object_keeps_what_it_has(two_gpus):
    environment = LightningEnvironment()
    own = DDPStrategy(parallel_devices=[CPU] * 3, cluster_environment=environment)

    strategy = resolve_strategy(strategy=own)

    assert type(strategy.accelerator) is CPUAccelerator
    assert strategy.parallel_devices == [CPU] * 3
    assert strategy.cluster_environment is environment
    assert strategy.world_size == 3


def test_a_strategy_object_can_be_used_again_with_other_devices(only_cpu):
    own = DDPStrategy()
    resolve_strategy(strategy=own, devices=2)

    strategy = resolve_strategy(strategy=own, devices=3)

    assert strategy.world_size == 3


# ---- something else has started the processes


@pytest.mark.parametrize("arguments", [{}, {"devices": 2}, {"strategy": "ddp"}, {"devices": 2, "num_nodes": 1}])
@pytest.mark.parametrize(
    ("variables", "kind"),
    [(torchrun(), TorchElasticEnvironment), (slurm(), SLURMEnvironment)],
    ids=["torchrun", "srun"],
)
def test_processes_that_exist_are_used(only_cpu, monkeypatch, variables, kind, arguments):
    start(monkeypatch, variables)

    strategy = resolve_strategy(**arguments)

    assert type(strategy) is DDPStrategy
    assert type(strategy.cluster_environment) is kind
    assert strategy.parallel_devices == [CPU, CPU]
    assert where(strategy) == {"world_size": 2, "global_rank": 1, "local_rank": 1, "node_rank": 0}
    assert rank_zero_only.rank == 1


@pytest.mark.parametrize("arguments", [{}, {"devices": 2}, {"devices": 2, "num_nodes": 2}])
@pytest.mark.parametrize("variables", [torchrun(3, nodes=2), slurm(3, nodes=2)], ids=["torchrun", "srun"])
def test_machines_are_counted_as_they_were_started(only_cpu, monkeypatch, variables, arguments):
    start(monkeypatch, variables)

    strategy = resolve_strategy(**arguments)

    assert strategy.num_nodes == 2
    assert where(strategy) == {"world_size": 4, "global_rank": 3, "local_rank": 1, "node_rank": 1}


def test_auto_uses_as_many_gpus_as_processes(two_gpus, monkeypatch):
    start(monkeypatch, torchrun(0, per_node=1))

    strategy = resolve_strategy()

    assert type(strategy) is SingleDeviceStrategy
    assert strategy.root_device == torch.device("cuda", 0)


def test_gpus_of_processes_that_exist_are_those_asked_for(two_gpus, monkeypatch):
    start(monkeypatch, torchrun())

    strategy = resolve_strategy(devices=[1, 0])

    assert strategy.root_device == torch.device("cuda", 0)


def test_one_process_started_by_a_launcher_is_one_device(only_cpu, monkeypatch):
    start(monkeypatch, torchrun(0, per_node=1))

    assert type(resolve_strategy()) is SingleDeviceStrategy
    assert resolve_strategy(strategy="ddp").world_size == 1


def test_torchrun_inside_a_slurm_job_comes_first(only_cpu, monkeypatch):
    start(monkeypatch, {**slurm(0, per_node=1), **torchrun()})

    assert type(resolve_strategy().cluster_environment) is TorchElasticEnvironment


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_the_shell_of_a_slurm_job_is_no_task(only_cpu, monkeypatch, name):
    start(monkeypatch, slurm(0, name=name))

    strategy = resolve_strategy(devices=2)

    assert type(strategy.cluster_environment) is LightningEnvironment
    assert strategy.world_size == 2


def test_a_plugin_goes_before_what_is_detected(only_cpu, monkeypatch):
    start(monkeypatch, slurm())
    environment = LightningEnvironment()

    strategy = resolve_strategy(devices=4, plugins=environment)

    assert strategy.cluster_environment is environment
    assert strategy.world_size == 4


def test_pods_of_kubeflow_are_machines(only_cpu, monkeypatch):
    start(monkeypatch, {"MASTER_ADDR": "pod-0", "MASTER_PORT": "23456", "WORLD_SIZE": "3", "RANK": "2"})

    strategy = resolve_strategy(plugins=KubeflowEnvironment())

    assert type(strategy) is DDPStrategy
    assert (strategy.num_nodes, strategy.world_size, strategy.global_rank) == (3, 3, 2)


class OwnCluster(LightningEnvironment):
    """A cluster of a user: it starts all processes, and learns their number from the Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[tuple[int, int]] = []

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        self.checked.append((num_devices, num_nodes))


def test_an_environment_of_a_user_checks_the_settings_itself(only_cpu, monkeypatch):
    start(monkeypatch, {"LOCAL_RANK": "3", "NODE_RANK": "1"})
    cluster = OwnCluster()

    strategy = resolve_strategy(devices=4, num_nodes=2, plugins=[cluster])

    assert cluster.checked == [(4, 2)]
    assert strategy.global_rank == 7


def test_other_ranks_are_silent(only_cpu, monkeypatch, caplog):
    start(monkeypatch, torchrun())

    with caplog.at_level(logging.INFO, logger="fulmen"):
        resolve_strategy(precision="16-mixed")  # a warning would be an error here

    assert caplog.messages == []


@pytest.mark.parametrize("variables", [torchrun(0), slurm(0)], ids=["torchrun", "srun"])
def test_a_process_of_many_may_train_alone_if_it_says_so(only_cpu, monkeypatch, caplog, variables):
    start(monkeypatch, variables)

    with caplog.at_level(logging.INFO, logger="fulmen"):
        strategy = resolve_strategy(strategy="single_device")

    assert type(strategy) is SingleDeviceStrategy
    assert "each of them does all the work by itself" in caplog.text


def test_a_second_trainer_after_a_run_on_all_processes_may_use_one_device(only_cpu, monkeypatch, caplog):
    start(monkeypatch, torchrun(0))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    with caplog.at_level(logging.INFO, logger="fulmen"):
        strategy = resolve_strategy(devices=1)

    assert type(strategy) is SingleDeviceStrategy
    assert "each of them does all the work by itself" in caplog.text


def test_a_script_that_was_run_again_may_make_a_second_trainer_on_one_device(only_cpu, monkeypatch):
    start(monkeypatch, {"LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"})

    assert resolve_strategy(devices=2).global_rank == 1
    assert type(resolve_strategy(devices=1)) is SingleDeviceStrategy


def test_explain_names_who_started_the_processes(only_cpu, monkeypatch):
    start(monkeypatch, torchrun(3, nodes=2))

    lines = explain().splitlines()

    assert lines[1:4] == [
        "environment: TorchElasticEnvironment, because the variables of torchrun are set"
        " (torchrun started this process)",
        "nodes: 2, because `num_nodes` is 1 and the processes were started on several machines"
        " (1 is the default, and all processes must take part)",
        "devices: cpu, cpu, because `devices='auto'` and the processes were started already"
        " (each process computes on one device)",
    ]
    assert lines[-1] == "processes: 4, which exist already (TorchElasticEnvironment): nothing is started"


# ---- interactive sessions


def test_a_console_gets_one_gpu_unless_it_asks_for_more(two_gpus, console):
    assert type(resolve_strategy()) is SingleDeviceStrategy


@pytest.mark.parametrize("strategy", ["auto", "ddp_notebook", "ddp_fork"])
def test_a_console_forks(only_cpu, console, strategy):
    chosen = resolve_strategy(strategy=strategy, devices=2)

    assert type(chosen) is DDPStrategy
    launcher = chosen.launcher
    assert launcher is not None
    assert launcher.is_interactive_compatible


def test_a_console_among_processes_that_exist_starts_nothing(only_cpu, console, monkeypatch):
    start(monkeypatch, torchrun())

    assert resolve_strategy(strategy="ddp").world_size == 2


# ---- Fabric


def test_dp_is_for_fabric_and_becomes_ddp_on_the_cpu(only_cpu):
    with pytest.warns(UserWarning, match="'ddp' is used"):
        strategy = resolve_strategy(strategy="dp", devices=2, face="fabric")

    assert type(strategy) is DDPStrategy
    assert strategy.world_size == 2


def test_fabric_logs_no_hardware(only_cpu, caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        resolve_strategy(face="fabric", precision="bf16-mixed")

    assert caplog.messages == ["Using bfloat16 Automatic Mixed Precision (AMP)"]


# ---- accelerators of others


class Drawer(CPUAccelerator):
    """Hardware of a user: drawers, by letter."""

    @staticmethod
    def parse_devices(devices):
        return list(devices) if isinstance(devices, (list, tuple)) else ["a", "b", "c"][: int(devices)]

    @staticmethod
    def get_parallel_devices(devices):
        return ["cpu" for _ in devices]

    @staticmethod
    def auto_device_count():
        return 3

    @staticmethod
    def name():
        return "drawer"


@pytest.fixture
def drawer():
    Drawer.register_accelerators(AcceleratorRegistry)
    yield "drawer"
    AcceleratorRegistry.remove("drawer")


@pytest.mark.parametrize(("devices", "number"), [("auto", 3), (2, 2), ("2", 2), (["a", "c"], 2), (1, 1)])
def test_an_accelerator_of_a_user_reads_devices_in_its_own_way(drawer, devices, number):
    strategy = resolve_strategy(accelerator=drawer, devices=devices)

    assert type(strategy) is (DDPStrategy if number > 1 else SingleDeviceStrategy)
    assert type(strategy.accelerator) is Drawer
    assert strategy.parallel_devices == [CPU] * number


# ---- for real


SCRIPT = """
from fulmen import Trainer

trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
place = f"{trainer.global_rank}/{trainer.world_size} zero={trainer.is_global_zero}"
print(f"{type(trainer.strategy).__name__} {place}\\n", end="")  # one write: the lines of two processes stay whole
"""


@pytest.mark.distributed
def test_torchrun_and_a_trainer_without_arguments_are_enough(tmp_path):
    done = run_script(SCRIPT, torchrun=True, nproc=2, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["DDPStrategy 0/2 zero=True", "DDPStrategy 1/2 zero=False"]
    assert done.stderr.count("GPU available") == 1
