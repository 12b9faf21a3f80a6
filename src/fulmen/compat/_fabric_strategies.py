"""Strategies as `lightning.fabric.strategies` has them: other names of arguments, `precision` for the number format.

A strategy that was chosen by its name is an instance of these classes, too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from fulmen.compat.other_name import OtherName
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies import data_parallel, ddp, parallel, single_device, single_xla, strategy, xla
from fulmen.strategies.process_group import DEFAULT_TIMEOUT
from fulmen.utilities.types import _PATH

if TYPE_CHECKING:
    import torch

    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO

__all__ = [
    "DDPStrategy",
    "DataParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "Strategy",
    "XLAStrategy",
]

_Filter = dict[str, Callable[[str, Any], bool]]


class _AsInFabric(strategy.Strategy):
    """The methods whose arguments differ in Fabric's strategies.

    The engine calls its own: those end in these, so that a subclass of the user can override either.
    """

    @property
    def precision(self) -> Precision:
        """The number format, another name of `precision_plugin`."""
        return self.precision_plugin

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.precision_plugin = precision

    def run_backward(self, tensor: Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Compute gradients; see `backward`."""
        self.backward(tensor, module, *args, **kwargs)

    def backward(self, tensor: Tensor, module: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # as in Fabric
        """Compute gradients.

        Args:
            tensor: The loss, scaled if the precision scales.
            module: The user's module.
            args: Further arguments of `Tensor.backward`.
            kwargs: Likewise.
        """
        super().run_backward(tensor, module, *args, **kwargs)

    def clip_gradients_norm(
        self,
        module: Any,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """As `fulmen.strategies.Strategy.clip_gradients_norm`; here a norm that is not finite is an error."""
        return super().clip_gradients_norm(module, optimizer, max_norm, norm_type, error_if_nonfinite)

    def save_state(
        self, path: _PATH, state: dict[str, Any], storage_options: Any | None = None, filter: _Filter | None = None
    ) -> None:
        """Save modules, optimizers and plain values; see `save_checkpoint`."""
        self.save_checkpoint(path, state, storage_options, filter)

    def save_checkpoint(  # type: ignore[override]  # as in Fabric
        self, path: _PATH, state: dict[str, Any], storage_options: Any | None = None, filter: _Filter | None = None
    ) -> None:
        """Save modules, optimizers and plain values in one checkpoint.

        Args:
            path: Where to.
            state: Name to module, optimizer, anything with `state_dict`, or plain value.
            storage_options: For the `CheckpointIO`.
            filter: For some of the names, which entries of its state_dict to save: called with key and value.
        """
        saved = {name: self._state_of(value) for name, value in state.items()}
        for name, keep in (filter or {}).items():
            saved[name] = {key: item for key, item in saved[name].items() if keep(key, item)}
        super().save_checkpoint(saved, path, storage_options)

    def load_state(
        self, path: _PATH, state: dict[str, Any] | None = None, strict: bool = True, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; see `load_checkpoint`."""
        return self.load_checkpoint(path, state, strict, weights_only)

    def load_checkpoint(  # type: ignore[override]  # as in Fabric
        self, path: _PATH, state: dict[str, Any] | None = None, strict: bool = True, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint back into the objects it was saved from.

        Args:
            path: Where from.
            state: Name to object, restored in place, or to plain value, replaced in this dict. `None`: nothing.
            strict: Each name of `state`, and each weight of a module, must be in the checkpoint.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to the `CheckpointIO`.

        Returns:
            The rest of the checkpoint, under names that `state` has not.
        """
        if state is None:
            return super().load_checkpoint(path, weights_only)
        return super().load_state(path, state, strict, weights_only)


class Strategy(_AsInFabric, strategy.Strategy, metaclass=OtherName):
    """As `fulmen.strategies.Strategy`.

    Args:
        accelerator: The kind of hardware.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, checkpoint_io, precision)


class ParallelStrategy(_AsInFabric, parallel.ParallelStrategy, metaclass=OtherName):
    """As `fulmen.strategies.ParallelStrategy`.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, parallel_devices, cluster_environment, checkpoint_io, precision)


class SingleDeviceStrategy(_AsInFabric, single_device.SingleDeviceStrategy, metaclass=OtherName):
    """As `fulmen.strategies.SingleDeviceStrategy`.

    Args:
        device: The device.
        accelerator: The kind of hardware.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
    """

    is_other_name = True

    def __init__(
        self,
        device: torch.device | str | int = "cpu",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(device, accelerator, checkpoint_io, precision)


class DDPStrategy(_AsInFabric, ddp.DDPStrategy, metaclass=OtherName):
    """As `fulmen.strategies.DDPStrategy`.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
        process_group_backend: What moves the tensors.
        timeout: How long a process waits for the others.
        start_method: How processes are started.
        kwargs: Further arguments of `DistributedDataParallel`.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
            **kwargs,
        )


class DataParallelStrategy(_AsInFabric, data_parallel.DataParallelStrategy, metaclass=OtherName):
    """As `fulmen.strategies.DataParallelStrategy`.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(accelerator, parallel_devices, checkpoint_io, precision)

    def all_reduce(self, collection: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """As `fulmen.strategies.DataParallelStrategy.all_reduce`."""
        return super().all_reduce(collection, group, reduce_op)


class XLAStrategy(_AsInFabric, xla.XLAStrategy, metaclass=OtherName):
    """As `fulmen.strategies.XLAStrategy`.

    Args:
        accelerator: The kind of hardware.
        parallel_devices: The devices of this machine, one per process.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
        sync_module_states: Send the weights from rank 0 to all before training.
    """

    is_other_name = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
        sync_module_states: bool = True,
    ) -> None:
        super().__init__(accelerator, parallel_devices, checkpoint_io, precision, sync_module_states=sync_module_states)

    def all_reduce(self, output: Any, group: Any | None = None, reduce_op: Any = None) -> Any:
        """As `fulmen.strategies.XLAStrategy.all_reduce`, with the sum as the default."""
        return super().all_reduce(output, group, "sum" if reduce_op is None else reduce_op)


class SingleDeviceXLAStrategy(_AsInFabric, single_xla.SingleDeviceXLAStrategy, metaclass=OtherName):
    """As `fulmen.strategies.SingleDeviceXLAStrategy`.

    Args:
        device: The device, or its index.
        accelerator: The kind of hardware.
        checkpoint_io: Writes and reads checkpoints.
        precision: The number format.
    """

    is_other_name = True

    def __init__(
        self,
        device: torch.device | str | int,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(device, accelerator, checkpoint_io, precision)
