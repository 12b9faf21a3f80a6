"""Several processes, one device each."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import SyncBatchNorm

from fulmen.strategies.fault_watch import FaultWatch
from fulmen.strategies.process_group import DEFAULT_TIMEOUT, Membership, current_membership, join_group
from fulmen.strategies.route import unwrapped
from fulmen.strategies.strategy import Strategy
from fulmen.utilities import distributed
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_only
from fulmen.utilities.sharded_gradients import has_shards
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.types import _PATH

__all__ = ["ParallelStrategy"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Place:
    """Which of the processes this one is, as an environment said."""

    environment: Any
    global_rank: int
    local_rank: int
    node_rank: int
    world_size: int


class ParallelStrategy(Strategy, ABC):
    """What strategies with several processes share: ranks, the process group, and how the processes talk.

    Life: `set_world_ranks` as soon as the environment is known; the launcher makes the processes; `setup_environment`
    in each of them joins the process group, which is left when the process ends, so several runs can follow each other.

    Tensors go over the process group, those on the CPU and objects over `control_group`. All ranks must call the same
    methods in the same order.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
    """

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        # settings
        self._parallel_devices = list(parallel_devices or [])
        self._num_nodes = 1
        self._backend: str | None = None
        self._timeout: timedelta | None = DEFAULT_TIMEOUT
        # parts
        self.cluster_environment = cluster_environment
        if cluster_environment is not None:
            self._chosen.add("cluster_environment")
        if parallel_devices:
            self._chosen.add("parallel_devices")
        # state
        self._local_rank: int | None = None
        self._place: _Place | None = None
        self._data_group: Any = None
        self._num_exchanges = 0
        self._is_alone = False  # after a fault: nobody is waited for any more

    # ---- where

    @property
    def root_device(self) -> torch.device:
        """The device of this process.

        Raises:
            RuntimeError: The devices are not known yet.
        """
        devices = self._parallel_devices
        if not devices:
            raise RuntimeError(
                f"`{type(self).__name__}` has no devices yet. Pass it to a `Trainer` or `Fabric`, which chooses them,"
                " or set its `parallel_devices`, e.g. to `[torch.device('cpu')] * 2`."
            )
        return devices[self.local_rank]

    @property
    def parallel_devices(self) -> list[torch.device]:
        """The devices of this machine, one per process; empty if nobody has said yet."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, parallel_devices: list[torch.device] | None) -> None:
        self._parallel_devices = list(parallel_devices or [])
        if parallel_devices:
            self._chosen.add("parallel_devices")
        else:  # whoever runs the strategy says, as if nobody had
            self._chosen.discard("parallel_devices")

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    def take_devices(self, parallel_devices: list[torch.device], num_nodes: int) -> None:
        """Fill in where to compute; a later call may replace it. Devices that came with the strategy stay.

        Args:
            parallel_devices: The devices of this machine, one per process.
            num_nodes: Number of machines.
        """
        if "parallel_devices" not in self._chosen:
            self._parallel_devices = list(parallel_devices)
        self.num_nodes = num_nodes

    @property
    def num_processes(self) -> int:
        """Processes on this machine."""
        return len(self._parallel_devices)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        place = self._known_place()
        return 1 if place is None else place.world_size

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""
        place = self._known_place()
        return 0 if place is None else place.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        place = self._known_place()
        return (self._local_rank or 0) if place is None else place.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        place = self._known_place()
        return 0 if place is None else place.node_rank

    @property
    def is_distributed(self) -> bool:
        """True: there may be several processes."""
        return True

    def set_local_rank(self, local_rank: int) -> None:
        """Make this process that one of its machine; for launchers, in a process that they made.

        Args:
            local_rank: Its number on the machine.
        """
        self._local_rank = local_rank
        self.set_world_ranks()

    def set_world_ranks(self) -> None:
        """Tell environment and `rank_zero_only` which process this is."""
        environment = self.cluster_environment
        if environment is None:
            return
        local_rank, node_rank = self._local_rank, environment.node_rank()
        if local_rank is None:
            local_rank = environment.local_rank()
        environment.set_global_rank(node_rank * self.num_processes + local_rank)
        environment.set_world_size(self.num_nodes * self.num_processes)
        self._place = _Place(
            environment,
            global_rank=environment.global_rank(),
            local_rank=local_rank,
            node_rank=node_rank,
            world_size=environment.world_size(),
        )
        rank_zero_only.rank = self._place.global_rank

    def _known_place(self) -> _Place | None:
        """Where this process is; asked once, as environments read variables each time."""
        if self._place is None or self._place.environment is not self.cluster_environment:
            self._place = None
            self.set_world_ranks()
        return self._place

    # ---- life

    @property
    def process_group_backend(self) -> str:
        """What moves tensors between processes: the one that was asked for, else torch's choice for the device."""
        return self._backend or dist.get_default_backend_for_device(self.root_device)

    @property
    def process_group(self) -> Any:
        """The group that tensors on the device go over.

        Raises:
            RuntimeError: The processes are not there yet.
        """
        return self._data_group if self._joined("process_group") else None

    @property
    def control_group(self) -> Any:
        """A group for objects and tensors on the CPU: gloo; the default group itself if that takes them.

        Raises:
            RuntimeError: The processes are not there yet.
        """
        return self._joined("control_group").control

    @property
    def fault_watch(self) -> FaultWatch | None:
        """Tells the other processes if this one fails; `None` before the processes know each other."""
        return FaultWatch.running()

    def setup_environment(self) -> None:
        """Make the device ready and join the other processes."""
        self.set_world_ranks()
        super().setup_environment()
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Join the process group, or use the one that is there, and begin to watch the other ranks."""
        self.set_world_ranks()
        self._is_alone = False
        environment, membership = self._known_environment(), current_membership()
        if membership is None and not distributed.is_group_initialized():
            place = environment.main_address, environment.main_port
            self._watch_others(place)  # before they wait for each other: one could be dead by then
        membership = join_group(
            backend=self.process_group_backend,
            address=environment.main_address,
            port=environment.main_port,
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self._timeout or DEFAULT_TIMEOUT,
            device=self.root_device,
        )
        if FaultWatch.running() is None and membership.meeting_point is not None:
            self._watch_others(membership.meeting_point)
        self._data_group = membership.group_for(self.root_device, self._backend)
        # No new seed here: the random numbers go on as those of one process do.

    def _known_environment(self) -> ClusterEnvironment:
        if self.cluster_environment is None:
            raise RuntimeError(
                f"`{type(self).__name__}` has no `cluster_environment`, so this process does not know where the others"
                " are. Pass the strategy to a `Trainer` or `Fabric`, which finds it, or set it, e.g. to"
                " `LightningEnvironment()`."
            )
        return self.cluster_environment

    def _watch_others(self, place: tuple[str, int]) -> None:
        if self.world_size > 1:
            address, port = place
            FaultWatch(address=address, port=port, rank=self.global_rank, world_size=self.world_size).start()

    def teardown(self) -> None:
        """Bring module and optimizers back to host memory; the process group stays, for the next run."""
        super().teardown()
        if self.cluster_environment is not None:
            self.cluster_environment.teardown()

    def _joined(self, wanted: str) -> Membership:
        membership = current_membership()
        if membership is None:
            self._raise_not_launched(wanted)
        if self._data_group is None:  # another strategy of this process has joined
            self._data_group = membership.group_for(self.root_device, self._backend)
        return membership

    def _raise_not_launched(self, wanted: str) -> NoReturn:
        raise RuntimeError(
            f"`{type(self).__name__}.{wanted}` needs the other processes, which have not been launched: this one is"
            " alone. With a Trainer, call it during a run, in a hook; with Fabric, after `fabric.launch()`."
        )

    def _apply_layer_sync(self) -> None:
        """Let layers of the module look at the batches of all processes, if that was asked for."""
        if self.layer_sync is None:
            return
        self._model = self.layer_sync.apply(self._model)
        if self.root_device.type == "cpu" and any(isinstance(each, SyncBatchNorm) for each in self._model.modules()):
            raise MisconfigurationException(
                "`Trainer(sync_batchnorm=True)` needs GPUs, as `torch.nn.SyncBatchNorm` does not compute on the CPU."
                " Leave it out, or choose `accelerator='gpu'`."
            )

    # ---- talk

    @property
    def num_exchanges(self) -> int:
        """Grows whenever this process takes part in an exchange, by these methods or by `torch.distributed` itself."""
        group: Any = dist.group.WORLD if distributed.is_group_initialized() else None
        count = getattr(group, "_get_sequence_number_for_group", None)  # only backends that count have it
        return self._num_exchanges if count is None else self._num_exchanges + int(count())

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce a value over all processes.

        Args:
            tensor: A tensor, a number, or a collection of them, of the same structure on all processes.
            group: The processes; all by default.
            reduce_op: "mean" ("avg"), "sum", "min", "max", "product", "band", "bor", "bxor" or an operator of
                `torch.distributed`.

        Returns:
            The same structure with reduced tensors. They are those passed, overwritten; but tensors that are part of a
            graph stay as they are, and the mean of integers is a new tensor of floats. Numbers come back as tensors.

        Raises:
            RuntimeError: The processes are not there yet.
            ValueError: There is no such operator.
        """
        self._joined("all_reduce")

        def reduce_one(value: Any) -> Tensor:
            if not isinstance(value, Tensor):
                value = torch.tensor(value, device=self.root_device)
            self._num_exchanges += 1
            return distributed.all_reduce(value, self._group_of(value, group), reduce_op)

        return apply_to_collection(tensor, (Tensor, bool, int, float), reduce_one)

    def all_gather(self, tensor: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Put the tensors of all processes side by side.

        Args:
            tensor: A tensor, a number, or a collection of them, of the same structure on all processes. Shapes may
                differ.
            group: The processes; all by default.
            sync_grads: Let gradients flow back: each process gets the sum of the gradients for its part.

        Returns:
            The same structure. Each tensor is stacked: its new first dimension is the number of processes. Where the
            shapes differ between processes, it is the list of their tensors instead; both give the tensors by rank when
            iterated, so `torch.cat(tuple(gathered))` works in either case.

        Raises:
            RuntimeError: The processes are not there yet, or pass different types of tensors.
        """
        membership = self._joined("all_gather")
        found: list[Tensor] = []

        def collect(value: Any) -> None:
            found.append(value if isinstance(value, Tensor) else torch.tensor(value, device=self.root_device))

        leaves = (Tensor, bool, int, float)
        apply_to_collection(tensor, leaves, collect)
        self._num_exchanges += 1
        control = membership.control if group is None else group
        groups = [self._group_of(value, group) for value in found]
        gathered = iter(distributed.all_gather(found, groups, sync_grads=sync_grads, control_group=control))
        return apply_to_collection(tensor, leaves, lambda _: next(gathered))

    def _group_of(self, tensor: Tensor, group: Any | None) -> Any:
        """The group that takes a tensor, where the user has not said."""
        if group is not None:
            return group
        return self.control_group if tensor.device.type == "cpu" else self.process_group

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Send an object from one process to all; as long as this process is alone, it is returned.

        Args:
            obj: Anything that can be pickled. Tensors that are on a device arrive on the device of the receiver.
            src: The rank that sends.

        Returns:
            The object of rank `src`.
        """
        membership = current_membership()
        if membership is None or self._is_alone:
            return obj
        self._num_exchanges += 1
        sent: T = distributed.broadcast_object(obj, src, self.root_device, membership.control)
        return sent

    def gather_objects(self, obj: T) -> list[T]:
        """Return what each process passed, by rank, on every process.

        Args:
            obj: What this process contributes; it is pickled.
        """
        if self._is_alone:
            return [obj]
        control = self._joined("gather_objects").control
        self._num_exchanges += 1
        return distributed.gather_objects(obj, control)

    def agree(self, values: list[int], op: Literal["max", "min", "sum"] = "max") -> list[int]:
        """Reduce some integers over all processes, in host memory: the cheapest way to decide something together.

        Args:
            values: As many on each process.
            op: How to reduce them.

        Returns:
            The reduced integers.
        """
        if self._is_alone:
            return values
        control = self._joined("agree").control
        self._num_exchanges += 1
        return distributed.agree(values, op, control)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Decide together.

        Args:
            decision: The opinion of this process.
            all: Whether all must agree; otherwise one is enough.

        Returns:
            The decision.
        """
        return bool(self.agree([int(decision)], "min" if all else "max")[0])

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes; as long as this process is alone, go on.

        Args:
            name: What for; not needed here.
        """
        membership = current_membership()
        if membership is not None and not self._is_alone:
            self._num_exchanges += 1
            dist.barrier(group=membership.control)

    # ---- evaluation

    @property
    def shares_buffers(self) -> bool:
        """Whether all processes evaluate with the buffers of rank 0, e.g. the statistics of batch normalization."""
        return True

    def on_validation_start(self) -> None:
        """Give all processes the buffers of the one whose buffers are saved: results belong to the checkpoint."""
        self._share_buffers()

    def on_test_start(self) -> None:
        """Give all processes the same buffers."""
        self._share_buffers()

    def on_predict_start(self) -> None:
        """Give all processes the same buffers."""
        self._share_buffers()

    def _share_buffers(self) -> None:
        if self._is_alone or not self.shares_buffers or self.data_parallel_size == 1:
            return
        kind, group = self.root_device.type, self.data_parallel_group
        buffers = [each for each in self._lightning_module.buffers() if each.is_floating_point()]
        plain = [each for each in buffers if each.device.type == kind and not has_shards((each,))]
        if plain:
            before, first = self.num_exchanges, 0 if group is None else dist.get_global_rank(group, 0)
            distributed.broadcast_tensors(plain, first, self._group_of(plain[0], group))
            self._num_exchanges -= self.num_exchanges - before  # all ranks come here; what is counted is in steps

    # ---- when something is wrong

    def meet(self, what: str, timeout_s: float = 30.0) -> None:
        """Make sure that all processes come to this point, instead of waiting for them in the next exchange.

        Args:
            what: What this process did, for the message: "stopped after 5 steps. ... what to do".
            timeout_s: How long to wait for the others, in seconds.

        Raises:
            RuntimeError: Not all have come.
        """
        membership = current_membership()
        if membership is None or self.world_size == 1:
            return
        if not membership.meet(self.world_size, timeout_s):
            raise RuntimeError(
                f"Rank {self.global_rank} of {self.world_size} {what}. Others did not come to this point within"
                f" {timeout_s:g} s."
            )

    def report_fault(self, error: BaseException) -> None:
        """Tell the other processes at once that this one fails.

        Args:
            error: What leaves this process.
        """
        watch = FaultWatch.running()
        if watch is not None:
            watch.report(error)
        self._is_alone = True  # what this rank does now, e.g. saving a checkpoint, the others do not do with it

    # ---- keep

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Return the weights of a module under the names the user gave them.

        Args:
            module: The module, wrapped or not.
        """
        return super().get_module_state_dict(unwrapped(module))

    def load_module_state_dict(self, module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load weights into a module.

        Args:
            module: The module, wrapped or not.
            state_dict: What `get_module_state_dict` returned.
            strict: Names must be the same on both sides.
        """
        super().load_module_state_dict(unwrapped(module), state_dict, strict=strict)

    def save_state(
        self,
        path: _PATH,
        state: dict[str, Any],
        storage_options: Any | None = None,
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:
        """Save modules, optimizers and plain values in one checkpoint, and wait until it is there.

        Args:
            path: Where to.
            state: Name to module, optimizer, anything with `state_dict`, or plain value.
            storage_options: For the `CheckpointIO`.
            filter: For some of the names, which entries of its state_dict to save: called with key and value.

        Raises:
            ValueError: `filter` has a name that `state` has not.
        """
        super().save_state(path, state, storage_options=storage_options, filter=filter)
        self.barrier("save_state")
