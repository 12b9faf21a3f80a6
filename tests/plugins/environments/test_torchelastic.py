"""Processes started by torchrun."""

from __future__ import annotations

import json
import os

import pytest

from fulmen.plugins.environments import TorchElasticEnvironment
from tests.distributed_harness import rank_environment, run_script

SCRIPT = """
    import json
    from fulmen.plugins.environments import TorchElasticEnvironment

    environment = TorchElasticEnvironment()
    environment.validate_settings(2, 1)
    ranks = environment.global_rank(), environment.local_rank(), environment.node_rank()
    print(json.dumps([environment.detect(), *ranks, environment.world_size(), environment.main_address]), flush=True)
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for variable in rank_environment(0, 1, 0):
        monkeypatch.delenv(variable, raising=False)


def set_ranks(monkeypatch, **changes):
    values = {**rank_environment(3, 4, 1234), "LOCAL_RANK": "1", "GROUP_RANK": "1", **changes}
    for variable, text in values.items():
        monkeypatch.setenv(variable, text)


def test_nothing_is_detected_outside_of_torchrun():
    assert not TorchElasticEnvironment.detect()


def test_variables_decide(monkeypatch):
    set_ranks(monkeypatch)
    environment = TorchElasticEnvironment()
    environment.set_world_size(99)
    environment.set_global_rank(99)

    assert TorchElasticEnvironment.detect()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("127.0.0.1", 1234)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)


def test_defaults_of_one_machine_are_taken_with_a_warning():
    environment = TorchElasticEnvironment()

    with pytest.warns(UserWarning, match="`MASTER_ADDR` is not set; 127.0.0.1 is taken"):
        assert environment.main_address == "127.0.0.1"
    with pytest.warns(UserWarning, match="`MASTER_PORT` is not set; 12910 is taken"):
        assert environment.main_port == 12910
    assert "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize("name", ["world_size", "global_rank", "local_rank"])
def test_a_missing_variable_is_named(name):
    with pytest.raises(RuntimeError, match=r"needs the environment variable `(WORLD_SIZE|RANK|LOCAL_RANK)`.*torchrun"):
        getattr(TorchElasticEnvironment(), name)()


def test_settings_must_make_the_world_size(monkeypatch):
    set_ranks(monkeypatch)
    environment = TorchElasticEnvironment()

    environment.validate_settings(2, 2)
    with pytest.raises(ValueError, match=r"does not match the world size \(4\).* --nnodes=1 --nproc-per-node=2"):
        environment.validate_settings(2, 1)


@pytest.mark.distributed
def test_torchrun_is_detected_and_understood(tmp_path):
    done = run_script(SCRIPT, cwd=tmp_path, torchrun=True, nproc=2)

    assert done.returncode == 0, done.stderr
    lines = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [line[:5] for line in lines] == [[True, 0, 0, 0, 2], [True, 1, 1, 0, 2]]
    assert lines[0][5] == lines[1][5]
