"""Processes started by `jsrun` in a job of IBM's LSF."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment

__all__ = ["LSFEnvironment"]

_VARIABLES = ("LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
_FIRST_PORT, _NUM_PORTS = 10000, 1000


class LSFEnvironment(ExternalEnvironment):
    """One task per device, e.g. `jsrun --nrs 2 --tasks_per_rs 4 --gpu_per_rs 4 ...` for two machines with four GPUs.

    The machines are read from the file `LSB_DJOB_RANKFILE`, whose first line is the machine that the job was
    launched on; no task runs there.

    Raises:
        ValueError: It is no LSF job, or this machine has no part in it.
    """

    launcher_name = "jsrun"
    remedy = "start {devices} tasks on each of {nodes} machines by the options of `jsrun`"

    def __init__(self) -> None:
        missing = [name for name in ("LSB_DJOB_RANKFILE", "LSB_JOBID") if not os.environ.get(name)]
        if missing:
            raise ValueError(
                f"`LSFEnvironment` did not find the environment variable `{missing[0]}`, which LSF sets in each job."
                " Start the program in a job, by `bsub` and `jsrun`, or choose another environment by `plugins=`."
            )
        self._hosts = _hosts_of_job()
        self._node_rank = self._place_of(socket.gethostname())

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, else the first machine of the job that tasks run on."""
        return os.environ.get("MASTER_ADDR") or self._hosts[0]

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, else a port that follows from the number of the job."""
        if "MASTER_PORT" in os.environ:
            return int(os.environ["MASTER_PORT"])
        return _FIRST_PORT + int(os.environ["LSB_JOBID"]) % _NUM_PORTS

    @staticmethod
    def detect() -> bool:
        """Tell whether `jsrun` started this process in an LSF job."""
        return all(name in os.environ for name in _VARIABLES)

    def world_size(self) -> int:
        """Return `JSM_NAMESPACE_SIZE`."""
        return _number("JSM_NAMESPACE_SIZE")

    def global_rank(self) -> int:
        """Return `JSM_NAMESPACE_RANK`."""
        return _number("JSM_NAMESPACE_RANK")

    def local_rank(self) -> int:
        """Return `JSM_NAMESPACE_LOCAL_RANK`."""
        return _number("JSM_NAMESPACE_LOCAL_RANK")

    def node_rank(self) -> int:
        """Return the place of this machine among those of the job."""
        return self._node_rank

    def _place_of(self, name: str) -> int:
        if name in self._hosts:
            return self._hosts.index(name)
        short = [host.partition(".")[0] for host in self._hosts]  # one side may have the domain, too
        if name.partition(".")[0] in short:
            return short.index(name.partition(".")[0])
        raise ValueError(
            f"`LSFEnvironment` runs on {name!r}, which is not among the machines of the job in"
            f" `LSB_DJOB_RANKFILE`: {', '.join(self._hosts)}. Start the program by `jsrun`, not on the machine that"
            " the job was launched on."
        )


def _hosts_of_job() -> list[str]:
    """The machines that tasks run on, each once, in the order of the file."""
    path = os.environ["LSB_DJOB_RANKFILE"]
    lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    hosts = list(dict.fromkeys(lines[1:]))
    if not hosts:
        raise ValueError(
            f"`LSB_DJOB_RANKFILE={path!r}` names no machine besides the one that the job was launched on: {lines}."
            " Ask for machines to compute on, e.g. `bsub -nnodes 2`."
        )
    return hosts


def _number(variable: str) -> int:
    text = os.environ.get(variable)
    if not text:
        raise ValueError(
            f"`LSFEnvironment` cannot tell which task this is: the environment variable `{variable}` is not set."
            " Start the program by `jsrun`."
        )
    return int(text)
