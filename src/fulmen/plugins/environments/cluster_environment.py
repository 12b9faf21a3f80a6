"""What the framework asks the system that started its processes."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["ClusterEnvironment"]


class ClusterEnvironment(ABC):
    """How many processes there are, which one this is, and where they meet.

    Subclass it for a launcher that is not known here, and pass it as a plugin.
    """

    @property
    @abstractmethod
    def creates_processes_externally(self) -> bool:
        """Whether all processes exist already; otherwise the framework starts the missing ones."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Host name or address of rank 0."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """A port on that host that is free."""

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Tell whether this process runs in such an environment."""

    @abstractmethod
    def world_size(self) -> int:
        """Return the number of processes on all machines."""

    @abstractmethod
    def set_world_size(self, size: int) -> None:
        """Note the number of processes, if the environment does not dictate it."""

    @abstractmethod
    def global_rank(self) -> int:
        """Return the number of this process among all."""

    @abstractmethod
    def set_global_rank(self, rank: int) -> None:
        """Note the number of this process among all, if the environment does not dictate it."""

    @abstractmethod
    def local_rank(self) -> int:
        """Return the number of this process on its machine."""

    @abstractmethod
    def node_rank(self) -> int:
        """Return the number of this machine."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:  # noqa: B027 - a documented no-op
        """Compare the user's settings with what the environment dictates.

        Args:
            num_devices: Devices per machine, as given to the Trainer.
            num_nodes: Machines, as given to the Trainer.

        Raises:
            ValueError: They contradict each other; here they never do.
        """

    def teardown(self) -> None:  # noqa: B027 - a documented no-op
        """Undo at the end of a run what was changed for it."""
