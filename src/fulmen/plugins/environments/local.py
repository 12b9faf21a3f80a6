"""Processes on one machine, or started by hand on several."""

from __future__ import annotations

import os
import socket

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.utilities.rank_zero import rank_zero_only

__all__ = ["LightningEnvironment", "find_free_network_port"]


class LightningEnvironment(ClusterEnvironment):
    """The default: one process, which starts others if more are needed.

    On several machines the user starts one process on each, with the environment variables `MASTER_ADDR`,
    `MASTER_PORT` and `NODE_RANK`; who also sets `LOCAL_RANK` starts all processes without the framework.
    """

    def __init__(self) -> None:
        self._main_port: int | None = None
        self._global_rank = 0
        self._world_size = 1
        self._num_nodes = 1

    @property
    def creates_processes_externally(self) -> bool:
        """Whether `LOCAL_RANK` is set: then each process was started from outside."""
        return "LOCAL_RANK" in os.environ

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, else this machine.

        Raises:
            RuntimeError: The run is on several machines, and the variable is not set.
        """
        self._require_on_several_machines("MASTER_ADDR", meaning="the address of the machine with `NODE_RANK=0`")
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, else a free port, the same at every call.

        Raises:
            RuntimeError: The run is on several machines, and the variable is not set.
        """
        if self._main_port is None:
            if "STANDALONE_PORT" not in os.environ:
                self._require_on_several_machines("MASTER_PORT", meaning="a free port on that with `NODE_RANK=0`")
            self._main_port = int(os.environ.get("MASTER_PORT", 0)) or find_free_network_port()
        return self._main_port

    @staticmethod
    def detect() -> bool:
        """Return True: it fits everywhere."""
        return True

    def world_size(self) -> int:
        """Return the number that was noted, at first 1."""
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """Note the number of processes."""
        self._world_size = size

    def global_rank(self) -> int:
        """Return the number that was noted, at first 0."""
        return self._global_rank

    def set_global_rank(self, rank: int) -> None:
        """Note the number of this process, here and for the `rank_zero_*` functions."""
        self._global_rank = rank
        rank_zero_only.rank = rank

    def local_rank(self) -> int:
        """Return `LOCAL_RANK`, else 0."""
        return int(os.environ.get("LOCAL_RANK", 0))

    def node_rank(self) -> int:
        """Return `NODE_RANK`, else `GROUP_RANK`, else 0."""
        return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Note the number of machines; what several need is checked when the processes look for each other.

        Args:
            num_devices: Devices per machine, as given to the Trainer.
            num_nodes: Machines, as given to the Trainer.
        """
        self._num_nodes = num_nodes

    def teardown(self) -> None:
        """Remove `WORLD_SIZE`, which the processes of this run had in common."""
        os.environ.pop("WORLD_SIZE", None)

    def _require_on_several_machines(self, variable: str, *, meaning: str) -> None:
        if self._num_nodes > 1 and not os.environ.get(variable):
            raise RuntimeError(
                f"`num_nodes={self._num_nodes}` without the environment variable `{variable}`: the machines cannot"
                f" find each other. Start the program on each of them with `{variable}` ({meaning}), `MASTER_ADDR`,"
                " `MASTER_PORT` and its own `NODE_RANK`, or start it through torchrun or a cluster's launcher."
            )


def find_free_network_port() -> int:
    """Return a port that is free now; `STANDALONE_PORT` if that variable is set."""
    if "STANDALONE_PORT" in os.environ:
        return int(os.environ["STANDALONE_PORT"])
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
