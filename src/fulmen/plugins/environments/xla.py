"""Processes of PyTorch/XLA."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.utilities.lazy import is_installed, require

__all__ = ["XLAEnvironment"]


class XLAEnvironment(ClusterEnvironment):
    """What the runtime of `torch_xla` says of its processes; chosen by the strategies for XLA.

    Asking for a rank or the size starts the runtime in this process, after which no workers can be forked from it.

    Args:
        args: For the next class, where this one is mixed with another.
        kwargs: Likewise.

    Raises:
        ModuleNotFoundError: The package `torch_xla` is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require("torch_xla", extra="xla", for_="XLAEnvironment")
        super().__init__(*args, **kwargs)

    @property
    def creates_processes_externally(self) -> bool:
        """False: the launcher for XLA starts one process per device of this machine."""
        return False

    @property
    def main_address(self) -> str:
        """Not known here.

        Raises:
            NotImplementedError: Always: the runtime brings its processes together by itself.
        """
        raise NotImplementedError(_NO_MEETING_POINT.format("main_address"))

    @property
    def main_port(self) -> int:
        """Not known here.

        Raises:
            NotImplementedError: Always: the runtime brings its processes together by itself.
        """
        raise NotImplementedError(_NO_MEETING_POINT.format("main_port"))

    @staticmethod
    def detect() -> bool:
        """Tell whether `torch_xla` is installed and this machine has TPUs."""
        if not is_installed("torch_xla"):
            return False
        tpu = require("torch_xla._internal.tpu", extra="xla", for_="XLAEnvironment")
        return bool(tpu.num_available_chips() > 0)

    def world_size(self) -> int:
        """Return the number of processes on all machines."""
        size: int = _runtime().world_size()
        return size

    def set_world_size(self, size: int) -> None:
        """Change nothing: the runtime decides.

        Args:
            size: Not looked at.
        """

    def global_rank(self) -> int:
        """Return the ordinal of this process among all."""
        rank: int = _runtime().global_ordinal()
        return rank

    def set_global_rank(self, rank: int) -> None:
        """Change nothing: the runtime decides.

        Args:
            rank: Not looked at.
        """

    def local_rank(self) -> int:
        """Return the ordinal of this process on its machine."""
        rank: int = _runtime().local_ordinal()
        return rank

    def node_rank(self) -> int:
        """Return the number of this machine."""
        rank: int = _runtime().host_index()
        return rank


_NO_MEETING_POINT = (
    "`XLAEnvironment.{}` does not exist: the processes of torch_xla find each other by its own runtime (PJRT), not by"
    " an address and a port. Use a strategy for XLA, which does not ask for them."
)


def _runtime() -> ModuleType:
    return require("torch_xla.runtime", extra="xla", for_="XLAEnvironment")
