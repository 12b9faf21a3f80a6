"""Processes started by torchrun."""

from __future__ import annotations

import os

import torch.distributed

from fulmen.plugins.environments.cluster_environment import ExternalEnvironment, environment_text
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["TorchElasticEnvironment"]

_DEFAULT_ADDRESS = "127.0.0.1"
_DEFAULT_PORT = 12910


class TorchElasticEnvironment(ExternalEnvironment):
    """`torchrun` (torch.distributed.run), fault tolerant and elastic, on one or several machines."""

    launcher_name = "torchrun"
    remedy = "start the program with `torchrun --nnodes={nodes} --nproc-per-node={devices}`"

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`, else this machine, with a warning."""
        if "MASTER_ADDR" not in os.environ:
            _warn_of_default("MASTER_ADDR", _DEFAULT_ADDRESS)
        return os.environ.get("MASTER_ADDR", _DEFAULT_ADDRESS)

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`, else 12910, with a warning."""
        if "MASTER_PORT" not in os.environ:
            _warn_of_default("MASTER_PORT", _DEFAULT_PORT)
        return int(os.environ.get("MASTER_PORT", _DEFAULT_PORT))

    @staticmethod
    def detect() -> bool:
        """Tell whether torchrun started this process."""
        return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()

    def world_size(self) -> int:
        """Return `WORLD_SIZE`."""
        return _number("WORLD_SIZE")

    def global_rank(self) -> int:
        """Return `RANK`."""
        return _number("RANK")

    def local_rank(self) -> int:
        """Return `LOCAL_RANK`."""
        return _number("LOCAL_RANK")

    def node_rank(self) -> int:
        """Return `GROUP_RANK`, else 0."""
        return int(os.environ.get("GROUP_RANK", 0))


def _number(variable: str) -> int:
    return int(environment_text(variable, for_="TorchElasticEnvironment", set_by="`torchrun`"))


def _warn_of_default(variable: str, default: object) -> None:
    rank_zero_warn(
        f"The environment variable `{variable}` is not set; {default} is taken, which only fits processes of one"
        f" machine. Start the program through `torchrun`, or set `{variable}`."
    )
