"""What begins with `_` in Lightning and is read by published packages all the same.

`ON_TRAINER` lists the attributes of the Trainer, with who reads them; `attach` adds them to the class, only in programs
that run through `fulmen.compat`. They give access to public things and hold nothing of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.checkpoint.contents import dump_checkpoint
from fulmen.engine.resolve import resolve_strategy
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.trainer.trainer import Trainer
from fulmen.trainer.view import TrainerView

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.strategies.strategy import Strategy

__all__ = ["ON_TRAINER", "AcceleratorConnector", "attach"]


class AcceleratorConnector:
    """The hardware that arguments select, as `trainer._accelerator_connector` and by itself (scvi-tools).

    Args:
        devices: As of the Trainer.
        num_nodes: As of the Trainer.
        accelerator: As of the Trainer.
        strategy: As of the Trainer.
        plugins: As of the Trainer.
        precision: As of the Trainer.
        sync_batchnorm: As of the Trainer.
        use_distributed_sampler: As of the Trainer.
    """

    def __init__(
        self,
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        plugins: Any | list[Any] | None = None,
        precision: Any | None = None,
        sync_batchnorm: bool = False,
        use_distributed_sampler: bool = True,
    ) -> None:
        self.use_distributed_sampler = use_distributed_sampler
        self.strategy = resolve_strategy(
            accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=num_nodes, precision=precision,
            plugins=plugins, sync_batchnorm=sync_batchnorm,
        )  # fmt: skip

    @classmethod
    def of(cls, trainer: TrainerView) -> AcceleratorConnector:
        """Return what a Trainer has selected.

        Args:
            trainer: The Trainer.
        """
        connector = cls.__new__(cls)
        connector.strategy = trainer.strategy
        connector.use_distributed_sampler = getattr(trainer, "use_distributed_sampler", True)
        return connector

    @property
    def is_distributed(self) -> bool:
        """Whether several processes run."""
        return self.strategy.world_size > 1

    @property
    def accelerator(self) -> Accelerator | None:
        """The kind of hardware."""
        return self.strategy.accelerator

    @property
    def precision_plugin(self) -> Precision:
        """The number format."""
        return self.strategy.precision_plugin

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes checkpoints."""
        return self.strategy.checkpoint_io

    @property
    def cluster_environment(self) -> ClusterEnvironment | None:
        """What knows the ranks; None with one process."""
        return getattr(self.strategy, "cluster_environment", None)

    @property
    def _accelerator_flag(self) -> str:
        return "" if self.accelerator is None else self.accelerator.name()

    @property
    def _devices_flag(self) -> list[int] | int:
        devices = self.strategy.parallel_devices or [self.strategy.root_device]
        if any(device.index is None for device in devices):
            return len(devices)
        return [device.index for device in devices]


class _CheckpointConnector:
    """Makes the content of a checkpoint without writing it."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def dump_checkpoint(self, weights_only: bool | None = None) -> dict[str, Any]:
        """Return what `trainer.save_checkpoint` writes."""
        return dump_checkpoint(self._trainer, bool(weights_only))


ON_TRAINER: dict[str, tuple[Any, str]] = {
    "_accelerator_connector": (AcceleratorConnector.of, "optuna-integration asks it for `is_distributed`"),
    "_checkpoint_connector": (_CheckpointConnector, "mlflow's autologger calls `dump_checkpoint`"),
}


def attach() -> None:
    """Add the attributes to the Trainer; those that it has stay as they are."""
    for name, (make, _) in ON_TRAINER.items():
        if not hasattr(Trainer, name):
            setattr(Trainer, name, property(make))
