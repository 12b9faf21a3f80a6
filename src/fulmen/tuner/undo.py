"""What makes a search leave no trace: parts of its own for the Trainer, and a snapshot of all that training changes."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from fulmen.data.position import is_stateful
from fulmen.data.rng import find_generators, generator_state, set_generator_state
from fulmen.loggers.logger import DummyLogger
from fulmen.profilers.base import PassThroughProfiler
from fulmen.utilities.memory import copy_to_host
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from fulmen.utilities.tree import apply_to_collection

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["Snapshot", "own_parts", "with_own_workers"]

_LOOPS = ("validate_loop", "test_loop", "predict_loop")
_CONTAINERS = (dict, list, set, deque)


class Snapshot:
    """The state of a module, its datamodule, optimizers, schedulers, loaders and random numbers, in host memory.

    Attributes of modules and datamodule come back as they were: which object it was, and the content of tensors,
    dictionaries, lists and sets. Objects of other kinds come back as the same object, not with an earlier content.

    Args:
        trainer: The Trainer; a running one has the optimizers to keep.
        module: The module.
        datamodule: The datamodule.
        given: The loaders given to the run, in any structure.
    """

    def __init__(self, trainer: Trainer, module: Any, datamodule: Any = None, given: Any = None) -> None:
        self._undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no id is used twice
        parameters = list(module.parameters())
        for parameter in parameters:
            self._keep_parameter(parameter)
        for child in module.modules():
            if not isinstance(child, torch.jit.ScriptModule):
                self._keep_object(child, with_tensors=True)
        for buffer in module.buffers():
            self._keep_tensor(buffer)
        self._keep_object(datamodule, with_tensors=False)
        for optimizer in trainer.optimizers:
            self._keep_object(optimizer, with_tensors=True)
        for config in trainer.lr_scheduler_configs:
            self._keep_object(config.scheduler, with_tensors=True)
        self._keep_object(trainer.scaler, with_tensors=True)
        self._keep_generators([*vars(module).values(), datamodule, given], without=[trainer, module])
        for loader in _flat(given):
            self._keep_position(loader)
        states = collect_rng_states()
        self._undo.append(lambda: set_rng_states(states))

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back, in place; the snapshot can be used again."""
        for undo in self._undo:
            undo()

    # ---- kinds of things
    def _is_new(self, thing: Any) -> bool:
        if id(thing) in self._seen:
            return False
        self._seen.add(id(thing))
        self._alive.append(thing)
        return True

    def _keep_tensor(self, tensor: Tensor) -> None:
        if not self._is_new(tensor) or is_lazy(tensor):
            return
        content = copy_to_host(tensor)
        self._undo.append(lambda: _write(tensor, content))

    def _keep_parameter(self, parameter: Tensor) -> None:
        requires_grad, grad = parameter.requires_grad, parameter.grad
        content = None if grad is None else copy_to_host(grad)

        def undo() -> None:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
            if grad is not None:
                grad.copy_(content)  # type: ignore[arg-type]  # kept where there is a gradient

        self._keep_tensor(parameter)
        self._undo.append(undo)

    def _keep_object(self, thing: Any, *, with_tensors: bool) -> None:
        if thing is None or not self._is_new(thing):
            return
        attributes = dict(vars(thing))
        own = vars(thing)

        def undo() -> None:
            own.clear()
            own.update(attributes)

        self._undo.append(undo)
        for value in attributes.values():
            self._keep_value(value, with_tensors)

    def _keep_value(self, value: Any, with_tensors: bool) -> None:
        if isinstance(value, Tensor):
            if with_tensors:
                self._keep_tensor(value)
        elif isinstance(value, LRScheduler):  # one of several in a row
            self._keep_object(value, with_tensors=with_tensors)
        elif isinstance(value, _CONTAINERS) and self._is_new(value):
            self._undo.append(_refill(value))
            for item in list(value.values() if isinstance(value, dict) else value):
                self._keep_value(item, with_tensors)

    def _keep_generators(self, roots: list[Any], *, without: list[Any]) -> None:
        for generator in find_generators(roots, without=without):
            self._undo.append(_bound(set_generator_state, generator, generator_state(generator)))

    def _keep_position(self, loader: Any) -> None:
        for owner in (loader, getattr(loader, "dataset", None)):
            if owner is not None and is_stateful(owner):
                self._undo.append(_bound(owner.load_state_dict, copy.deepcopy(owner.state_dict())))


@contextmanager
def own_parts(trainer: Trainer) -> Iterator[None]:
    """Context in which a Trainer has fresh loops, counters, metrics and events, and no callbacks or real loggers.

    Afterwards every attribute is the object that it was before.

    Args:
        trainer: The Trainer.
    """
    kept = dict(vars(trainer))
    has_loggers = bool(trainer.loggers)
    try:
        trainer.state = copy.copy(trainer.state)
        trainer.scope = type(trainer.scope)()
        trainer.metrics = type(trainer.metrics)(trainer.scope, muted=trainer.barebones)
        trainer.history = type(trainer.history)(trainer.state)
        trainer.loggers = [DummyLogger()] if has_loggers else []
        trainer.callbacks = []
        trainer.profiler = PassThroughProfiler()
        trainer.sources = copy.copy(trainer.sources)
        trainer.events = type(trainer.events)(trainer)
        trainer.signals = type(trainer.signals)()
        trainer.run_record = type(trainer.run_record)()
        trainer.fit_loop = type(trainer.fit_loop)(trainer, trainer.fit_loop.limits)
        for name in _LOOPS:
            loop = getattr(trainer, name)
            setattr(trainer, name, type(loop)(trainer, loop.stage) if hasattr(loop, "stage") else type(loop)(trainer))
        trainer.should_stop = False
        trainer.keep_checkpoint(None)
        trainer.ckpt_path = None
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(kept)


def with_own_workers(given: Any) -> Any:
    """Return loaders like those given that start worker processes of their own, and leave running ones alone.

    Args:
        given: Loaders in any structure.
    """
    return apply_to_collection(given, DataLoader, _without_workers)


def _without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    if loader._iterator is None:
        return loader
    other = copy.copy(loader)
    other._iterator = None
    return other


def _flat(given: Any) -> list[Any]:
    found: list[Any] = []
    for each in given.values() if isinstance(given, dict) else given if isinstance(given, (list, tuple)) else [given]:
        found += _flat(each) if isinstance(each, (dict, list, tuple)) else [each]
    return found


def _write(tensor: Tensor, content: Tensor) -> None:
    if tensor.shape != content.shape:
        tensor.resize_(content.shape)
    tensor.detach().copy_(content)


def _bound(function: Callable[..., Any], *args: Any) -> Callable[[], None]:
    def call() -> None:
        function(*args)

    return call


def _refill(container: Any) -> Callable[[], None]:
    content = container.copy()
    add = container.extend if isinstance(container, (list, deque)) else container.update

    def undo() -> None:
        container.clear()
        add(content)

    return undo
