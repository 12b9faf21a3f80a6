"""The least strategy that a launcher works with, over gloo."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.strategies.launchers import ExternalLauncher, Launcher, SubprocessScriptLauncher


class StandIn:
    """Two processes on one machine."""

    def __init__(self, num_processes: int = 2, grace_s: float = 3.0) -> None:
        self.cluster_environment: ClusterEnvironment | None = LightningEnvironment()
        self.num_processes = num_processes
        self.num_nodes = 1
        self.node_rank = 0
        self.rank = int(os.environ.get("LOCAL_RANK", 0))
        self.grace_s = grace_s
        self.fault_watch: FaultWatch | None = None
        self.model: Any = None

    @property
    def launcher(self) -> Launcher:
        assert self.cluster_environment is not None
        if self.cluster_environment.creates_processes_externally:
            return ExternalLauncher(self)
        return SubprocessScriptLauncher(self)

    def set_local_rank(self, local_rank: int) -> None:
        self.rank = local_rank

    def setup_environment(self) -> None:
        assert self.cluster_environment is not None
        torch.set_num_threads(1)
        address, port = self.cluster_environment.main_address, self.cluster_environment.main_port
        self.fault_watch = FaultWatch(
            address=address, port=port, rank=self.rank, world_size=self.num_processes, grace_s=self.grace_s
        )
        self.fault_watch.start()
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=self.rank, world_size=self.num_processes, timeout=timedelta(seconds=300))
