"""What the framework asks the system that started its processes."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod

__all__ = ["ClusterEnvironment", "ExternalEnvironment", "environment_text"]

log = logging.getLogger(__name__)


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


class ExternalEnvironment(ClusterEnvironment):
    """Base of environments whose launcher made all processes and numbered them."""

    launcher_name: str
    """What the user started the processes with, for messages, e.g. "torchrun"."""

    remedy: str
    """How to start as many processes as the settings ask for; `{devices}`, `{nodes}` and `{total}` are filled in."""

    @property
    def creates_processes_externally(self) -> bool:
        """True: every process is there already."""
        return True

    def set_world_size(self, size: int) -> None:
        """Change nothing: the launcher decided.

        Args:
            size: Noted in the debug log only.
        """
        log.debug("%s.set_world_size(%s) has no effect: %s decided", type(self).__name__, size, self.launcher_name)

    def set_global_rank(self, rank: int) -> None:
        """Change nothing: the launcher decided.

        Args:
            rank: Noted in the debug log only.
        """
        log.debug("%s.set_global_rank(%s) has no effect: %s decided", type(self).__name__, rank, self.launcher_name)

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Check that as many processes run as the settings ask for.

        Args:
            num_devices: Devices per machine, as given to the Trainer.
            num_nodes: Machines, as given to the Trainer.

        Raises:
            ValueError: They do not.
        """
        world_size = self.world_size()
        if num_devices * num_nodes != world_size:
            total = num_devices * num_nodes
            remedy = self.remedy.format(devices=num_devices, nodes=num_nodes, total=total)
            raise ValueError(
                f"`devices={num_devices}` times `num_nodes={num_nodes}` does not match the world size ({world_size}),"
                f" the number of processes that {self.launcher_name} started: each process drives one device."
                f" Change `devices` and `num_nodes`, or {remedy}."
            )


def environment_text(name: str, *, for_: str, set_by: str) -> str:
    """Return the text of an environment variable that must be there.

    Args:
        name: The variable.
        for_: The class that needs it.
        set_by: What sets it normally, as the end of "It is set by ...".

    Raises:
        RuntimeError: It is absent or empty.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        raise RuntimeError(
            f"`{for_}` needs the environment variable `{name}`, which is not set in this process."
            f" It is set by {set_by}. Start the program that way, or choose another environment by `plugins=`."
        )
    return text
