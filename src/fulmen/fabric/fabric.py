"""Fabric: device, precision, processes and checkpoints for a loop that the user writes.

launch -> setup, setup_dataloaders -> your loop: model(batch), fabric.backward(loss), optimizer.step() -> save
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fulmen.fabric import checkpoint, preparation
from fulmen.fabric.callbacks import all_callbacks, call_each
from fulmen.fabric.gate import BackwardGate
from fulmen.fabric.loaders import wrap_dataloader
from fulmen.fabric.settings import resolve_settings, started_by_command
from fulmen.fabric.wrappers import unwrap_module, unwrap_optimizer, wrap_optimizer, wrapped_module
from fulmen.plugins.precision.precision import Precision
from fulmen.strategies.random_numbers import draw_alike
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.rank_zero import rank_zero_deprecation
from fulmen.utilities.seed import seed_everything
from fulmen.utilities.tree import apply_to_collection, convert_tensors_to_scalars, convert_to_tensors

if TYPE_CHECKING:
    from fulmen.accelerators.accelerator import Accelerator
    from fulmen.engine.resolve import Plugin
    from fulmen.loggers.logger import Logger
    from fulmen.utilities.types import _PATH

__all__ = ["Fabric"]


def _do_nothing(fabric: Fabric) -> None:
    """The function to launch where the rest of the script follows."""


class Fabric:
    """Runs a loop that you write on any device, in any precision, in any number of processes.

    Subclass it and write `run` to have the loop in a class: calling `run` launches it.

    Args:
        accelerator: "cpu", "gpu", "cuda", "mps", "tpu", "auto", or an `Accelerator`.
        strategy: How several devices work together: a name such as "ddp", "auto", or a `Strategy`.
        devices: How many devices, or which, on each machine; "auto" for all.
        num_nodes: Number of machines.
        precision: Number format, e.g. "bf16-mixed"; `None` for "32-true".
        plugins: A `Precision`, `CheckpointIO`, `ClusterEnvironment`, or several of them.
        callbacks: An object, or a list of objects, whose methods `call` calls.
        loggers: A logger or a list of loggers, for `log` and `log_dict`.

    The environment variables `LT_ACCELERATOR`, `LT_STRATEGY`, `LT_DEVICES`, `LT_NUM_NODES` and `LT_PRECISION` replace
    the arguments; `fulmen run` sets them.

    Raises:
        ValueError: A value is not known, or excludes another.
        TypeError: A value is of a wrong type.
        RuntimeError: The hardware is not there.

    Example::

        fabric = Fabric(accelerator="auto", devices=2)
        fabric.launch()
        model, optimizer = fabric.setup(model, optimizer)
        batches = fabric.setup_dataloaders(DataLoader(dataset, batch_size=32, shuffle=True))
        for batch in batches:
            optimizer.zero_grad()
            fabric.backward(model(batch).mean())
            optimizer.step()
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        plugins: Plugin | Iterable[Plugin] | None = None,
        callbacks: list[Any] | Any | None = None,
        loggers: Logger | list[Logger] | None = None,
    ) -> None:
        # ---- settings
        if started_by_command() and type(self).run is not Fabric.run:
            raise TypeError(
                f"`{type(self).__name__}.run` is overridden, and the script was started by `fulmen run`: both launch."
                " Start the script by `python`, or call your loop without `run`."
            )
        # ---- parts
        self._strategy = resolve_settings(
            plugins,
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
        )
        self._precision = self._strategy.precision_plugin
        self._callbacks: list[Any] = all_callbacks(callbacks)
        self._loggers: list[Any] = list(loggers) if isinstance(loggers, (list, tuple)) else [loggers] if loggers else []
        self._gate = BackwardGate(is_needed=_has_own_backward(self._strategy))
        self._asks_for_module = _replaces_backward(self._strategy)
        # ---- state
        self._is_launched = False
        self._is_running = False  # inside `run` of a subclass
        self._num_models = 0
        self._optimizers_of: dict[int, list[Any]] = {}  # by id of a module that asks for them
        if started_by_command():
            self._start(_do_nothing, (), {})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "run" in vars(cls):
            cls.run = _launching(cls.run)  # type: ignore[method-assign]  # calls what it replaces

    # ---- where

    @property
    def accelerator(self) -> Accelerator:
        """The kind of hardware."""
        return self._strategy.accelerator

    @property
    def strategy(self) -> Strategy:
        """How the processes work together."""
        return self._strategy

    @property
    def device(self) -> torch.device:
        """The device of this process; create tensors on it."""
        return self._strategy.root_device

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""
        return self._strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self._strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self._strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process of all."""
        return self._strategy.is_global_zero

    @property
    def loggers(self) -> list[Logger]:
        """The loggers."""
        return self._loggers

    @property
    def logger(self) -> Logger:
        """The first logger.

        Raises:
            IndexError: There is none.
        """
        return self._loggers[0]  # type: ignore[no-any-return]  # a list of any, as users give what looks like a logger

    # ---- launch

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Your loop, in a subclass; calling it launches the processes first."""

    def launch(self, function: Callable[..., Any] = _do_nothing, *args: Any, **kwargs: Any) -> Any:
        """Start the processes, and run a function in each.

        Args:
            function: Called with this object and the arguments. Without it the rest of the script runs in each process;
                the strategies that start processes by `multiprocessing` cannot do that.
            args: Passed to the function.
            kwargs: Passed to the function.

        Returns:
            What the function returned, in the first process.

        Raises:
            RuntimeError: `fulmen run` started the script, and the processes with it.
            TypeError: The function cannot be called with this object, or there is none and the strategy needs one.
        """
        if started_by_command():
            raise RuntimeError(
                "This script was started by `fulmen run`, which made the processes already, so `.launch()` has nothing"
                " to start. Remove the call, or start the script by `python`."
            )
        launcher = self._strategy.launcher
        if function is _do_nothing and launcher is not None and not _runs_scripts(launcher):
            raise TypeError(
                f"`Fabric.launch()` with the strategy `{type(self._strategy).__name__}` needs a function, as processes"
                " made by `multiprocessing` begin there. Pass it: `fabric.launch(train)`."
            )
        preparation.check_function(function)
        return self._start(function, args, kwargs)

    def _start(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        launcher = self._strategy.launcher
        if launcher is None:
            return _in_process(self, function, args, kwargs)
        result = launcher.launch(_in_process, self, function, args, kwargs)
        self._is_launched = self._is_launched or _runs_scripts(launcher)
        return result

    def _check_launched(self) -> None:
        if not self._is_launched and self._strategy.launcher is not None:
            raise RuntimeError(
                "To use Fabric with more than one device, you must call `.launch()` first, or start the script by"
                " `fulmen run`."
            )

    # ---- set up

    def setup(
        self,
        module: nn.Module,
        *optimizers: Optimizer,
        scheduler: Any | None = None,
        move_to_device: bool = True,
        _reapply_compile: bool = True,
    ) -> Any:
        """Prepare a module and its optimizers: convert, move, wrap.

        Args:
            module: The module; one that `torch.compile` returned is compiled anew, around what the strategy made of it.
            optimizers: Its optimizers.
            scheduler: A scheduler, for strategies that step it themselves.
            move_to_device: False if you place the module yourself.

        Returns:
            The module; or a tuple of module, optimizers and the scheduler if one was given. Use these in the loop.

        Raises:
            ValueError: Something was set up before.
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        preparation.check_setup(module, optimizers)
        wrapped, stepped, scheduler = preparation.set_up_module(
            self._strategy,
            module,
            optimizers,
            scheduler,
            gate=self._gate,
            move_to_device=move_to_device,
            reapply_compile=_reapply_compile,
        )
        self._num_models += 1
        self._attach(wrapped.module)
        wrapped_optimizers = [wrap_optimizer(optimizer, self._strategy, self._callbacks) for optimizer in stepped]
        self._optimizers_of[id(wrapped.module)] = wrapped_optimizers
        self.call("on_after_setup", fabric=self, module=wrapped)
        if not optimizers and scheduler is None:
            return wrapped
        return (wrapped, *wrapped_optimizers, *(() if scheduler is None else (scheduler,)))

    def setup_module(self, module: nn.Module, move_to_device: bool = True, _reapply_compile: bool = True) -> Any:
        """Prepare a module by itself; for its optimizers call `setup_optimizers` after this.

        Args:
            module: The module.
            move_to_device: False if you place the module yourself.

        Returns:
            The module to use in the loop.

        Raises:
            ValueError: It was set up before.
            RuntimeError: `launch` was not called.
        """
        return self.setup(module, move_to_device=move_to_device, _reapply_compile=_reapply_compile)

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Prepare optimizers by themselves, after the module.

        Args:
            optimizers: The optimizers.

        Returns:
            The optimizer, or a tuple of several. Use these in the loop.

        Raises:
            ValueError: None is given, or one was set up before.
            TypeError: Something else than an optimizer is given.
            RuntimeError: `launch` was not called, a parameter has no data, or the strategy needs the module as well.
        """
        self._check_launched()
        preparation.check_optimizers(optimizers)
        stepped = [self._strategy.setup_optimizer(optimizer) for optimizer in optimizers]
        wrapped = [wrap_optimizer(optimizer, self._strategy, self._callbacks) for optimizer in stepped]
        return wrapped[0] if len(wrapped) == 1 else tuple(wrapped)

    def setup_dataloaders(
        self, *dataloaders: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Prepare loaders: each process gets its part of the data, and batches come on the device.

        Args:
            dataloaders: The loaders.
            use_distributed_sampler: False if your samplers or datasets know of the processes.
            move_to_device: False if you move the batches yourself.

        Returns:
            The loader, or a list of several. Use these in the loop.

        Raises:
            ValueError: None is given, or one was set up before.
            TypeError: Something else than a `DataLoader` is given.
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        preparation.check_dataloaders(dataloaders)
        with preparation.as_value_error():
            wrapped = [
                wrap_dataloader(
                    dataloader,
                    self._strategy,
                    use_distributed_sampler=use_distributed_sampler,
                    move_to_device=move_to_device,
                )
                for dataloader in dataloaders
            ]
        return wrapped[0] if len(wrapped) == 1 else wrapped

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Return a context in which a new module gets its parameters in place: on the device, in the right type.

        Args:
            empty_init: Leave parameters uninitialized, for weights that are loaded anyway.

        Raises:
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        return self._strategy.module_init_context(empty_init=empty_init)

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Return a context in which new tensors are made in place: on the device, in the right type."""
        return self._strategy.tensor_init_context()

    @contextmanager
    def sharded_model(self) -> Generator[None, None, None]:
        """Return a context in which a large module is made in shards. Deprecated: use `init_module`.

        Raises:
            RuntimeError: `launch` was not called.
        """
        rank_zero_deprecation(
            "`Fabric.sharded_model()` is deprecated: make the module inside `with fabric.init_module():` and call"
            " `fabric.setup()`.",
            stacklevel=6,
        )
        self._check_launched()
        with self._strategy.model_sharded_context():
            yield

    # ---- step

    def backward(self, tensor: Tensor, *args: Any, model: Any | None = None, **kwargs: Any) -> None:
        """Compute gradients; use it in place of `loss.backward()`.

        Args:
            tensor: The loss.
            args: Further arguments of `Tensor.backward`.
            model: The wrapped module that the loss came from, for strategies that run its backward pass.
            kwargs: Further arguments of `Tensor.backward`.

        Raises:
            RuntimeError: The strategy needs `model`, because there are several.
        """
        # open: the strategy left the backward pass to a LightningModule, which came back here
        if not self._gate.is_needed or self._gate.is_open:
            tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # of torch
            return
        wrapped = wrapped_module(model)
        module = None if wrapped is None else unwrap_module(wrapped)
        with self._gate.opened():
            scaled = self._precision.pre_backward(tensor, module)
            self._strategy.run_backward(scaled, module if self._asks_for_module else None, *args, **kwargs)
            self._precision.post_backward(scaled, module)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return a context whose backward passes leave gradients unsynchronized, for accumulation.

        Run forward and backward in it for all but the last batch of a window.

        Args:
            module: What `setup` returned.
            enabled: False makes the context do nothing.

        Raises:
            TypeError: The module was not set up.
        """
        wrapped = wrapped_module(module)
        if wrapped is None:
            raise TypeError(
                f"`Fabric.no_backward_sync()` got a `{type(module).__name__}` that was not set up, so there is nothing"
                " to hold back. Set it up first: `model = fabric.setup(model)`."
            )
        return self._strategy.no_backward_sync(unwrap_module(wrapped), enabled)

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        clip_val: float | int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer, between backward and step.

        Args:
            module: The module.
            optimizer: Its optimizer.
            clip_val: Clamp each entry to [-clip_val, clip_val].
            max_norm: Scale all so that their total norm is at most this.
            norm_type: Which norm.
            error_if_nonfinite: Raise if the norm is not finite.

        Returns:
            The total norm before clipping, for `max_norm`.

        Raises:
            ValueError: Not exactly one of `clip_val` and `max_norm` is given.
            RuntimeError: The norm is not finite, and that is to be an error.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(
                f"`Fabric.clip_gradients(clip_val={clip_val!r}, max_norm={max_norm!r})`: one of the two says how to"
                " clip. Pass exactly one."
            )
        module, optimizer = unwrap_module(module), unwrap_optimizer(optimizer)
        if clip_val is not None:
            self._strategy.clip_gradients_value(module, optimizer, clip_val=float(clip_val))
            return None
        return self._strategy.clip_gradients_norm(
            module,
            optimizer,
            max_norm=float(cast(float, max_norm)),
            norm_type=norm_type,
            error_if_nonfinite=error_if_nonfinite,
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the precision, for computation outside the wrapped module."""
        return self._precision.forward_context()

    def to_device(self, obj: Any) -> Any:
        """Move a module, a tensor or a collection of tensors to the device of this process.

        Args:
            obj: What to move; a module is moved in place.

        Returns:
            The moved object.
        """
        if isinstance(obj, nn.Module):
            self.accelerator.setup_device(self.device)
            self._strategy.module_to_device(obj)
            return obj
        return self._strategy.batch_to_device(obj, device=self.device)

    # ---- talk

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once on each machine; takes the arguments of `print`."""
        if self.local_rank == 0:
            print(*args, **kwargs)  # noqa: T201 - that is its purpose

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes.

        Args:
            name: What for; appears in reports of hangs.

        Raises:
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        self._strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Send an object from one process to all.

        Args:
            obj: The object; it must be possible to pickle it.
            src: The rank that sends.

        Returns:
            The object of rank `src`.

        Raises:
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        return self._strategy.broadcast(obj, src)

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Stack what all processes have.

        Args:
            data: Tensors and numbers, nested in collections.
            group: The processes; all by default.
            sync_grads: Let gradients flow back.

        Returns:
            The collection with tensors that have a new first dimension, of the size of the world. With a strategy for
            one device there is no new dimension.

        Raises:
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        data = convert_to_tensors(data, self.device)
        return apply_to_collection(data, Tensor, self._strategy.all_gather, group=group, sync_grads=sync_grads)

    def all_reduce(self, data: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce what all processes have.

        Args:
            data: Tensors and numbers, nested in collections.
            group: The processes; all by default. Where several work on one batch together (tensor parallel), a "sum"
                over all counts the batch as often: pass `fabric.strategy.data_parallel_group` to count it once.
            reduce_op: "mean", "sum" or an operator of `torch.distributed`.

        Returns:
            The collection with reduced tensors; tensors on the device may be those passed, overwritten.

        Raises:
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        data = convert_to_tensors(data, self.device)
        return apply_to_collection(data, Tensor, self._strategy.all_reduce, group=group, reduce_op=reduce_op)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Generator[None, None, None]:
        """Run the block in the first process before the others, e.g. to download data once.

        Args:
            local: First on each machine, for folders that machines do not share.
        """
        rank = self.local_rank if local else self.global_rank
        if rank > 0:
            self._strategy.barrier("rank_zero_first")
        yield
        if rank == 0:
            self._strategy.barrier("rank_zero_first")

    # ---- keep

    def save(
        self, path: _PATH, state: dict[str, Any], filter: Mapping[str, Callable[[str, Any], bool]] | None = None
    ) -> None:
        """Save modules, optimizers and plain values in one checkpoint. All processes must call it.

        Args:
            path: Where to.
            state: Name to module, optimizer, anything with `state_dict`, or plain value.
            filter: For some of the names, which entries of its state to save: called with key and value.

        Raises:
            TypeError: A filter cannot be called, or `filter` is no dictionary.
            ValueError: `filter` has a name that `state` has not.
            RuntimeError: `launch` was not called.
        """
        self._check_launched()
        with preparation.as_value_error():
            checkpoint.save(self._strategy, path, state, filter)
        self.barrier("save")

    def load(
        self, path: _PATH, state: dict[str, Any] | None = None, strict: bool = True, *, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint into the objects it was saved from. All processes must call it.

        Args:
            path: Where from.
            state: Name to object, restored in place, or to plain value, replaced in this dictionary.
            strict: Each name of `state`, and each weight of a module, must be in the checkpoint.
            weights_only: Refuse everything but tensors and plain data.

        Returns:
            The rest of the checkpoint, under names that `state` has not.

        Raises:
            KeyError: The checkpoint lacks a name.
            RuntimeError: Weights do not fit, or `launch` was not called.
        """
        self._check_launched()
        with preparation.as_value_error():
            rest = checkpoint.load(self._strategy, path, state, strict, weights_only)
        self.barrier("load")
        return rest

    def load_raw(
        self, path: _PATH, obj: nn.Module | Optimizer, strict: bool = True, *, weights_only: bool | None = None
    ) -> None:
        """Load a file that holds one `state_dict` and nothing else.

        Args:
            path: Where from.
            obj: The module or optimizer, wrapped or not.
            strict: Names of weights must be the same on both sides.
            weights_only: Refuse everything but tensors and plain data.
        """
        with preparation.as_value_error():
            checkpoint.load_raw(self._strategy, path, obj, strict, weights_only)

    # ---- callbacks, loggers, seeds

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of each callback that has it.

        Args:
            hook_name: Name of the method.
            args: Passed by position.
            kwargs: Passed by name, to methods that take that name.
        """
        call_each(self._callbacks, hook_name, args, kwargs)

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Send a value to all loggers.

        Args:
            name: Its name.
            value: A number, or a tensor with one element.
            step: Its place on the x axis; by default the logger counts.

        Raises:
            ValueError: A tensor does not have exactly one element.
        """
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send several values to all loggers.

        Args:
            metrics: Name to number, or to tensor with one element.
            step: Their place on the x axis; by default the logger counts.

        Raises:
            ValueError: A tensor does not have exactly one element.
        """
        if self._loggers:
            scalars = convert_tensors_to_scalars(metrics)
            for logger in self._loggers:
                logger.log_metrics(metrics=scalars, step=step)

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """Seed the generators of Python, NumPy and torch, and the workers of dataloaders.

        Args:
            seed: The seed; `None` takes `PL_GLOBAL_SEED`, or 0 with a warning.
            workers: Seed workers too; `None` for yes.
            verbose: Log the seed.

        Returns:
            The seed in use.
        """
        return seed_everything(seed, workers=True if workers is None else workers, verbose=verbose)

    # ---- modules that know of their Fabric

    def optimizers_of(self, module: nn.Module) -> list[Any]:
        """Return the optimizers that were set up together with a module.

        Args:
            module: The module, wrapped or not.
        """
        wrapped = wrapped_module(module)
        return self._optimizers_of.get(id(module if wrapped is None else wrapped.module), [])

    def _attach(self, module: nn.Module) -> None:
        """Let a LightningModule reach this object; it is a callback too."""
        if isinstance(getattr(type(module), "fabric", None), property):
            module.fabric = self  # type: ignore[assignment]  # a property of that class
            if not any(callback is module for callback in self._callbacks):
                self._callbacks.append(module)


def _in_process(fabric: Fabric, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Make this process ready and run the function; what launchers call in each process."""
    strategy = fabric.strategy
    try:
        strategy.setup_environment()
        draw_alike(strategy)
        fabric._is_launched = True
        return function(fabric, *args, **kwargs)
    except BaseException as error:
        strategy.report_fault(error)
        raise


def _launching(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make the `run` of a subclass launch first."""

    @functools.wraps(run)
    def launch_and_run(self: Fabric, *args: Any, **kwargs: Any) -> Any:
        if self._is_running:  # in the process, or called by the `run` of a subclass of the subclass
            return run(self, *args, **kwargs)
        return self._start(_call_run, args, kwargs)

    return launch_and_run


def _call_run(fabric: Fabric, *args: Any, **kwargs: Any) -> Any:
    fabric._is_running = True
    try:
        return fabric.run(*args, **kwargs)
    finally:
        fabric._is_running = False


def _runs_scripts(launcher: Any) -> bool:
    """Whether the processes of a launcher go on with the script after `launch`."""
    return not hasattr(launcher, "start_method")


def _has_own_backward(strategy: Strategy) -> bool:
    return _replaces_backward(strategy) or _replaces(strategy.precision_plugin, "pre_backward", "post_backward")


def _replaces_backward(strategy: Strategy) -> bool:
    """Whether other code than ours runs the backward pass; ours would leave it to a method `backward` of the module."""
    return type(strategy).run_backward is not Strategy.run_backward or _replaces(strategy.precision_plugin, "backward")


def _replaces(precision: Precision, *names: str) -> bool:
    return any(
        name in vars(precision) or getattr(type(precision), name) is not getattr(Precision, name) for name in names
    )
