"""The verbs of training: where, prepare, step, keep (talk is in `communication.py`), with bodies for one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.communication import Communication
from fulmen.strategies.empty_init import EmptyInit
from fulmen.strategies.trainer_side import TrainerSide
from fulmen.utilities.sharded_gradients import clip_gradients_by_norm, clip_gradients_by_value
from fulmen.utilities.state_names import named_as_in, without_compiler_names
from fulmen.utilities.tree import move_data_to_device
from fulmen.utilities.types import Stateful

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.layer_sync import LayerSync
    from fulmen.strategies.launchers.launcher import Launcher
    from fulmen.utilities.registry import Registry
    from fulmen.utilities.types import _PATH

__all__ = ["Strategy"]


class Strategy(TrainerSide, Communication, ABC):
    """How a module is trained on the devices of a run: who computes what, who talks to whom, who keeps what.

    A new strategy must say `root_device` and overrides what it does in its own way; the bodies here are right for one
    process and one device. Methods that know of a run and its module are in `TrainerSide`, what processes say to each
    other is in `Communication`.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
    """

    # parts
    cluster_environment: ClusterEnvironment | None
    layer_sync: LayerSync | None

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__()
        self.cluster_environment = None
        self.layer_sync = None
        self._accelerator = accelerator
        self._checkpoint_io = checkpoint_io
        self._precision_plugin = precision_plugin
        parts = {"accelerator": accelerator, "checkpoint_io": checkpoint_io, "precision_plugin": precision_plugin}
        self._chosen = {name for name, part in parts.items() if part is not None}

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Strategy]) -> None:
        """Enter this class under its names; none by default.

        Args:
            strategy_registry: Where to enter it.
        """

    # ---- parts

    @property
    def accelerator(self) -> Accelerator:
        """The kind of hardware."""
        if self._accelerator is None:
            self._accelerator = ACCELERATOR_REGISTRY.get(self.root_device.type)
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._chosen.add("accelerator")

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """Writes and reads checkpoints."""
        if self._checkpoint_io is None:
            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO) -> None:
        self._checkpoint_io = checkpoint_io
        self._chosen.add("checkpoint_io")

    @property
    def precision_plugin(self) -> Precision:
        """The number format."""
        if self._precision_plugin is None:
            self._precision_plugin = Precision()
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision) -> None:
        self._precision_plugin = precision_plugin
        self._chosen.add("precision_plugin")

    @property
    def precision(self) -> Precision:
        """The number format, under the name that Fabric programs know."""
        return self.precision_plugin

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.precision_plugin = precision

    @property
    def chosen_parts(self) -> frozenset[str]:
        """Names of the parts that came with the strategy, by its constructor or by assignment."""
        return frozenset(self._chosen)

    def complete(
        self,
        *,
        accelerator: Accelerator,
        precision_plugin: Precision,
        checkpoint_io: CheckpointIO,
        cluster_environment: ClusterEnvironment | None = None,
        layer_sync: LayerSync | None = None,
    ) -> None:
        """Fill in the parts that did not come with the strategy; a later call may replace them.

        Args:
            accelerator: The kind of hardware.
            precision_plugin: The number format.
            checkpoint_io: Writes and reads checkpoints.
            cluster_environment: What started the processes.
            layer_sync: Synchronizes layers over all processes.
        """
        if "accelerator" not in self._chosen:
            self._accelerator = accelerator
        if "precision_plugin" not in self._chosen:
            self._precision_plugin = precision_plugin
        if "checkpoint_io" not in self._chosen:
            self._checkpoint_io = checkpoint_io
        if "cluster_environment" not in self._chosen:
            self.cluster_environment = cluster_environment
        self.layer_sync = layer_sync

    # ---- where

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    def parallel_devices(self) -> list[torch.device]:
        """The devices of all processes of this machine."""
        return [self.root_device]

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return 1

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return 0

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process, which writes and logs."""
        return self.global_rank == 0

    @property
    def launcher(self) -> Launcher | None:
        """Starts the processes; `None` if there is nothing to start."""
        return None

    # ---- prepare

    def module_to_device(self, module: nn.Module) -> None:
        """Move a module to the device of this process.

        Args:
            module: The module; moved in place.
        """
        module.to(self.root_device)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Wrap a module for training on several devices.

        Args:
            module: The module, on its device.

        Returns:
            The wrapped module; here the module itself.
        """
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimizer for training on several devices.

        Args:
            optimizer: The optimizer.

        Returns:
            The wrapped optimizer; here the optimizer itself.
        """
        return optimizer

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any | None = None
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """Wrap a module together with its optimizers.

        Args:
            module: The module, on its device.
            optimizers: Its optimizers.
            scheduler: A learning-rate scheduler, for strategies that step it themselves.

        Returns:
            Module, optimizers and scheduler, wrapped.
        """
        return self.setup_module(module), [self.setup_optimizer(optimizer) for optimizer in optimizers], scheduler

    def module_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which a new module is made in place: on the device, in the right type.

        Args:
            empty_init: Leave parameters uninitialized, for weights that are loaded anyway.

        Returns:
            The context.
        """
        return self._made_in_place(self.precision_plugin.module_init_context(), empty_init)

    def tensor_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which new tensors are made in place: on the device, in the right type.

        Args:
            empty_init: Leave parameters uninitialized, for weights that are loaded anyway.

        Returns:
            The context.
        """
        return self._made_in_place(self.precision_plugin.tensor_init_context(), empty_init)

    @contextmanager
    def _made_in_place(self, dtype: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        with self.root_device, dtype, EmptyInit() if empty_init else nullcontext():
            yield

    def process_dataloader(self, dataloader: Any) -> Any:
        """Wrap a dataloader, for devices that need it.

        Args:
            dataloader: The loader.

        Returns:
            The loader to iterate.
        """
        return dataloader

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch to the device, by the module's own transfer hooks if there is a module that has them.

        Args:
            batch: Tensors and other movable objects, nested in collections.
            device: Where to; by default the device of this process.
            dataloader_idx: Which dataloader it came from.

        Returns:
            The batch on the device.
        """
        device = device or self.root_device
        transfer = getattr(self._lightning_module, "_apply_batch_transfer_handler", None)
        if transfer is None:
            return move_data_to_device(batch, device)
        return transfer(batch, device=device, dataloader_idx=dataloader_idx)

    # ---- step

    def run_backward(self, tensor: Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Compute gradients, without the steps before and after (see `Precision`).

        Args:
            tensor: The loss, scaled if the precision scales.
            module: The user's module.
            args: Further arguments of `backward`.
            optimizer: The optimizer whose step this is for.
            kwargs: Further arguments of `backward`.
        """
        self.precision_plugin.backward(tensor, module, optimizer, *args, **kwargs)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context whose backward passes leave gradients unsynchronized, for accumulation.

        Args:
            module: The wrapped module.
            enabled: False makes the context do nothing.

        Returns:
            The context; with one process there is nothing to synchronize.
        """
        return nullcontext()

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Update the parameters of an optimizer.

        Args:
            optimizer: The optimizer, not wrapped.
            closure: Computes gradients; without it they are there already.
            model: The module; by default the user's.
            kwargs: Further arguments of the optimizer's `step`.

        Returns:
            What the closure returned.
        """
        model = model if model is not None else self._lightning_module
        return self.precision_plugin.optimizer_step(optimizer, model=model, closure=closure, **kwargs)

    def clip_gradients_norm(
        self,
        module: Any,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
    ) -> Tensor:
        """Scale the gradients of an optimizer so that their total norm is at most `max_norm`.

        Args:
            module: The module; for strategies that must ask it.
            optimizer: The optimizer; its gradients are unscaled first.
            max_norm: The bound; 0 or less: no clipping.
            norm_type: Which norm.
            error_if_nonfinite: Raise if the norm is not finite.

        Returns:
            The total norm before clipping; zero if there was none.

        Raises:
            RuntimeError: The norm is not finite, and that is to be an error.
        """
        if max_norm <= 0:
            return torch.zeros((), device=self.root_device)
        self.precision_plugin.unscale_gradients(optimizer)
        parameters = self.precision_plugin.main_params(optimizer)
        return clip_gradients_by_norm(parameters, max_norm, norm_type, error_if_nonfinite)

    def clip_gradients_value(self, module: Any, optimizer: Optimizer, clip_val: float) -> None:
        """Clamp each entry of the gradients of an optimizer to [-clip_val, clip_val].

        Args:
            module: The module; for strategies that must ask it.
            optimizer: The optimizer; its gradients are unscaled first.
            clip_val: The bound; 0 or less: no clipping.
        """
        if clip_val <= 0:
            return
        self.precision_plugin.unscale_gradients(optimizer)
        clip_gradients_by_value(self.precision_plugin.main_params(optimizer), clip_val)

    def scale_gradients(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply all gradients of an optimizer by a number, before it steps.

        Args:
            optimizer: Whose parameters are meant.
            factor: The number.
        """
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    # ---- keep

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return the weights of a module, whole, under the names the user gave them.

        Args:
            module: The module, wrapped or not.
        """
        return without_compiler_names(module, module.state_dict())

    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load weights into a module.

        Args:
            module: The module, wrapped or not.
            state_dict: What `get_module_state_dict` returned.
            strict: Names must be the same on both sides.
        """
        module.load_state_dict(named_as_in(module, state_dict), strict=strict)

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, whole.

        Args:
            optimizer: The optimizer.
        """
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Optimizer, state: Any) -> None:
        """Load the state of an optimizer.

        Args:
            optimizer: The optimizer; in place.
            state: What `get_optimizer_state` returned.
        """
        optimizer.load_state_dict(state)

    def save_state(
        self,
        path: _PATH,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:
        """Save modules, optimizers and plain values in one checkpoint.

        Args:
            path: Where to.
            state: Name to module, optimizer, anything with `state_dict`, or plain value.
            storage_options: For the `CheckpointIO`.
            filter: For some of the names, which entries of its state_dict to save: called with key and value.

        Raises:
            ValueError: `filter` has a name that `state` has not.
        """
        filter = filter or {}
        if unknown := sorted(filter.keys() - state.keys()):
            raise ValueError(
                f"`filter` has entries for {unknown}, which are not saved; the state has {sorted(state)}."
                " Use the same names in both."
            )
        saved = {name: self._state_of(value) for name, value in state.items()}
        for name, keep in filter.items():
            saved[name] = {key: item for key, item in saved[name].items() if keep(key, item)}
        self.save_checkpoint(saved, path, storage_options=storage_options)

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self.get_module_state_dict(value)
        if isinstance(value, Optimizer):
            return self.get_optimizer_state(value)
        return value.state_dict() if isinstance(value, Stateful) else value

    def load_state(
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

        Raises:
            KeyError: The checkpoint lacks a name.
        """
        checkpoint = self.load_checkpoint(path, weights_only=weights_only)
        state = {} if state is None else state
        missing = sorted(state.keys() - checkpoint.keys())
        if missing and strict:
            raise KeyError(
                f"The checkpoint `{path}` has no entries {missing}; it has {sorted(checkpoint)}."
                " Ask for those, or pass `strict=False` to leave the others as they are."
            )
        for name in [name for name in state if name in checkpoint]:
            content, target = checkpoint.pop(name), state[name]
            if isinstance(target, nn.Module):
                self.load_module_state_dict(target, content, strict=strict)
            elif isinstance(target, Optimizer):
                self.load_optimizer_state(target, content)
            elif isinstance(target, Stateful):
                target.load_state_dict(content)
            else:
                state[name] = content
        return checkpoint
