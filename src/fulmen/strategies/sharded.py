"""What strategies share that keep a part of each weight on each device: the mesh, the steps, the checkpoints.

Set-up: setup_environment joins the processes -> `_make_mesh`; then `_shard` cuts the module in place
Step:   through the module's own call, around which `fully_shard` gathers weights
Keep:   whole weights, gathered on rank 0, or a folder into which each rank writes its shards
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fulmen.plugins.io.distributed_io import ShardedCheckpoint, load_mapped, save_sharded
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.plugins.precision.fsdp import FSDPPrecision
from fulmen.strategies.late_weights import LateWeights
from fulmen.strategies.launchers.choice import StartMethod, choose_launcher
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.process_group import DEFAULT_TIMEOUT, check_timeout
from fulmen.strategies.replaced_parameters import ReplacedParameters
from fulmen.strategies.route import Redirection, unwrapped
from fulmen.strategies.shards import (
    load_into_module,
    load_optimizer_state,
    optimizer_state_by_name,
    whole,
)
from fulmen.utilities.distributed import broadcast_tensors
from fulmen.utilities.files import is_local, local_path
from fulmen.utilities.fsdp_units import parameter_groups, recover_from_broken_step, state_of_unit, units_of
from fulmen.utilities.state_names import without_compiler_names

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.strategies.launchers.launcher import Launcher
    from fulmen.utilities.types import _PATH

__all__ = ["ShardedStrategy"]

_OF_THIS_PROCESS = ("_mesh", "_modules", "_kept_units", "_late", "_replaced")


class ShardedStrategy(ParallelStrategy):
    """What strategies share that keep a part of each weight on each device. Subclasses make the mesh and cut.

    The module stays the user's object: its parameters become `DTensor`s, and its names and methods stay. It stays cut
    after a run, for further runs of the same processes.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
        process_group_backend: "nccl", "gloo", ...; by default torch's choice for the device.
        timeout: How long a collective waits for the other processes.
        start_method: How processes are made: "popen" reruns the script, "spawn", "fork" and "forkserver" run only the
            function.
        saves_shards: Write checkpoints as folders of shards rather than as one whole file.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        *,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        start_method: StartMethod = "popen",
        saves_shards: bool = False,
    ) -> None:
        super().__init__(accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin)
        # settings
        self._backend = process_group_backend
        self._timeout = check_timeout(timeout, self)
        self._start_method = start_method
        self._saves_shards = saves_shards
        # state
        self._launcher: Launcher | None = None
        self._mesh: DeviceMesh | None = None
        self._is_routed = False
        self._modules: WeakSet[nn.Module] = WeakSet()  # that were cut here
        self._kept_units: WeakSet[FSDPModule] = WeakSet()  # parts of them that a forward pass may leave gathered
        self._late: WeakKeyDictionary[nn.Module, LateWeights] = WeakKeyDictionary()
        self._replaced = ReplacedParameters()

    # ---- for subclasses

    @abstractmethod
    def _make_mesh(self) -> DeviceMesh:
        """Return the mesh of the run, e.g. by `_mesh_of`; the process group is there."""

    @abstractmethod
    def _shard(self, module: nn.Module, *, is_manual: bool) -> None:
        """Cut a module in place, if it is not cut yet, with the help of `_ready_layers`.

        It may have parameters on the meta device; else they are on the CPU or on the device.

        Args:
            module: The user's module, not compiled.
            is_manual: It is a LightningModule that optimizes by hand: backward passes happen inside its own call.
        """

    def _mesh_of(self, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
        """Return a mesh of all ranks, the same for all runs of this process."""
        key = self.root_device.type, self.process_group_backend, shape, names
        meshes = self._joined("device_mesh").meshes
        if key not in meshes:
            meshes[key] = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        made: DeviceMesh = meshes[key]
        return made

    def _ready_layers(
        self,
        module: nn.Module,
        on_ready: Callable[[nn.Module], Any],
        *,
        is_sent: bool = True,
        init: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        """Bring a module to the device, a layer at a time, and call a function as soon as a layer is whole there.

        So that with a function that cuts the layer, not more than one of those is ever whole in memory. Values are
        those of rank 0; a layer on the meta device gets memory and values first.

        Args:
            module: The module.
            on_ready: Gets each layer after its sublayers.
            is_sent: Send values from rank 0; otherwise they are the same everywhere already.
            init: Fills a layer that has no memory yet; its `reset_parameters` by default.
        """
        late = LateWeights(module, self.root_device, init)
        seen: set[int] = set()

        def visit(layer: nn.Module, name: str) -> None:
            if id(layer) in seen:
                return
            seen.add(id(layer))
            late.fill(layer, name)
            self._bring(layer, is_sent=is_sent)
            for key, child in layer.named_children():
                visit(child, f"{name}.{key}" if name else key)
            on_ready(layer)

        visit(module, "")
        late.forget_shared()
        if late.has_unfilled:
            self._late[module] = late
            self._check_at_first_call(module, late)

    def _bring(self, layer: nn.Module, *, is_sent: bool) -> None:
        """Move the tensors of one layer to the device, with the values of rank 0."""
        new: list[Tensor] = []
        with torch.no_grad():
            for parameter in layer._parameters.values():
                if parameter is not None and not isinstance(parameter, DTensor):  # a shared one twice: harmless
                    parameter.data = parameter.data.to(self.root_device)
                    new.append(parameter)
            for key, buffer in layer._buffers.items():
                if buffer is not None and not isinstance(buffer, DTensor):
                    layer._buffers[key] = buffer.to(self.root_device)
                    new.append(layer._buffers[key])  # type: ignore[arg-type]  # just put there
            if is_sent and self.world_size > 1:
                for tensor in new:
                    self._num_exchanges += 1
                    broadcast_tensors([tensor.detach()], group=self._group_of(tensor, None))

    def _check_at_first_call(self, module: nn.Module, late: LateWeights) -> None:
        handles: list[Any] = []

        def check(*_: Any) -> None:
            late.refuse_unfilled()
            for handle in handles:
                handle.remove()
            handles.clear()

        handles.extend(layer.register_forward_pre_hook(check, prepend=True) for layer in module.modules())

    # ---- where

    @property
    def device_mesh(self) -> DeviceMesh:
        """How the ranks are arranged.

        Raises:
            RuntimeError: The processes are not there yet.
        """
        if self._mesh is None:
            self._raise_not_launched("device_mesh")
        return self._mesh

    @property
    def start_method(self) -> StartMethod:
        """How processes are made, where nothing else has made them."""
        return self._start_method

    @property
    def launcher(self) -> Launcher | None:
        """Makes the processes, or knows that they exist."""
        if self._launcher is None:
            self._known_environment()
            self._launcher = choose_launcher(self, self._start_method)
        return self._launcher

    def setup_environment(self) -> None:
        """Make the device ready, join the other processes, and make the mesh."""
        super().setup_environment()
        if self._mesh is None:
            self._mesh = self._make_mesh()
        if isinstance(self.precision_plugin, FSDPPrecision):
            self.precision_plugin.take_place(self.root_device.type, self._max_over_ranks)

    def _max_over_ranks(self, tensor: Tensor) -> Tensor:
        largest: Tensor = self.all_reduce(tensor, reduce_op="max")
        return largest

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_mesh": None, "_late": WeakKeyDictionary()})
        self._modules, self._kept_units = WeakSet(), WeakSet()
        self._replaced = ReplacedParameters()

    # ---- prepare

    @property
    def allows_inference_mode(self) -> bool:
        """False: what is gathered in inference mode could not be used for training later."""
        return False

    @property
    def needs_shadow_steps(self) -> bool:
        """True where ranks have batches of their own: a forward pass of one needs the parts of all."""
        return self.data_parallel_size > 1

    @property
    def has_dtensors(self) -> bool:
        """True: each rank has parts of the weights."""
        return True

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True: weights are loaded into the cut module, so that no rank holds all of them."""
        return True

    def module_to_device(self, module: nn.Module) -> None:
        """Leave the module where it is: it is moved a layer at a time, when it is cut.

        Args:
            module: The module.
        """

    def prepare_model(self, trainer: Any) -> None:
        """Cut the module, in fit as in validate, test and predict.

        Args:
            trainer: The running Trainer.
        """
        module = self._model
        if not units_of(module):  # as cut layers can't be replaced
            self._apply_layer_sync()
        is_manual = not getattr(self._lightning_module, "automatic_optimization", True)
        self._cut(module, is_manual=is_manual)
        self._is_routed = isinstance(module, FSDPModule)

    def _cut(self, module: nn.Module, *, is_manual: bool) -> None:
        recover_from_broken_step(module)
        before = dict(module.named_parameters(remove_duplicate=False))
        self._shard(module, is_manual=is_manual)
        self._replaced.note(before, module)
        self.precision_plugin.after_sharding(module)
        self._modules.add(module)
        units = units_of(module)
        for unit in units if self.root_device.type == "cpu" else ():
            unit.set_force_sum_reduction_for_comms(True)  # gloo of torch 2.8 gives the sum where the mean is asked for
        self._kept_units.update(unit for unit in units if _may_stay_gathered(unit))

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Cut a module in place.

        Args:
            module: The module.

        Returns:
            The module.
        """
        self._cut(unwrapped(module), is_manual=False)
        return module

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any | None = None
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """Cut a module in place, and let its optimizers update the parts.

        Args:
            module: The module.
            optimizers: Its optimizers; groups, order and state stay.
            scheduler: A learning-rate scheduler.

        Returns:
            Module, optimizers and scheduler.
        """
        module = self.setup_module(module)
        return module, [self.setup_optimizer(optimizer) for optimizer in optimizers], scheduler

    def setup_optimizers(self, trainer: Any) -> None:
        """Take the optimizers and schedulers that the user configured, also those made before the module was cut.

        Args:
            trainer: The running Trainer.
        """
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            self._replaced.point(optimizer)

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimizer update the parts, if it was made before the module was cut.

        Args:
            optimizer: The optimizer; in place.

        Returns:
            The optimizer.
        """
        self._replaced.point(optimizer)
        return optimizer

    def module_sharded_context(self) -> AbstractContextManager[Any]:
        """Return a context to make a module in; nothing happens in it, as a module is cut when it is set up."""
        return nullcontext()

    @contextmanager
    def _made_in_place(self, dtype: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        with torch.device("meta") if empty_init else self.root_device, dtype:
            yield

    # ---- step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `training_step`, with the weights gathered that belong to no smaller part."""
        module = self._lightning_module
        if not self._is_routed:
            return module.training_step(*args, **kwargs)
        with Redirection(module, module.training_step):
            return module(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `validation_step`; afterwards each rank holds its parts only."""
        return self._evaluate(self._lightning_module.validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `test_step`; afterwards each rank holds its parts only."""
        return self._evaluate(self._lightning_module.test_step, *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `predict_step`; afterwards each rank holds its parts only."""
        return self._evaluate(self._lightning_module.predict_step, *args, **kwargs)

    def _evaluate(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        module = self._lightning_module
        with Redirection(module, step) if self._is_routed else nullcontext():
            outputs = module(*args, **kwargs) if self._is_routed else step(*args, **kwargs)
        self._let_go()
        return outputs

    def _let_go(self) -> None:
        """Drop weights that a forward pass has left gathered, as no backward pass followed."""
        for unit in self._kept_units:
            unit.reshard()

    def optimizer_step(
        self, optimizer: Any, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Update this rank's parts of the parameters of an optimizer.

        Args:
            optimizer: The optimizer, not wrapped.
            closure: Computes gradients; without it they are there already.
            model: The module; by default the user's.
            kwargs: Further arguments of the optimizer's `step`.

        Returns:
            What the closure returned.
        """
        if not self._kept_units:
            return super().optimizer_step(optimizer, closure, model, **kwargs)

        def compute() -> Any:
            outputs = None if closure is None else closure()
            self._let_go()  # else the next forward pass would use weights of before this step
            return outputs

        if closure is None:
            self._let_go()
        return super().optimizer_step(optimizer, None if closure is None else compute, model, **kwargs)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context whose backward passes leave gradients whole and on their rank, for accumulation.

        Args:
            module: The module.
            enabled: False makes the context do nothing.

        Returns:
            The context. Until the first backward pass outside of it, each rank holds whole gradients.
        """
        return self._unsynchronized(unwrapped(module)) if enabled else nullcontext()

    @contextmanager
    def _unsynchronized(self, module: nn.Module) -> Iterator[None]:
        units = units_of(module)
        for unit in units:
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True, recurse=False)

    def average_accumulated(self) -> bool:
        """Average over ranks what was accumulated within `block_backward_sync`, as a backward pass would at its end.

        Returns:
            True: nothing is left to do.
        """
        for unit in units_of(self._lightning_module):
            state = state_of_unit(unit)
            if state._is_root:
                state._root_post_backward_final_callback()
        return True

    # ---- keep: weights and states of optimizers

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return the weights of a module under the names the user gave them; all ranks must call it.

        Args:
            module: The module.

        Returns:
            Parts, if checkpoints are folders of shards; else whole weights on rank 0, and nothing on the others.
        """
        inner = unwrapped(module)
        state = without_compiler_names(inner, inner.state_dict())
        if self._saves_shards:
            return state
        gathered: dict[str, Any] = whole(state, keep=self.is_global_zero)
        return gathered

    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load weights, whole or in parts, into a module; each rank takes its own.

        Args:
            module: The module.
            state_dict: Weights by name.
            strict: Names must be the same on both sides.
        """
        inner = unwrapped(module)
        load_into_module(inner, state_dict, strict=strict)
        if (late := self._late.get(inner)) is not None:
            late.note_loaded(state_dict)

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer; all ranks must call it.

        Args:
            optimizer: The optimizer.

        Returns:
            Parts by the name of the parameter, if checkpoints are folders of shards; else, on rank 0, the whole state
            as `Optimizer.state_dict` has it.
        """
        if self._saves_shards:
            return optimizer_state_by_name(self._owner_of(optimizer), optimizer)
        gathered: dict[str, Any] = whole(optimizer.state_dict(), keep=self.is_global_zero)
        return gathered

    def load_optimizer_state(self, optimizer: Optimizer, state: Any) -> None:
        """Load the state of an optimizer, whole or in parts; each rank takes its own.

        Args:
            optimizer: The optimizer; in place.
            state: What `get_optimizer_state` returned, of any strategy, or what a folder of shards has.
        """
        load_optimizer_state(self._owner_of(optimizer), optimizer, state)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Load the states of a checkpoint into the optimizers.

        Args:
            checkpoint: Has the states in a list under "optimizer_states".

        Raises:
            ValueError: There are more or fewer states than optimizers.
        """
        for optimizer, state in self._paired_with_states(checkpoint):
            self.load_optimizer_state(optimizer, state)

    def _owner_of(self, optimizer: Optimizer) -> nn.Module:
        """The module whose parameters an optimizer has; it says their names."""
        wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        running = [] if self._lightning_module is None else [self._lightning_module]
        owners: list[nn.Module] = [
            module
            for module in (*running, *self._modules)
            if any(id(parameter) in wanted for parameter in module.parameters())
        ]
        for owner in owners:
            if wanted <= {id(parameter) for parameter in owner.parameters()}:
                return owner
        if not owners:
            raise ValueError(
                f"The parameters of the optimizer `{type(optimizer).__name__}` belong to no module that was set up, so"
                " their names are unknown. Make it of the parameters of a module that `setup` returned."
            )
        return nn.ModuleList(owners)

    def whole_states(self) -> dict[str, Any]:
        """Return weights and states of the optimizers, whole on rank 0, for a process without the others."""
        module = self._lightning_module
        weights = without_compiler_names(module, module.state_dict())
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        states: dict[str, Any] = self.gathered({"state_dict": weights, "optimizers": optimizers})
        return states

    def gathered(self, tree: Any) -> Any:
        """Return a collection with its tensors whole, on the CPU, on rank 0; nothing on the others.

        Args:
            tree: Tensors nested in collections.
        """
        return whole(tree, keep=self.is_global_zero)

    # ---- keep: files

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint; all ranks must call it.

        Args:
            checkpoint: What to write.
            filepath: Where to: a folder, if each rank writes its shards, else a file.
            storage_options: For the `CheckpointIO`.
        """
        if not self._saves_shards:
            super().save_checkpoint(whole(checkpoint, keep=self.is_global_zero), filepath, storage_options)
            return
        if storage_options is not None:
            raise TypeError(
                f"`storage_options={storage_options!r}` can't be used for a folder of shards, which all ranks write to"
                " a shared file system. Leave it out, or save one whole file."
            )
        save_sharded(checkpoint, filepath, group=self.control_group, checkpoint_io=self.checkpoint_io)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: a whole file of any strategy, or a folder of shards.

        Args:
            checkpoint_path: Where from.
            weights_only: Refuse everything but tensors and plain data. `None` leaves it to torch.

        Returns:
            Its content. Tensors of a local file are mapped, and those of a folder stay there until they are loaded, so
            that no rank holds all of them.
        """
        if is_local(checkpoint_path) and os.path.isdir(local_path(checkpoint_path)):
            kwargs = {} if weights_only is None else {"weights_only": weights_only}
            checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, **kwargs)
            if isinstance(checkpoint, ShardedCheckpoint):
                checkpoint.fill(self.device_mesh)
            return checkpoint
        if is_local(checkpoint_path) and type(self.checkpoint_io) is TorchCheckpointIO:
            mapped: dict[str, Any] = load_mapped(checkpoint_path, weights_only=weights_only)
            return mapped
        return super().load_checkpoint(checkpoint_path, weights_only)

    # ---- end

    def teardown(self) -> None:
        """End what the parts hold open; the module stays cut and on the device, for further runs."""
        try:
            self.precision_plugin.teardown()
            self.accelerator.teardown()
        finally:
            self.checkpoint_io.teardown()
        if self.cluster_environment is not None:
            self.cluster_environment.teardown()


def _may_stay_gathered(unit: FSDPModule) -> bool:
    """Whether the weights of a unit stay gathered between forward and backward pass, as those of a root do."""
    is_left_to_torch = state_of_unit(unit)._auto_reshard_after_forward
    return is_left_to_torch or any(group.post_forward_mesh_info is None for group in parameter_groups(unit))
