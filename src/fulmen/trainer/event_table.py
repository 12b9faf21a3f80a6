"""From `core.events` to callables: who really acts at each event of this run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fulmen.callbacks.checkpoint import Checkpoint
from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.core.events import EVENTS, PER_EPOCH, Event, Receiver
from fulmen.core.module import LightningModule
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from fulmen.metrics.publish import Scope
    from fulmen.profilers.profiler import Profiler
    from fulmen.trainer.trainer import Trainer

__all__ = ["Announcement", "EventTable", "Hook", "nothing", "owner_label"]

Hook = Callable[..., Any]


def nothing(*_: Any) -> None:
    """The event that nobody receives."""


class Announcement:
    """One event of a run: calls its receivers in order, and returns what the module's hook returned."""

    __slots__ = ("_first", "_last", "_module", "_name", "_scope")

    def __init__(self, name: str, scope: Scope, first: list[Hook], module: Hook | None, last: list[Hook]) -> None:
        self._name = name
        self._scope = scope
        self._first = tuple(first)
        self._module = module
        self._last = tuple(last)

    def __call__(self, *args: Any) -> Any:
        """Announce the event."""
        scope, result = self._scope, None
        outer, scope.hook = scope.hook, self._name
        try:
            for hook in self._first:
                hook(*args)
            if self._module is not None:
                result = self._module(*args)
            for hook in self._last:
                hook(*args)
        finally:
            scope.hook = outer
        return result


class EventTable:
    """One callable per event, as attributes: `events.on_train_batch_start(batch, batch_idx)`.

    An event that no receiver overrides is a function that does nothing; so hooks that are not used cost nothing.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._built_for: tuple[Any, ...] = ()
        for event in EVENTS:
            setattr(self, event.name, nothing)

    def __getattr__(self, name: str) -> Hook:
        raise AttributeError(f"There is no event {name!r}; see `fulmen.core.events`.")

    def build(self) -> None:
        """Find out who receives what in this run."""
        trainer = self._trainer
        self._built_for = self._signature()
        for event in EVENTS:
            setattr(self, event.name, self._announcement(event, trainer.profiler_or_none))

    def refresh(self) -> None:
        """Build the table again if callbacks or hooks were changed since."""
        if self._signature() != self._built_for:
            self.build()

    def receivers(self, event: Event) -> list[tuple[str, Hook]]:
        """Return who acts at an event, in calling order: a label and the hook."""
        return [(label, hook) for _, label, hook in self._found(event)]

    def each(self, name: str) -> list[Hook]:
        """Return the hooks of an event's receivers one by one, for when the error of one must not stop the others."""
        event, profiler = next(event for event in EVENTS if event.name == name), self._trainer.profiler_or_none
        hooks = self.receivers(event)
        return [hook if profiler is None else _profiled(profiler, f"{label}.{name}", hook) for label, hook in hooks]

    def _signature(self) -> tuple[Any, ...]:
        trainer = self._trainer
        module = trainer.lightning_module
        hooks = (
            tuple((name, id(hook)) for name, hook in vars(module).items() if name.startswith("on_")) if module else ()
        )
        return (tuple(map(id, trainer.callbacks)), id(module), id(trainer.datamodule), id(trainer.strategy), hooks)

    def _announcement(self, event: Event, profiler: Profiler | None) -> Hook:
        first: list[Hook] = []
        last: list[Hook] = []
        module_hook: Hook | None = None
        for receiver, label, hook in self._found(event):
            if profiler is not None:
                hook = _profiled(profiler, f"{label}.{event.name}", hook)
            if receiver is Receiver.MODULE:
                module_hook = hook
            elif module_hook is None:
                first.append(hook)
            else:
                last.append(hook)
        if not first and not last and module_hook is None:
            return nothing
        return Announcement(event.name, self._trainer.scope, first, module_hook, last)

    def _found(self, event: Event) -> list[tuple[Receiver, str, Hook]]:
        found: list[tuple[Receiver, str, Hook]] = []
        if event.name == "on_train_batch_end":
            found.extend((Receiver.CALLBACKS, label, hook) for label, hook in _background_errors(self._trainer))
        for receiver in event.receivers:
            found.extend((receiver, label, hook) for label, hook in self._of(receiver, event))
        return found

    def _of(self, receiver: Receiver, event: Event) -> list[tuple[str, Hook]]:
        trainer, name = self._trainer, event.name
        module = trainer.lightning_module
        if receiver in (Receiver.CALLBACKS, Receiver.MONITORS):
            chosen: Sequence[Callback] = trainer.callbacks
            if Receiver.MONITORS in event.receivers:
                wanted = receiver is Receiver.MONITORS
                chosen = [callback for callback in chosen if _is_monitor(callback) is wanted]
            hooks: list[tuple[str, Hook]] = [
                (f"[Callback]{callback.state_key}", partial(getattr(callback, name), trainer, module))
                for callback in chosen
                if is_overridden(name, callback, Callback)
            ]
            if receiver is Receiver.MONITORS and event.log is PER_EPOCH and hooks and trainer.world_size > 1:
                hooks.insert(0, ("[Metrics]sync", _synced(trainer)))  # what the module has just logged, over all ranks
            return hooks
        owner, parent = {
            Receiver.MODULE: (module, LightningModule),
            Receiver.DATAMODULE: (trainer.datamodule, LightningDataModule),
            Receiver.STRATEGY: (trainer.strategy, Strategy),
        }[receiver]
        if owner is None or not is_overridden(name, owner, parent):
            return []
        return [(owner_label(owner), getattr(owner, name))]


def owner_label(owner: object) -> str:
    """Return how an object is named in lists of events and in profiles, e.g. `[LightningModule]Net`."""
    kinds = (LightningModule, LightningDataModule, Strategy)
    kind = next((kind.__name__ for kind in kinds if isinstance(owner, kind)), "Callback")
    return f"[{kind}]{type(owner).__name__}"


def _synced(trainer: Trainer) -> Hook:
    def sync(*_: Any) -> None:
        trainer.metrics.sync()

    return sync


def _background_errors(trainer: Trainer) -> list[tuple[str, Hook]]:
    """What raises, after a batch, the error of a checkpoint that is written meanwhile; nothing if none is.

    After the first step it also says what checkpoints are going to hold.
    """
    checkpoint_io = trainer.strategy.checkpoint_io
    if not is_overridden("raise_pending", checkpoint_io, CheckpointIO):
        return []
    expects = trainer.is_global_zero and bool(trainer.checkpoint_callbacks)

    def raise_pending(*_: Any) -> None:
        nonlocal expects
        checkpoint_io.raise_pending()
        if expects and trainer.global_step:
            expects = False
            states = [getattr(optimizer, "state", {}) for optimizer in trainer.optimizers]
            checkpoint_io.expect([*trainer.lightning_module.parameters(), *trainer.lightning_module.buffers(), *states])

    return [(f"[CheckpointIO]{type(checkpoint_io).__name__}", raise_pending)]


def _is_monitor(callback: Callback) -> bool:
    return isinstance(callback, Checkpoint) or getattr(callback, "is_monitor", False)


def _profiled(profiler: Profiler, action: str, hook: Hook) -> Hook:
    def measured(*args: Any) -> Any:
        with profiler.profile(action):
            return hook(*args)

    return measured
