"""`fulmen doctor`: what it finds, and what its self-test sees."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from fulmen.cli import machine, self_test
from tests.support import run_python

Usage = namedtuple("Usage", "total used free")


def test_it_shows_versions_devices_and_packages(fulmen) -> None:
    ended = fulmen("doctor", "--no-test")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]

    assert f"torch {torch.__version__}" in lines
    assert any(line.startswith("cpu ") and "core" in line for line in lines)
    assert any(line.startswith("torchmetrics ") for line in lines)
    assert any(line.endswith("pip install 'fulmen[tensorrt]'") for line in lines)
    assert "self-test" not in lines
    assert ended.code == 0, ended.out


def test_json_holds_the_same(fulmen) -> None:
    found = json.loads(fulmen("doctor", "--no-test", "--json").out)

    assert found["versions"]["torch"] == torch.__version__
    assert found["is_well"] is True
    assert {"package", "installed", "asked", "extras", "fits"} <= set(found["packages"][0])
    assert found["tests"] == []


def finding_about(word: str) -> machine.Finding | None:
    return next((each for each in machine.findings() if word in each.what), None)


def test_little_shared_memory_is_noted(monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(64 * 10**6, 0, 64 * 10**6))
    found = finding_about("shared memory")

    assert found is not None
    assert found.level == machine.NOTE
    assert "--shm-size" in found.remedy


def test_few_open_files_are_noted(monkeypatch) -> None:
    for soft, level in ((1024, machine.NOTE), (64, machine.PROBLEM)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, 4096))
        found = finding_about("Too many open files")

        assert found is not None
        assert (found.level, "ulimit -n 4096" in found.remedy) == (level, True)


def test_a_host_name_without_address_is_noted(monkeypatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")

    assert finding_about("'no-such-host.invalid', has no address") is not None


def test_a_cpu_build_beside_a_gpu_driver_is_a_problem(fulmen, monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = finding_about("build for CPUs")
    ended = fulmen("doctor", "--no-test")

    assert found is not None
    assert found.level == machine.PROBLEM
    assert ended.code == 1
    assert "1 problem" in ended.out
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert finding_about("sees no GPU") is not None


def test_variables_left_over_from_a_launcher_are_noted(monkeypatch) -> None:
    for name in machine._LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    found = finding_about("RANK, WORLD_SIZE are set")

    assert found is not None
    assert "unset RANK WORLD_SIZE" in found.remedy


def test_a_container_with_fewer_cores_is_noted(monkeypatch, tmp_path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = finding_about("8 threads, and the container may use 1 cores")

    assert found is not None
    assert "OMP_NUM_THREADS=1" in found.remedy
    assert "1.0 GB of memory" in machine.devices()["cpu"]


def test_a_package_that_is_too_old_is_noted(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda name: "0.0.1" if name == "rich" else None)
    found = finding_about("rich 0.0.1 is here")

    assert found is not None
    assert found.remedy == "pip install 'fulmen[rich]'"


def ended_process() -> subprocess.Popen[str]:
    """In place of the two processes: the third test is the slow one."""
    return subprocess.Popen([sys.executable, "-c", "print(0.1)"], stdout=subprocess.PIPE, text=True)


def test_a_fit_and_a_checkpoint_work_and_leave_random_numbers_alone(monkeypatch) -> None:
    monkeypatch.setattr(self_test, "_start", ended_process)
    before = torch.get_rng_state()
    with self_test.self_test() as tests:
        outcomes = {outcome.test: outcome for outcome in tests}

    assert [outcome.error for outcome in outcomes.values()] == ["", "", ""]
    assert outcomes["a fit"].what.startswith("32 steps on ")
    assert "weights equal" in outcomes["a checkpoint"].what
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_test_is_shown_and_tells_by_the_exit_code(fulmen, monkeypatch) -> None:
    monkeypatch.setattr(self_test, "_start", ended_process)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *args, **kwargs: None)
    ended = fulmen("doctor")

    assert ended.code == 1
    assert "FAILED" in ended.out
    assert "should vanish" in " ".join(ended.out.split())
    assert "1 test failed" in ended.out


@pytest.mark.slow
@pytest.mark.distributed
def test_the_whole_command_says_that_all_works() -> None:
    result = run_python("-m", "fulmen.cli", "doctor", COLUMNS="80")

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("  ok ") == 3
    assert result.stdout.splitlines()[-1] == "All works."


@pytest.mark.slow
@pytest.mark.distributed
def test_a_process_that_dies_is_said_to_have(monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with self_test.self_test() as tests:
        *_, outcome = tests

    assert outcome.test == "two processes"
    assert "ended with code 1" in outcome.error
    assert "no-such-interface" in outcome.error
    assert os.environ["GLOO_SOCKET_IFNAME"] == "no-such-interface"


def test_processes_that_cannot_meet_are_not_waited_for_long(monkeypatch) -> None:
    monkeypatch.setattr(self_test, "_TIMEOUT_S", 0.1)
    monkeypatch.setattr(
        self_test, "_start", lambda: subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True)
    )
    with self_test.self_test() as tests:
        *_, outcome = tests

    assert "set GLOO_SOCKET_IFNAME=lo" in outcome.error
