"""Several processes on XLA devices, one each."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.plugins.environments.xla import XLAEnvironment
from fulmen.plugins.io.xla import XLACheckpointIO
from fulmen.plugins.precision.xla import XLAPrecision
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.launchers.launcher import Launcher
from fulmen.strategies.launchers.xla import XLALauncher
from fulmen.strategies.single_xla import DEBUG_VARIABLE, move_to_xla
from fulmen.utilities.distributed import is_mean
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.seed import reset_seed
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["XLAStrategy"]

T = TypeVar("T")

_LEAVES = (Tensor, bool, int, float)
_REDUCTIONS: dict[str, Callable[[list[int]], int]] = {"max": max, "min": min, "sum": sum}


class XLAStrategy(DDPStrategy):
    """Data parallel training with PyTorch/XLA. Needs the package `torch_xla`.

    Its runtime knows the processes and moves the tensors; the number format averages gradients at the optimizer's step.

    Args:
        accelerator: The kind of hardware; by default the TPU.
        parallel_devices: The devices of this machine, one per process.
        checkpoint_io: Writes and reads checkpoints; a `XLACheckpointIO` by default.
        precision_plugin: The number format; `XLAPrecision()` by default.
        debug: Let `torch_xla` print its metrics and debug reports.
        sync_module_states: Send the weights from rank 0 to all before training.
        _: Further arguments are not used.

    Raises:
        ModuleNotFoundError: `torch_xla` is not installed.
    """

    strategy_name = "xla"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        debug: bool = False,
        sync_module_states: bool = True,
        **_: Any,
    ) -> None:
        require("torch_xla", extra="xla", for_=type(self).__name__)
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=XLAEnvironment(),
            checkpoint_io=checkpoint_io or XLACheckpointIO(),
            precision_plugin=precision_plugin or XLAPrecision(),
            start_method="fork",
        )
        parts = {"checkpoint_io": checkpoint_io, "precision_plugin": precision_plugin}
        self._chosen -= {name for name, part in parts.items() if part is None}
        self.debug = debug
        self._sync_module_states = sync_module_states

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its names.

        Args:
            strategy_registry: Where to enter it.
        """
        strategy_registry.register(cls.strategy_name, cls, description=cls.__name__)
        strategy_registry.register("xla_debug", cls, description="XLA strategy with `debug=True`", debug=True)

    # ---- where

    @property
    def shares_buffers(self) -> bool:
        """False: here no process sends its buffers to the others."""
        return False

    @property
    def root_device(self) -> torch.device:
        """The device of this process.

        Raises:
            RuntimeError: The processes are not there yet; asking would start the runtime in this one.
        """
        if self._local_rank is None:
            self._raise_not_launched("root_device")
        device: torch.device = require("torch_xla", extra="xla", for_="XLAStrategy").device()
        return device

    def set_world_ranks(self) -> None:
        """Ask the runtime which process this is, in the processes that the launcher made."""
        if self._local_rank is not None:
            super().set_world_ranks()

    def _make_launcher(self) -> Launcher:
        return XLALauncher(self)

    def setup_environment(self) -> None:
        """Make the device of this process ready."""
        if self.debug:
            os.environ[DEBUG_VARIABLE] = "1"
        super().setup_environment()

    def setup_distributed(self) -> None:
        """Go on: the runtime has brought the processes together."""
        reset_seed()

    # ---- prepare

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device; weights that it uses in several places stay shared.

        Args:
            module: The module; moved in place.
        """
        move_to_xla(module, self.root_device)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Send the weights from rank 0 to all; nothing is wrapped.

        Args:
            module: The module, on its device.

        Returns:
            The module.
        """
        self.broadcast_module(module)
        return module

    def broadcast_module(self, module: nn.Module) -> None:
        """Overwrite parameters and buffers with those of rank 0, unless `sync_module_states` is False.

        Args:
            module: The module, on its device.
        """
        if self._sync_module_states and self.world_size > 1:
            _xla_model().broadcast_master_param(module)

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimizer: the number format averages the gradients.

        Args:
            optimizer: The optimizer.
        """
        return optimizer

    def process_dataloader(self, dataloader: Any) -> Any:
        """Let the runtime move the batches in the background.

        Args:
            dataloader: The loader.

        Returns:
            The loader to iterate.

        Raises:
            MisconfigurationException: It is not a `DataLoader`, or has no length.
        """
        parallel_loader = require("torch_xla.distributed.parallel_loader", extra="xla", for_="XLAStrategy")
        if isinstance(dataloader, parallel_loader.MpDeviceLoader):
            return dataloader
        if not isinstance(dataloader, DataLoader):
            raise MisconfigurationException(
                f"XLA devices are fed from a `DataLoader`, but this is a `{type(dataloader).__name__}`."
                " Return one, also for several sources of data: put them into one dataset."
            )
        loader = parallel_loader.MpDeviceLoader(dataloader, self.root_device)
        loader.dataset, loader.batch_sampler = dataloader.dataset, dataloader.batch_sampler  # as a DataLoader has them
        return loader

    # ---- step

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context that does nothing: gradients are averaged at the optimizer's step only.

        Args:
            module: The module.
            enabled: Not used.
        """
        return nullcontext()

    # ---- talk

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce a value over all processes.

        Args:
            tensor: A tensor, a number, or a collection of them.
            group: Not used.
            reduce_op: "mean" or "sum".

        Returns:
            The same structure with reduced tensors.

        Raises:
            ValueError: Another operator is given.
        """
        is_sum = isinstance(reduce_op, str) and reduce_op.lower() == "sum"
        if not is_mean(reduce_op) and not is_sum and reduce_op != torch.distributed.ReduceOp.SUM:
            raise ValueError(f"`reduce_op={reduce_op!r}` is not possible on XLA devices. Choose 'mean' or 'sum'.")
        xla_model = self._runtime("all_reduce")
        scale = 1.0 / self.world_size if is_mean(reduce_op) else 1.0

        def reduce_one(value: Any) -> Any:
            value = self._on_device(value)
            if scale != 1.0 and not value.is_floating_point():
                value = value.float()
            return xla_model.all_reduce(xla_model.REDUCE_SUM, value, scale=scale)

        return apply_to_collection(tensor, _LEAVES, reduce_one)

    def reduce(self, output: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce a value over all processes; see `all_reduce`.

        Args:
            output: The value of this process.
            group: Not used.
            reduce_op: "mean" or "sum".

        Returns:
            The reduced value.
        """
        return self.all_reduce(output, group, reduce_op)

    def all_gather(self, tensor: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Put the tensors of all processes side by side.

        Args:
            tensor: A tensor, a number, or a collection of them, of the same shapes on all processes.
            group: Not used.
            sync_grads: Let gradients flow back.

        Returns:
            The same structure; each tensor with a new first dimension of the number of processes.
        """
        xla_model = self._runtime("all_gather")
        functions = require("torch_xla.core.functions", extra="xla", for_="XLAStrategy") if sync_grads else xla_model

        def gather_one(value: Any) -> Any:
            return functions.all_gather(self._on_device(value).unsqueeze(0), dim=0)

        return apply_to_collection(tensor, _LEAVES, gather_one)

    def _on_device(self, value: Any) -> Tensor:
        return torch.as_tensor(value, device=self.root_device)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Send an object from one process to all; as long as this process is alone, it is returned.

        Args:
            obj: Anything that can be pickled.
            src: The rank that sends.

        Returns:
            The object of rank `src`.
        """
        return obj if self._local_rank is None else self.gather_objects(obj)[src]

    def gather_objects(self, obj: T) -> list[T]:
        """Return what each process passed, by rank, on every process.

        Args:
            obj: What this process contributes; it is pickled.
        """
        gathered: list[T] = self._runtime("gather_objects").mesh_reduce("fulmen.gather_objects", obj, list)
        return gathered

    def agree(self, values: list[int], op: Literal["max", "min", "sum"] = "max") -> list[int]:
        """Reduce some integers over all processes.

        Args:
            values: As many on each process.
            op: How to reduce them.

        Returns:
            The reduced integers.
        """
        of_ranks = self.gather_objects(values)
        return [_REDUCTIONS[op](list(column)) for column in zip(*of_ranks, strict=True)]

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes; as long as this process is alone, go on.

        Args:
            name: What for.
        """
        if self._local_rank is not None:
            self._runtime("barrier").rendezvous(name or "fulmen.barrier")

    def meet(self, what: str, timeout_s: float = 30.0) -> None:
        """Wait for all processes; the runtime has no limit for that.

        Args:
            what: What this process did.
            timeout_s: Not used.
        """
        self.barrier("fulmen.meet")

    def _runtime(self, wanted: str) -> ModuleType:
        if self._local_rank is None:
            self._raise_not_launched(wanted)
        self._num_exchanges += 1
        return _xla_model()

    # ---- end

    def teardown(self) -> None:
        """Bring module and optimizers back to host memory."""
        super().teardown()
        os.environ.pop(DEBUG_VARIABLE, None)


def _xla_model() -> ModuleType:
    return require("torch_xla.core.xla_model", extra="xla", for_="XLAStrategy")
