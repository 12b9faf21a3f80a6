"""Processes started by `mpirun` or another launcher of MPI."""

from __future__ import annotations

import os
import socket
from typing import Any

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment
from fulmen.plugins.environments.local import find_free_network_port
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["MPIEnvironment"]

# Set by Open MPI and Spectrum MPI; by MPICH, Intel MPI and Microsoft MPI; by MVAPICH2.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class MPIEnvironment(ExternalEnvironment):
    """One process per device, started as `mpirun -n 4 python train.py`; needs the package `mpi4py`.

    MPI numbers the processes and tells them where to meet; they compute together by torch's own backends. Making this
    object is collective: all processes must do so.

    Raises:
        ModuleNotFoundError: The package `mpi4py` is not installed.
    """

    launcher_name = "mpirun"
    remedy = "start the program with `mpirun -n {total} --map-by ppr:{devices}:node`"

    def __init__(self) -> None:
        communicator = _world()
        self._rank: int = communicator.Get_rank()
        hosts: list[str] = communicator.allgather(socket.gethostname())
        self._world_size = len(hosts)
        self._local_rank = hosts[: self._rank].count(hosts[self._rank])
        self._node_rank = list(dict.fromkeys(hosts)).index(hosts[self._rank])
        meeting_point = _meeting_point(hosts) if self._rank == 0 else None
        self._main_address, self._main_port = communicator.bcast(meeting_point, root=0)

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR` of rank 0, else its host; 127.0.0.1 if all processes are on one."""
        address: str = self._main_address
        return address

    @property
    def main_port(self) -> int:
        """`MASTER_PORT` of rank 0, else a port that is free there."""
        port: int = self._main_port
        return port

    @staticmethod
    def detect() -> bool:
        """Tell whether MPI started several processes; `mpi4py` is imported only if variables of a launcher are set."""
        sizes = [int(os.environ[name]) for name in _SIZE_VARIABLES if os.environ.get(name, "").isdecimal()]
        # PMIX_RANK alone: a launcher of which only MPI knows the number of processes
        if max(sizes, default=2 if "PMIX_RANK" in os.environ else 1) < 2:
            return False
        if is_installed("mpi4py"):
            return bool(_world().Get_size() > 1)
        if sizes:
            rank_zero_warn(
                f"An MPI launcher started {max(sizes)} processes, but the package `mpi4py` is not installed, so they"
                " do not know of each other and each of them does the whole run by itself."
                " Install it: pip install 'fulmen[mpi]'."
            )
        return False

    def world_size(self) -> int:
        """Return the size of MPI's world."""
        return self._world_size

    def global_rank(self) -> int:
        """Return the rank in MPI's world."""
        return self._rank

    def local_rank(self) -> int:
        """Return the place among the processes of this host, in the order of their ranks."""
        return self._local_rank

    def node_rank(self) -> int:
        """Return the place of this host, in the order of the lowest rank on each."""
        return self._node_rank


def _world() -> Any:
    return require("mpi4py.MPI", extra="mpi", for_="MPIEnvironment").COMM_WORLD


def _meeting_point(hosts: list[str]) -> tuple[str, int]:
    # A host's name need not resolve on the host itself, e.g. in a container; the loopback address always works there.
    here = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
    port = int(os.environ.get("MASTER_PORT", 0)) or find_free_network_port()
    return os.environ.get("MASTER_ADDR") or here, port
