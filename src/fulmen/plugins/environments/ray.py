"""Workers of Ray Train."""

from __future__ import annotations

import os
import sys
from typing import Any

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment
from fulmen.utilities.lazy import require

__all__ = ["RayEnvironment"]


class RayEnvironment(ExternalEnvironment):
    """A worker of Ray Train's `TorchTrainer`, which made all processes and joined them to a process group.

    Ranks and sizes are those of `ray.train.get_context()`.

    Example::

        def train_one_worker() -> None:
            Trainer(strategy="ddp").fit(model, loader)

        ray.train.torch.TorchTrainer(train_one_worker, scaling_config=ScalingConfig(num_workers=4)).fit()
    """

    launcher_name = "Ray Train"
    remedy = "start {total} workers: `ScalingConfig(num_workers={total})`"

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, which Ray sets; else this machine: the process group is there already."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, which Ray sets; else 0: the process group is there already."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Tell whether this process is a worker of Ray Train: it has a context with ranks."""
        train = sys.modules.get("ray.train")  # a worker has imported it
        if train is None:
            return False
        try:
            return train.get_context().get_world_size() is not None
        except Exception:  # of several kinds, depending on the version: there is no context
            return False

    def world_size(self) -> int:
        """Return the number of workers."""
        return int(_context().get_world_size())

    def global_rank(self) -> int:
        """Return the number of this worker among all."""
        return int(_context().get_world_rank())

    def local_rank(self) -> int:
        """Return the number of this worker on its machine."""
        return int(_context().get_local_rank())

    def node_rank(self) -> int:
        """Return the number of this machine among those with workers."""
        return int(_context().get_node_rank())

    @property
    def workers_of_machine(self) -> int:
        """Number of workers on this machine."""
        return int(_context().get_local_world_size())


def _context() -> Any:
    return require("ray.train", extra="ray", for_="RayEnvironment").get_context()
