"""One model on several devices at once, on a mesh of data parallel times tensor parallel processes.

make the mesh -> `configure_model`, or the plan, divides layers along "tensor_parallel"
              -> `fully_shard` divides what is left along "data_parallel"
step: peers along "tensor_parallel" get the same batch; what they must agree on is compared now and then
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.fsdp_wrapping import repeated_blocks
from fulmen.strategies.hints import add_hint
from fulmen.strategies.launchers.choice import StartMethod
from fulmen.strategies.parallelize import Division, ParallelPlan, check_plan, tied_parameters
from fulmen.strategies.peers import PeerCheck, share_values, sum_parts_of_gradients, whole_along
from fulmen.strategies.process_group import DEFAULT_TIMEOUT
from fulmen.strategies.random_numbers import drawing_as_first
from fulmen.strategies.sharded import ShardedStrategy
from fulmen.strategies.shards import local_part
from fulmen.utilities.distributed import broadcast_tensors
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.rank_zero import rank_zero_info
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.layer_sync import LayerSync

__all__ = ["ModelParallelStrategy"]

_DATA, _TENSOR = "data_parallel", "tensor_parallel"
_MARK = "_divided_by_fulmen"
_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")


class ModelParallelStrategy(ShardedStrategy):
    """Tensor parallel training together with fully sharded data parallel training.

    The processes form a mesh with the dimensions "data_parallel" and "tensor_parallel". Which layers are divided how is
    said by a plan, or done in `LightningModule.configure_model` with torch's own functions and
    `self.device_mesh["tensor_parallel"]`. What is not divided along "data_parallel" after that gets `fully_shard`, so
    that gradients are averaged in any case.

    Args:
        data_parallel_size: Number of groups of processes, each of which has the whole model and a share of the data.
            "auto": the number of machines.
        tensor_parallel_size: Number of processes that have a model together. "auto": the processes of a machine.
        save_distributed_checkpoint: Write checkpoints as folders into which each process writes its part; otherwise
            as one file.
        process_group_backend: "nccl", "gloo", ...; by default torch's choice for the device.
        timeout: How long a collective waits for the other processes.
        parallelize: Patterns of module names with styles, e.g. `{"layers.*.mlp.up": "colwise", "layers.*.mlp.down":
            "rowwise"}` (see `fulmen.strategies.parallelize`), or a function of module and mesh.
        loss_parallel: The layer that predicts words, with the style "vocabulary", leaves its outputs divided; the steps
            compute `cross_entropy` on them without putting them together.
        start_method: How processes are made: "popen" reruns the script, "spawn", "fork" and "forkserver" run only the
            function.
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.

    Raises:
        ValueError: A size is no number of processes, or the plan has no entry or an unknown style.
        TypeError: The plan is no plan.

    Example::

        plan = {"**.wq": "colwise", "**.wk": "colwise", "**.wv": "colwise", "**.wo": "rowwise"}
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=4, parallelize=plan)
        Trainer(devices=8, strategy=strategy)
    """

    strategy_name = "model_parallel"

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        *,
        parallelize: ParallelPlan | None = None,
        loss_parallel: bool = False,
        start_method: StartMethod = "popen",
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
            saves_shards=save_distributed_checkpoint,
        )
        _check_size("data_parallel_size", data_parallel_size)
        _check_size("tensor_parallel_size", tensor_parallel_size)
        if parallelize is not None:
            check_plan(parallelize)
        if loss_parallel and not isinstance(parallelize, Mapping):
            raise ValueError(
                f"`loss_parallel={loss_parallel!r}` needs a plan that says which layer predicts words, but"
                f" `parallelize={parallelize!r}`. Pass a dict with the style 'vocabulary' for that layer, or use"
                " torch's `loss_parallel()` in your own steps."
            )
        # settings
        self._asked_sizes = data_parallel_size, tensor_parallel_size
        self._plan = parallelize
        self._is_loss_parallel = loss_parallel
        # state
        self._check: PeerCheck | None = None
        self._divided: list[weakref.ref[nn.Module]] = []

    # ---- where

    @property
    def data_parallel_size(self) -> int:
        """Number of groups of processes that get batches of their own."""
        return self._sizes()[0]

    @property
    def tensor_parallel_size(self) -> int:
        """Number of processes that have a model together, and get the same batches."""
        return self._sizes()[1]

    @property
    def data_parallel_rank(self) -> int:
        """Which of the groups this process belongs to."""
        return self.global_rank // self.tensor_parallel_size

    @property
    def data_parallel_group(self) -> Any:
        """The processes that have the same part of the model, one of each group."""
        return self.device_mesh[_DATA].get_group()

    def _sizes(self) -> tuple[int, int]:
        defaults = self.num_nodes, max(self.world_size // self.num_nodes, 1)
        data, tensor = (
            default if asked == "auto" else asked for asked, default in zip(self._asked_sizes, defaults, strict=True)
        )
        return data, tensor

    def _make_mesh(self) -> DeviceMesh:
        data, tensor = self._sizes()
        if data * tensor != self.world_size:
            raise RuntimeError(
                f"`ModelParallelStrategy(data_parallel_size={self._asked_sizes[0]!r},"
                f" tensor_parallel_size={self._asked_sizes[1]!r})` makes a mesh of {data} x {tensor} processes, but the"
                f" world size is {self.world_size}: each process has one place. Choose sizes whose product is"
                f" {self.world_size} ('auto' is the number of machines, {self.num_nodes}, and of processes on each)."
            )
        return self._mesh_of((data, tensor), (_DATA, _TENSOR))

    # ---- parts

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

        Raises:
            ValueError: The number format does not work on divided weights.
        """
        super().complete(
            accelerator=accelerator,
            precision_plugin=precision_plugin,
            checkpoint_io=checkpoint_io,
            cluster_environment=cluster_environment,
            layer_sync=layer_sync,
        )
        precision = str(self.precision_plugin.precision)
        if precision not in _PRECISIONS:
            raise ValueError(
                f"`ModelParallelStrategy` does not support `precision={precision!r}`: scaled losses and formats of"
                f" single layers do not know of divided weights. Choose one of {_PRECISIONS}."
            )

    def setup_environment(self) -> None:
        """Make the device ready, join the other processes, make the mesh.

        Raises:
            TypeError: Nothing says how the module is divided.
            RuntimeError: The sizes do not fit the number of processes.
        """
        super().setup_environment()
        self._check = PeerCheck(self.device_mesh, _TENSOR)
        module = self._lightning_module
        if module is None or self._plan is not None:
            return
        if not any(is_overridden(name, module) for name in ("configure_model", "configure_sharded_model")):
            raise TypeError(
                "`ModelParallelStrategy` divides a module as you say, but"
                f" `{type(module).__name__}` does not override `configure_model`, and there is no plan. Apply"
                " `parallelize_module(..., self.device_mesh['tensor_parallel'], ...)` in `configure_model`, or pass"
                " `ModelParallelStrategy(parallelize={...})`."
            )

    # ---- prepare

    def model_sharded_context(self) -> AbstractContextManager[Any]:
        """Let all processes draw the numbers of rank 0 while the module is made, so that its parts fit together."""
        return drawing_as_first(self)

    def _shard(self, module: nn.Module, *, is_manual: bool) -> None:
        _refuse_other_wrappers(module)
        if self._plan is None or not self._is_divided(module):
            self._divide(module, is_manual=is_manual)
            module.__dict__[_MARK] = self._sizes()  # copies of the module are divided, too
        sum_parts_of_gradients(module)
        if module not in self._divided_modules():
            self._divided.append(weakref.ref(module))

    def _divided_modules(self) -> list[nn.Module]:
        return [module for reference in self._divided if (module := reference()) is not None]

    def _is_divided(self, module: nn.Module) -> bool:
        """Whether an earlier run, perhaps of another Trainer, has divided the module."""
        sizes = module.__dict__.get(_MARK)
        if sizes is not None and sizes != self._sizes():
            raise RuntimeError(
                f"`{type(module).__name__}` was divided on a mesh of {sizes[0]} x {sizes[1]} processes by an earlier"
                f" run, and this one has {self.data_parallel_size} x {self.tensor_parallel_size}. Make a new module,"
                " and load a checkpoint of the old one."
            )
        return sizes is not None

    def _divide(self, module: nn.Module, *, is_manual: bool) -> None:
        mesh, plan = self.device_mesh, self._plan
        division = None
        if isinstance(plan, Mapping):
            _refuse_divided(module)
            division = Division(module, mesh[_TENSOR], plan, loss_parallel=self._is_loss_parallel)
        elif plan is not None:
            self._send_weights(module)
            if plan(module, mesh) not in (None, module):
                raise TypeError(
                    f"`{plan!r}` returned another module than it got, but optimizers and checkpoints know that one."
                    " Change the module in place, and return it or nothing; compile it before or after."
                )
        blocks = _blocks(module) if self.data_parallel_size > 1 else set()
        is_tensor_parallel = division is not None and self.tensor_parallel_size > 1

        def on_ready(layer: nn.Module) -> None:
            if is_tensor_parallel:
                division.divide(layer)  # type: ignore[union-attr]  # just tested
            if id(layer) in blocks and _uncovered(layer):
                fully_shard(layer, mesh=mesh[_DATA])

        with drawing_as_first(self):
            _fill_divided(module, self.root_device)
            self._ready_layers(module, on_ready)
        if division is not None and is_tensor_parallel:
            division.finish()
        share_values(module, mesh)
        if self.data_parallel_size > 1:
            self._cover(module, is_manual=is_manual)

    def _send_weights(self, module: nn.Module) -> None:
        """Give all processes the weights of rank 0, before a function of the user divides them."""
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                if self.world_size > 1 and not tensor.is_meta and not isinstance(tensor, DTensor):
                    self._num_exchanges += 1
                    broadcast_tensors([tensor.detach()], group=self._group_of(tensor, None))

    def _cover(self, module: nn.Module, *, is_manual: bool) -> None:
        """Apply `fully_shard` to what is left, since otherwise its gradients would not be averaged."""
        left = _uncovered(module)
        if not left:
            return
        if self._plan is None:
            rank_zero_info(
                f"`{type(module).__name__}` has {len(left)} parameters that are not divided along 'data_parallel', e.g."
                f" {left[0]!r}: `fully_shard` is applied to what is left, so that their gradients are averaged."
            )
        for root in _roots(module, is_manual=is_manual):
            if _uncovered(root) and not isinstance(root, FSDPModule):
                fully_shard(root, mesh=self.device_mesh[_DATA])
        if ignored := _uncovered(module):
            raise ValueError(
                f"`fully_shard` was told to ignore parameters that are trained: {ignored[:5]}. Nobody would average"
                f" their gradients over the {self.data_parallel_size} groups of `data_parallel_size`. Do not ignore"
                " them, or set their `requires_grad` to False."
            )

    # ---- step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `training_step`, with the weights gathered that belong to no smaller part."""
        with self._loss_context():
            return self._plain(super().training_step(*args, **kwargs))

    def _evaluate(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._loss_context():
            return self._plain(super()._evaluate(step, *args, **kwargs))

    def _loss_context(self) -> AbstractContextManager[Any]:
        return loss_parallel() if self._is_loss_parallel else nullcontext()

    def _plain(self, outputs: Any) -> Any:
        """What a step returns, as it is on one device."""
        return apply_to_collection(outputs, DTensor, DTensor.full_tensor) if self._is_loss_parallel else outputs

    def run_backward(self, tensor: Tensor, module: Any, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Compute gradients; now and then, compare with the processes that have the same model and batch.

        Args:
            tensor: The loss, scaled if the precision scales.
            module: The user's module.
            args: Further arguments of `backward`.
            optimizer: The optimizer whose step this is for.
            kwargs: Further arguments of `backward`.

        Raises:
            RuntimeError: The processes of one model disagree about loss or gradients.
        """
        with self._loss_context():
            super().run_backward(tensor, module, *args, optimizer=optimizer, **kwargs)
        if self._check is not None:
            self._check.after_backward(tensor, self._divided_modules())

    # ---- end

    def on_exception(self, exception: BaseException) -> None:
        """Add to errors about shapes what to do about them.

        Args:
            exception: The exception.
        """
        add_hint(exception)

    def report_fault(self, error: BaseException) -> None:
        """Tell the other processes at once that this one fails.

        Args:
            error: What leaves this process; errors about shapes get a hint what to do.
        """
        self.on_exception(error)
        super().report_fault(error)


def _check_size(name: str, size: Any) -> None:
    if size == "auto" or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return
    raise ValueError(
        f"`ModelParallelStrategy({name}={size!r})` is no number of processes. Pass an int of 1 or more, or 'auto'."
    )


def _refuse_other_wrappers(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, DistributedDataParallel) or type(child).__name__ == "FullyShardedDataParallel":
            raise TypeError(
                f"`{name or type(module).__name__}` is wrapped in `{type(child).__name__}`, which does not know of"
                " weights that are divided. Use `torch.distributed.fsdp.fully_shard` with"
                " `mesh=self.device_mesh['data_parallel']`."
            )


def _refuse_divided(module: nn.Module) -> None:
    divided = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    if divided:
        raise RuntimeError(
            f"`{type(module).__name__}` has parameters that are divided already, e.g. {divided[0]!r}, so the plan comes"
            " too late. Divide the module either by `parallelize={...}` or in `configure_model`, not by both."
        )


def _blocks(module: nn.Module) -> set[int]:
    """Ids of the repeated parts of a module, each of which `fully_shard` gathers by itself."""
    tied = {id(module.get_submodule(name.rpartition(".")[0])) for names in tied_parameters(module) for name in names}
    # a parameter that has several places must be in one unit with all of them
    return {id(each) for each in repeated_blocks(module) if not any(id(layer) in tied for layer in each.modules())}


def _roots(module: nn.Module, *, is_manual: bool) -> list[nn.Module]:
    """What is gathered from the outside: the module, or the networks of manual optimization.

    Backward passes inside of `training_step` drop weights, and the call of the module gathers its own only once.
    """
    if not is_manual:
        return [module]
    roots: list[nn.Module] = []
    waiting = list(module.children())
    while waiting:
        child = waiting.pop(0)
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            waiting = [*child.children(), *waiting]
        elif any(True for _ in child.parameters()):
            roots.append(child)
    owners = [{id(each) for each in root.parameters()} for root in roots]
    own = [name for name, each in module.named_parameters() if sum(id(each) in ids for ids in owners) != 1]
    if own:
        raise ValueError(
            f"With manual optimization the weights of each child module are gathered when it is called, but {own[:5]}"
            f" belong to the `{type(module).__name__}` itself, or to several of its children. Put them into one child"
            " module with a `forward`, or apply `fully_shard` in `configure_model`."
        )
    return roots


def _uncovered(module: nn.Module) -> list[str]:
    """Names of parameters that are trained and not divided along "data_parallel", so that nobody averages gradients."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and whole_along(parameter, _DATA)
    ]


def _fill_divided(module: nn.Module, device: torch.device) -> None:
    """Fill what was divided on the meta device with the values that it has on one device.

    Args:
        module: Its layers are filled by their `reset_parameters`, in the order in which they were made; those without
            are left. Nothing happens if nothing was divided on the meta device.
        device: Where to.
    """
    if not any(isinstance(each, DTensor) and each.is_meta for each in module.parameters()):
        return
    made: dict[int, tuple[Any, nn.Parameter]] = {}  # by id of the one without memory, which is kept alive
    for layer in module.modules():
        empty = [(key, each) for key, each in layer.named_parameters(recurse=False) if each.is_meta]
        reset = getattr(layer, "reset_parameters", None)
        if not empty or not callable(reset):
            continue
        for key, part in empty:
            whole = torch.empty(part.shape, dtype=part.dtype, device=device)
            layer._parameters[key] = nn.Parameter(whole, requires_grad=part.requires_grad)
        reset()
        for key, part in empty:
            if id(part) not in made:
                made[id(part)] = part, _like(layer.get_parameter(key), part)
            layer._parameters[key] = made[id(part)][1]


def _like(filled: nn.Parameter, part: Any) -> nn.Parameter:
    """This process' part of a parameter, if it was divided."""
    if not isinstance(part, DTensor):
        return filled
    values = local_part(filled.detach(), part).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(values, requires_grad=part.requires_grad)
