"""One process, several GPUs, by copies of the module in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from fulmen.strategies.parallel import ParallelStrategy
from fulmen.utilities.distributed import is_mean
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["DataParallelStrategy"]

T = TypeVar("T")


class DataParallelStrategy(ParallelStrategy):
    """`torch.nn.DataParallel`: each batch is cut into one piece per GPU, outputs are put together on the first.

    Only for Fabric. There is one process, so nothing is launched and nobody communicates. `DDPStrategy` is faster, also
    on one machine.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
    """

    strategy_name = "dp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its name.

        Args:
            strategy_registry: Where to enter it.
        """
        strategy_registry.register(cls.strategy_name, cls, description=cls.__name__)

    # ---- where: one process

    @property
    def root_device(self) -> torch.device:
        """The first device, where the module is and where outputs are put together.

        Raises:
            RuntimeError: The devices are not known yet.
        """
        if not self._parallel_devices:
            raise RuntimeError(
                "`DataParallelStrategy` has no devices yet. Pass it to `Fabric`, which chooses them, or set its"
                " `parallel_devices`."
            )
        return self._parallel_devices[0]

    @property
    def num_processes(self) -> int:
        """One, however many devices there are."""
        return 1

    def set_world_ranks(self) -> None:
        """Change nothing: there is one process."""

    def setup_distributed(self) -> None:
        """Change nothing: there are no others to join."""

    # ---- prepare

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Wrap a module.

        Args:
            module: The module, on the first device.

        Returns:
            The module in `DataParallel`.
        """
        return DataParallel(module, device_ids=self._parallel_devices)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Leave a batch where it is: its pieces are moved when the module is called.

        Args:
            batch: The batch.
            device: Not used.
            dataloader_idx: Not used.
        """
        return batch

    # ---- talk: with nobody

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Average what the copies of the module returned, which `DataParallel` has put together.

        Args:
            tensor: Outputs: tensors, nested in collections.
            group: Not used.
            reduce_op: "mean"; other operators leave the outputs as they are.

        Returns:
            The same structure with one number for each tensor.
        """
        return apply_to_collection(tensor, Tensor, _mean) if is_mean(reduce_op) else tensor

    def all_gather(self, tensor: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Return the value: there is one process.

        Args:
            tensor: The value.
            group: Not used.
            sync_grads: Not used.
        """
        return tensor

    def gather_objects(self, obj: T) -> list[T]:
        """Return the object in a list: there is one process.

        Args:
            obj: The object.
        """
        return [obj]

    def agree(self, values: list[int], op: Literal["max", "min", "sum"] = "max") -> list[int]:
        """Return the integers: there is one process.

        Args:
            values: The integers.
            op: Not used.
        """
        return values


def _mean(tensor: Tensor) -> Tensor:
    return tensor.float().mean() if not tensor.is_floating_point() else tensor.mean()
