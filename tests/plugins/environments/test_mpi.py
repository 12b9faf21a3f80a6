"""Processes started by `mpirun`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from fulmen.plugins.environments import MPIEnvironment
from fulmen.utilities.lazy import is_installed

LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_RANK")
needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or not is_installed("mpi4py"), reason="needs `mpirun` and `mpi4py`"
)

SCRIPT = """
import json, os, sys, torch, torch.distributed as dist
from fulmen.plugins.environments import MPIEnvironment
assert "mpi4py" not in sys.modules
detected = MPIEnvironment.detect()
environment = MPIEnvironment()
environment.set_world_size(99)
environment.set_global_rank(99)
rank, size = environment.global_rank(), environment.world_size()
environment.validate_settings(2, 1)
point = environment.main_address, environment.main_port
dist.init_process_group("gloo", init_method="tcp://%s:%d" % point, rank=rank, world_size=size)
total = torch.ones(1)
dist.all_reduce(total)
dist.destroy_process_group()
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="77")
chosen = MPIEnvironment()
facts = [detected, environment.creates_processes_externally, rank, environment.local_rank(), environment.node_rank()]
with open(sys.argv[1] + "/%d" % rank, "w") as file:
    json.dump([*facts, size, total.item(), *point, chosen.main_address, chosen.main_port], file)
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for variable in (*LAUNCHER_VARIABLES, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)


def mpirun(folder):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, str(script), str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / str(rank)).read_text()) for rank in range(2)]


def test_nothing_is_detected_or_imported_without_a_launcher(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # an import would fail

    assert not MPIEnvironment.detect()


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_one_process_of_mpi_is_nothing_special(monkeypatch, variable):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv(variable, "1")

    assert not MPIEnvironment.detect()


def test_processes_that_cannot_find_each_other_warn(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")

    with pytest.warns(UserWarning, match=r"started 4 processes, but .* pip install 'fulmen\[mpi\]'"):
        assert not MPIEnvironment.detect()


def test_without_mpi4py_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)

    with pytest.raises(ModuleNotFoundError, match=r"`MPIEnvironment` needs .* pip install 'fulmen\[mpi\]'"):
        MPIEnvironment()


@needs_mpi
@pytest.mark.distributed
def test_processes_of_mpirun_find_each_other(tmp_path):
    first, second = mpirun(tmp_path)

    assert first[:7] == [True, True, 0, 0, 0, 2, 2.0]
    assert second[:7] == [True, True, 1, 1, 0, 2, 2.0]
    assert first[7] == second[7] == "127.0.0.1"
    assert first[8] == second[8] > 0
    assert first[9:] == second[9:] == ["localhost", 77]  # a chosen meeting point wins
