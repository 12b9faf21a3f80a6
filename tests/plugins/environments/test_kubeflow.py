"""Processes started by Kubeflow's PyTorchJob."""

from __future__ import annotations

import pytest

from fulmen.plugins.environments import KubeflowEnvironment

VARIABLES = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "4", "RANK": "2"}


def test_it_must_be_chosen():
    with pytest.raises(NotImplementedError, match=r"Choose it yourself: `plugins=\[KubeflowEnvironment\(\)\]`"):
        KubeflowEnvironment.detect()


def test_variables_decide(monkeypatch):
    for variable, text in VARIABLES.items():
        monkeypatch.setenv(variable, text)
    environment = KubeflowEnvironment()
    environment.set_world_size(99)
    environment.set_global_rank(99)

    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("job-master-0", 23456)
    assert (environment.world_size(), environment.global_rank()) == (4, 2)
    assert (environment.local_rank(), environment.node_rank()) == (0, 2)
    environment.validate_settings(1, 4)
    with pytest.raises(ValueError, match=r"world size \(4\).*replicas of the PyTorchJob"):
        environment.validate_settings(4, 2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda environment: environment.main_address,
        lambda environment: environment.main_port,
        KubeflowEnvironment.world_size,
        KubeflowEnvironment.node_rank,
    ],
)
def test_a_missing_variable_is_named(monkeypatch, ask):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    with pytest.raises(RuntimeError, match=r"set by the PyTorchJob operator"):
        ask(KubeflowEnvironment())
