"""The same module on several devices, each with its share of the data; gradients are averaged."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fulmen.strategies.ddp_hints import add_hint
from fulmen.strategies.launchers.choice import StartMethod, choose_launcher
from fulmen.strategies.launchers.launcher import Launcher
from fulmen.strategies.local_sgd import average_after_steps
from fulmen.strategies.manual_step import ManualStep, prepare_for_backward
from fulmen.strategies.optimizer_state import whole_optimizer_state
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.process_group import DEFAULT_TIMEOUT, check_timeout
from fulmen.strategies.route import Redirection
from fulmen.utilities.distributed import broadcast_tensors
from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
    from fulmen.plugins.io.checkpoint_io import CheckpointIO
    from fulmen.plugins.precision.precision import Precision
    from fulmen.utilities.registry import Registry

__all__ = ["DDPStrategy"]

_NAMES: dict[str, StartMethod] = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}


class DDPStrategy(ParallelStrategy):
    """Data parallel training with `torch.nn.parallel.DistributedDataParallel`.

    In fit the module is wrapped, if it has parameters that need gradients: weights and buffers are sent from rank 0 to
    all, gradients are averaged during the backward pass. In validate, test and predict nothing is wrapped; weights and
    buffers are sent from rank 0 once, so that all ranks compute with the same.

    A compiled module is wrapped as it is: inside the wrapper, the compiler cuts its graphs where gradients are sent, so
    that computing and sending overlap. `torch.compile(ddp_module)` does the same; that is what Fabric does.

    Args:
        accelerator: The kind of hardware; by default that of `root_device`.
        parallel_devices: The devices of this machine, one per process.
        cluster_environment: Says which of the processes this one is, and where they meet.
        checkpoint_io: Writes and reads checkpoints; a `TorchCheckpointIO` by default.
        precision_plugin: The number format; 32 bit by default.
        ddp_comm_state: State of the communication hook.
        ddp_comm_hook: Sends gradients in its own way, e.g. compressed: see
            `DistributedDataParallel.register_comm_hook`.
        ddp_comm_wrapper: Wraps that hook, e.g. `default_hooks.fp16_compress_wrapper`.
        model_averaging_period: Average the weights every so many steps, instead of gradients in each (post-local SGD);
            the state of the hook must be a `PostLocalSGDState`.
        process_group_backend: "nccl", "gloo", ...; by default torch's choice for the device.
        timeout: How long a collective waits for the other processes.
        start_method: How processes are made: "popen" reruns the script, "spawn", "fork" and "forkserver" run only the
            function.
        kwargs: Arguments of `DistributedDataParallel`: `find_unused_parameters`, `static_graph`,
            `gradient_as_bucket_view`, `bucket_cap_mb`, `broadcast_buffers`, ...

    Example::

        Trainer(devices=2, strategy=DDPStrategy(gradient_as_bucket_view=True, static_graph=True))
    """

    strategy_name = "ddp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        model_averaging_period: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        start_method: StartMethod = "popen",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        if model_averaging_period is not None and ddp_comm_state is None:
            raise ValueError(
                f"`DDPStrategy(model_averaging_period={model_averaging_period})` does not say when to begin."
                " Pass `ddp_comm_state=PostLocalSGDState(...)` and `ddp_comm_hook=post_localSGD_hook` from"
                " `torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook`."
            )
        # settings
        self._ddp_comm_state = ddp_comm_state
        self._ddp_comm_hook = ddp_comm_hook
        self._ddp_comm_wrapper = ddp_comm_wrapper
        self._model_averaging_period = model_averaging_period
        self._backend = process_group_backend
        self._timeout = check_timeout(timeout, self)
        self._start_method = start_method
        self._ddp_kwargs = kwargs
        # state
        self._launcher: Launcher | None = None
        self._wrappers: list[weakref.ref[nn.Module]] = []
        self._has_synced_layers = False
        self._is_manual = False

    @classmethod
    def register_strategies(cls, strategy_registry: Registry[Any]) -> None:
        """Enter this class under its names.

        Args:
            strategy_registry: Where to enter it.
        """
        for name, start_method in _NAMES.items():
            strategy_registry.register(
                name, cls, description=f"DDP strategy with `start_method={start_method!r}`", start_method=start_method
            )
            for finds in (False, True):
                strategy_registry.register(
                    f"{name}_find_unused_parameters_{str(finds).lower()}",
                    cls,
                    description=f"as {name}, with `find_unused_parameters={finds}`",
                    find_unused_parameters=finds,
                    start_method=start_method,
                )

    # ---- where

    @property
    def averages_gradients_plainly(self) -> bool:
        """Whether torch's wrapper exchanges gradients in its own way, so that a mean over ranks does the same."""
        is_special = self._ddp_comm_hook is not None or self._model_averaging_period is not None
        return not is_special and type(self).setup_module is DDPStrategy.setup_module

    @property
    def shares_buffers(self) -> bool:
        """Whether all processes evaluate with the buffers of rank 0, unless `broadcast_buffers=False`."""
        return bool(self._ddp_kwargs.get("broadcast_buffers", True))

    @property
    def start_method(self) -> StartMethod:
        """How processes are made, where nothing else has made them."""
        return self._start_method

    @property
    def launcher(self) -> Launcher | None:
        """Makes the processes, or knows that they exist."""
        if self._launcher is None:
            self._launcher = self._make_launcher()
        return self._launcher

    def _make_launcher(self) -> Launcher:
        self._known_environment()
        return choose_launcher(self, self._start_method)

    # ---- prepare

    def prepare_model(self, trainer: Any) -> None:
        """Wrap the module in fit; else send its weights from rank 0 to all.

        Args:
            trainer: The running Trainer.
        """
        if trainer.state.fn != "fit":
            self.broadcast_module(self._model)
            return
        self._is_manual = not getattr(self._lightning_module, "automatic_optimization", True)
        if self._is_manual and self._ddp_kwargs.get("static_graph"):
            raise MisconfigurationException(
                "`DDPStrategy(static_graph=True)` and `automatic_optimization = False` exclude each other: with a"
                " static graph, torch sends the first gradients when the outputs of `training_step` are differentiated,"
                " and with manual optimization that has happened before. Leave `static_graph` out."
            )
        self._has_synced_layers = self.layer_sync is not None
        self._apply_layer_sync()
        self.configure_ddp()

    def configure_ddp(self) -> None:
        """Wrap the module of the run; override it to wrap in another way."""
        self._model = self.setup_module(self._model)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Wrap a module, if any of its parameters needs gradients.

        Args:
            module: The module, on its device.

        Returns:
            The module in `DistributedDataParallel`, or the module itself.
        """
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self.broadcast_module(module)
            return module
        kwargs = {"process_group": self.process_group, **self._ddp_kwargs}
        wrapper = DistributedDataParallel(module, device_ids=self.determine_ddp_device_ids(), **kwargs)
        if self._ddp_comm_hook is not None:
            hook = self._ddp_comm_hook
            if self._ddp_comm_wrapper is not None:
                hook = self._ddp_comm_wrapper(hook)
            wrapper.register_comm_hook(self._ddp_comm_state, hook)
        self._wrappers.append(weakref.ref(wrapper))
        return wrapper

    def determine_ddp_device_ids(self) -> list[int] | None:
        """Return what `DistributedDataParallel` gets as `device_ids`: the index of this process' GPU, if it has one."""
        return None if self.root_device.index is None or self.root_device.type == "cpu" else [self.root_device.index]

    def broadcast_module(self, module: nn.Module) -> None:
        """Overwrite parameters and buffers with those of rank 0.

        Args:
            module: The module, on its device.
        """
        if self.world_size > 1:
            self._num_exchanges += 1
            for tensor in (*module.parameters(), *module.buffers()):
                broadcast_tensors([tensor], group=self._group_of(tensor, None))

    def setup_optimizers(self, trainer: Any) -> None:
        """Take the optimizers and schedulers that the user configured.

        Args:
            trainer: The running Trainer; its `configured_optimizers()` returns both.
        """
        super().setup_optimizers(trainer)
        self._optimizers = [self.setup_optimizer(optimizer) for optimizer in self._optimizers]

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Prepare an optimizer: with `model_averaging_period`, its steps average the weights now and then.

        Args:
            optimizer: The optimizer; modified in place.

        Returns:
            The optimizer.
        """
        if self._model_averaging_period is not None:
            average_after_steps(
                optimizer, self._ddp_comm_state, period=self._model_averaging_period, group=self.process_group
            )
        return optimizer

    # ---- step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's `training_step` through the wrapper."""
        module, wrapper = self._lightning_module, self._model
        if wrapper is module:
            return module.training_step(*args, **kwargs)
        route = ManualStep(module, wrapper) if self._is_manual else Redirection(module, module.training_step)
        with route:
            return wrapper(*args, **kwargs)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """In manual optimization, make the wrapper ready for this backward pass, of which there may be several.

        Args:
            closure_loss: The loss, not scaled.
        """
        if self._is_manual and isinstance(self._model, DistributedDataParallel):
            prepare_for_backward(self._model, closure_loss)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context whose forward and backward passes leave gradients unsynchronized, for accumulation.

        Args:
            module: The wrapped module.
            enabled: False makes the context do nothing.

        Returns:
            The context.

        Raises:
            TypeError: The module was not wrapped, so its gradients are never synchronized.
        """
        if not enabled:
            return nullcontext()
        inner: Any = module
        while not isinstance(inner, DistributedDataParallel):
            following = getattr(inner, "_orig_mod", None)
            if following is None:
                break
            inner = following
        if isinstance(inner, DistributedDataParallel):
            return inner.no_sync()
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise TypeError(
                f"Gradients of a `{type(module).__name__}` that is not wrapped are not synchronized, so there is"
                " nothing to switch off. Pass the module that `setup` returned."
            )
        return nullcontext()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """Return a context whose steps leave gradients unsynchronized, for accumulation."""
        model = self._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    # ---- keep

    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer; all ranks must ask for it.

        Args:
            optimizer: The optimizer. The shares of a `ZeroRedundancyOptimizer` are collected on rank 0.

        Returns:
            The state, on rank 0 whole.
        """
        return whole_optimizer_state(optimizer, is_global_zero=self.is_global_zero)

    # ---- end

    def on_exception(self, exception: BaseException) -> None:
        """Add to errors of torch's wrapper what to do about them.

        Args:
            exception: The exception.
        """
        add_hint(exception, [wrapper for reference in self._wrappers if (wrapper := reference()) is not None])

    def report_fault(self, error: BaseException) -> None:
        """Tell the other processes at once that this one fails.

        Args:
            error: What leaves this process; errors of torch's wrapper get a hint what to do.
        """
        self.on_exception(error)
        super().report_fault(error)

    def teardown(self) -> None:
        """Unwrap the module, put its own layers back, and bring it and the optimizers back to host memory."""
        self._model = self._lightning_module
        self._wrappers.clear()
        if self._has_synced_layers and self.layer_sync is not None:
            self._model = self.layer_sync.revert(self._model)
            self._has_synced_layers = False
        super().teardown()
