"""Launchers as `lightning.pytorch.strategies.launchers` has them, for strategies that make one of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fulmen.compat.other_name import OtherName
from fulmen.strategies.launchers import multiprocessing, subprocess_script, xla
from fulmen.trainer.carrier import TrainerCarrier

if TYPE_CHECKING:
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.strategies.launchers.launcher import Carrier
    from fulmen.trainer.trainer import Trainer

__all__ = ["MultiProcessingLauncher", "SubprocessScriptLauncher", "XLALauncher"]


class _Processes:
    """What a launcher asks of a strategy, without one."""

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        self.cluster_environment: ClusterEnvironment | None = cluster_environment
        self.num_processes = num_processes
        self.num_nodes = num_nodes

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        assert self.cluster_environment is not None  # noqa: S101 - the constructor takes no `None`
        return self.cluster_environment.node_rank()


class SubprocessScriptLauncher(subprocess_script.SubprocessScriptLauncher, metaclass=OtherName):
    """As `fulmen.strategies.launchers.SubprocessScriptLauncher`, for processes instead of a strategy.

    Args:
        cluster_environment: Knows the ranks and where they meet.
        num_processes: Processes on this machine.
        num_nodes: Machines.
    """

    is_other_name = True

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        super().__init__(_Processes(cluster_environment, num_processes, num_nodes))
        self.cluster_environment = cluster_environment
        self.num_processes = num_processes
        self.num_nodes = num_nodes

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: Trainer | None = None,
        carrier: Carrier | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a function in all processes, of which this one is the first of its machine.

        Args:
            function: What to run.
            args: Its arguments.
            trainer: The Trainer; its state is in this process already.
            carrier: Likewise.
            kwargs: Arguments of the function.
        """
        return super().launch(function, *args, **kwargs)


class _WithTrainer:
    """Asks a launcher to bring back the state of a Trainer."""

    def __init__(self, launcher: MultiProcessingLauncher, trainer: Trainer) -> None:
        self._launcher = launcher
        self._trainer = trainer

    def pack(self) -> Any:
        """Return the state, in the process of rank 0."""
        return self._launcher.get_extra_results(self._trainer)

    def unpack(self, payload: Any) -> None:
        """Take the state, in the launching process."""
        self._launcher.update_main_process_results(self._trainer, payload)


class MultiProcessingLauncher(multiprocessing.MultiProcessingLauncher, metaclass=OtherName):
    """As `fulmen.strategies.launchers.MultiProcessingLauncher`, with hooks for what comes back.

    Args:
        strategy: The strategy; in each process it becomes that of the process.
        start_method: "spawn", "fork" or "forkserver".
    """

    is_other_name = True

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: Trainer | None = None,
        carrier: Carrier | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a function in new processes.

        Args:
            function: What to run.
            args: Its arguments.
            trainer: The Trainer whose state comes back.
            carrier: Brings back something else, without a Trainer.
            kwargs: Arguments of the function.

        Returns:
            What the function returned on rank 0.
        """
        if trainer is not None:
            carrier = _WithTrainer(self, trainer)
        return super().launch(function, *args, carrier=carrier, **kwargs)

    def get_extra_results(self, trainer: Trainer) -> dict[str, Any]:
        """Return, in the process of rank 0, what is to go back; to override.

        Args:
            trainer: The Trainer there.
        """
        return TrainerCarrier(trainer, trainer.lightning_module).pack()

    def update_main_process_results(self, trainer: Trainer, extra: dict[str, Any]) -> None:
        """Take, in the launching process, what `get_extra_results` returned.

        Args:
            trainer: The Trainer here.
            extra: What came back.
        """
        TrainerCarrier(trainer, trainer.lightning_module).unpack(extra)


class XLALauncher(MultiProcessingLauncher, xla.XLALauncher):
    """As `fulmen.strategies.launchers.XLALauncher`, with hooks for what comes back.

    Args:
        strategy: The strategy.
    """

    is_other_name = True
