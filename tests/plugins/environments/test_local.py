"""Processes of one machine."""

from __future__ import annotations

import os

import pytest

from fulmen.plugins.environments import LightningEnvironment
from fulmen.utilities.rank_zero import rank_zero_only

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_defaults_are_those_of_one_process():
    environment = LightningEnvironment()

    assert LightningEnvironment.detect()
    assert not environment.creates_processes_externally
    assert environment.main_address == "127.0.0.1"
    assert (environment.world_size(), environment.global_rank()) == (1, 0)
    assert (environment.local_rank(), environment.node_rank()) == (0, 0)


def test_free_port_stays_the_same():
    environment = LightningEnvironment()

    assert 0 < environment.main_port == environment.main_port


def test_variables_decide(monkeypatch):
    for variable, text in zip(VARIABLES, ("10.0.0.1", "1234", "99", "2", "3", "4", "8"), strict=True):
        monkeypatch.setenv(variable, text)
    environment = LightningEnvironment()

    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("10.0.0.1", 1234)
    assert (environment.local_rank(), environment.node_rank()) == (2, 3)


def test_group_rank_and_standalone_port_are_second_choices(monkeypatch):
    monkeypatch.setenv("GROUP_RANK", "4")
    monkeypatch.setenv("STANDALONE_PORT", "99")

    assert LightningEnvironment().node_rank() == 4
    assert LightningEnvironment().main_port == 99


def test_rank_is_noted_for_the_rank_zero_functions(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", 0)
    environment = LightningEnvironment()

    environment.set_global_rank(3)
    environment.set_world_size(4)

    assert (environment.global_rank(), environment.world_size(), rank_zero_only.rank) == (3, 4, 3)


@pytest.mark.parametrize("name", ["main_address", "main_port"])
def test_several_machines_must_be_told_where_to_meet(monkeypatch, name):
    environment = LightningEnvironment()
    environment.validate_settings(num_devices=1, num_nodes=2)

    with pytest.raises(RuntimeError, match=r"`num_nodes=2` without the environment variable `MASTER_(ADDR|PORT)`"):
        getattr(environment, name)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert (environment.main_address, environment.main_port) == ("10.0.0.1", 1234)


def test_teardown_removes_the_world_size(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")

    LightningEnvironment().teardown()

    assert "WORLD_SIZE" not in os.environ
