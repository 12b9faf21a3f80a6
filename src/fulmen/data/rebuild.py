"""Make a loader again with some arguments changed.

A `DataLoader` does not keep the arguments that it was made with. Those of loaders made inside a `*_dataloader` hook are
recorded; for others they are read from the attributes of the same name, as far as there are any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["rebuild", "rebuild_batch_sampler", "recording_dataloader_arguments"]

_RECORD = "_fulmen_record"
_ROOTS: tuple[type[Any], ...] = (DataLoader, BatchSampler)
_CHANGED_BY_TORCH = {"_iterator", "_IterableDataset_len_called", _RECORD}

# What an argument of DataLoader must be beside a `batch_sampler`, or `shuffle` beside a `sampler`.
_NEUTRAL = {"batch_size": 1, "shuffle": False, "sampler": None, "drop_last": False}


@dataclass(slots=True)
class _Record:
    """How an object was made.

    `positional` are arguments that have no name, `base_call` what the class of torch got by position, `attributes` what
    the object had right after construction.
    """

    arguments: dict[str, Any]
    positional: tuple[Any, ...]
    base_call: tuple[Any, ...] = ()
    attributes: dict[str, Any] | None = None


# ---- recording


@contextmanager
def recording_dataloader_arguments() -> Iterator[None]:
    """Record the constructor arguments of every `DataLoader` and `BatchSampler` made inside the block.

    Subclasses are included, also those defined inside the block. `rebuild` uses the records.

    Example::

        with recording_dataloader_arguments():
            loader = module.train_dataloader()
    """
    originals: list[tuple[type, Callable[..., None]]] = []

    def patch(cls: type) -> None:
        own = vars(cls).get("__init__")
        if own is not None:
            originals.append((cls, own))
            cls.__init__ = _recording(cls, own)  # type: ignore[misc]

    outer_hooks = [vars(root).get("__init_subclass__") for root in _ROOTS]  # of a block around this one
    for root in _ROOTS:
        for cls in _with_subclasses(root):
            patch(cls)
        root.__init_subclass__ = classmethod(_patching_subclasses(root, patch))  # type: ignore[assignment]
    try:
        yield
    finally:
        for root, outer_hook in zip(_ROOTS, outer_hooks, strict=True):
            del root.__init_subclass__
            if outer_hook is not None:
                root.__init_subclass__ = outer_hook
        for cls, own in reversed(originals):
            cls.__init__ = own


def _patching_subclasses(root: type[Any], patch: Callable[[type], None]) -> Callable[..., None]:
    def init_subclass(cls: type[Any], **kwargs: Any) -> None:
        super(root, cls).__init_subclass__(**kwargs)
        patch(cls)

    return init_subclass


def _with_subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)


def _recording(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that keeps the arguments of the outermost call on the object."""

    @wraps(init)
    def recorded_init(self: Any, *args: Any, **kwargs: Any) -> None:
        is_outermost = _RECORD not in vars(self)
        if is_outermost:
            vars(self)[_RECORD] = _record_of(init, self, args, kwargs)
        record = vars(self)[_RECORD]
        if cls in _ROOTS and record is not None:
            record.base_call = args
        init(self, *args, **kwargs)
        if is_outermost and record is not None:
            record.attributes = {name: value for name, value in vars(self).items() if name != _RECORD}

    return recorded_init


def _record_of(
    init: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _Record | None:
    try:
        bound = inspect.signature(init).bind(instance, *args, **kwargs)
    except TypeError:
        return None  # the call itself is about to fail with the better message
    arguments: dict[str, Any] = {}
    positional: tuple[Any, ...] = ()
    for position, (name, value) in enumerate(bound.arguments.items()):
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            positional = value
        elif position > 0:  # without `self`
            arguments[name] = value
    return _Record(arguments, positional)


# ---- rebuilding


def rebuild(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """Return a new loader like `loader` with some arguments changed.

    A batch sampler of the user is kept: a new `sampler` or `drop_last` is put into a new batch sampler of its kind.

    Args:
        loader: The user's loader; it is not modified.
        changes: Arguments of `DataLoader` to replace, e.g. `sampler=...`.

    Returns:
        A loader of the same class. Attributes that were set after construction are set on it too.

    Raises:
        MisconfigurationException: A subclass hides an argument that is needed, or does not accept one.
        TypeError: The batch sampler is not made like `BatchSampler`, so nothing can be changed in it.

    Example::

        in_order = rebuild(loader, sampler=SequentialSampler(loader.dataset))
    """
    if _has_own_batch_sampler(loader):
        inner = {name: changes.pop(name) for name in ("sampler", "drop_last") if name in changes}
        if inner:
            changes["batch_sampler"] = rebuild_batch_sampler(loader.batch_sampler, **inner)
    parameters = _parameters(type(loader))
    arguments, positional = _arguments_of(loader, parameters)
    if "batch_sampler" in changes:
        changes = {**_neutral(("batch_size", "shuffle", "sampler", "drop_last"), arguments, parameters), **changes}
    elif "sampler" in changes:
        changes = {**_neutral(("shuffle",), arguments, parameters), **changes}
    if "dataset" in changes and "dataset" not in parameters:  # a subclass may have another name for it
        name = next((name for name, value in arguments.items() if value is loader.dataset), "dataset")
        changes[name] = changes.pop("dataset")
    _check_accepted(loader, parameters, changes)
    made = _make(loader, positional, {**arguments, **changes})
    _copy_later_attributes(loader, made)
    return made


def rebuild_batch_sampler(batch_sampler: Any, **changes: Any) -> Any:
    """Return a new batch sampler like this one with another `sampler` or `drop_last`.

    Args:
        batch_sampler: The user's batch sampler; it is not modified.
        changes: `sampler` and `drop_last`, either or both.

    Raises:
        TypeError: It is not made like `torch.utils.data.BatchSampler`.
    """
    cls = type(batch_sampler)
    parameters = _parameters(cls)
    accepted = _has_kind(parameters, inspect.Parameter.VAR_KEYWORD) or set(changes) <= set(parameters)
    try:
        if not accepted:
            raise TypeError(f"it has no constructor argument for {sorted(changes)}")
        arguments, positional = _arguments_of(batch_sampler, parameters)
        made = cls(*positional, **{**arguments, **changes})
    except (TypeError, MisconfigurationException) as error:
        raise TypeError(
            f"The batch sampler {cls.__qualname__!r} cannot be made again with another {' and '.join(sorted(changes))}:"
            f" {error}. Give it the constructor `(sampler, batch_size, drop_last)` of `torch.utils.data.BatchSampler`,"
            " keep further arguments as attributes of the same name, or make the loader inside a `*_dataloader` hook."
        ) from error
    _copy_later_attributes(batch_sampler, made)
    return made


def _has_own_batch_sampler(loader: DataLoader[Any]) -> bool:
    return loader.batch_size is None and loader.batch_sampler is not None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters without `self`."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def _has_kind(parameters: dict[str, inspect.Parameter], kind: Any) -> bool:
    return any(parameter.kind is kind for parameter in parameters.values())


def _neutral(
    names: tuple[str, ...], arguments: dict[str, Any], parameters: dict[str, inspect.Parameter]
) -> dict[str, Any]:
    return {name: _NEUTRAL[name] for name in names if name in arguments or name in parameters}


# ---- which arguments it was made with


def _arguments_of(instance: Any, parameters: dict[str, inspect.Parameter]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Arguments by name, and those that can be passed by position only."""
    record: _Record | None = vars(instance).get(_RECORD)
    if record is not None:
        return _named(record, type(instance))
    root = next(root for root in (*_ROOTS, object) if isinstance(instance, root))
    known = _dataloader_arguments(instance) if root is DataLoader else vars(instance)
    arguments = {name: known[name] for name in parameters if name in known}
    if root is not object and _has_kind(parameters, inspect.Parameter.VAR_KEYWORD):
        for name, parameter in _parameters(root).items():
            if name in known and known[name] is not parameter.default:
                arguments[name] = known[name]
    missing = sorted(
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in arguments
    )
    if missing:
        raise MisconfigurationException(
            f"`{type(instance).__name__}` has to be made again with changed arguments, but the arguments {missing} of"
            " its constructor are not available as instance attributes. Make it inside a `*_dataloader` hook, where"
            f" arguments are recorded, or define {', '.join(f'`self.{name}`' for name in missing)} in its `__init__`."
        )
    return arguments, ()


def _named(record: _Record, cls: type) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Give names to the arguments that went through `*args` to torch's constructor, as far as they did."""
    number = len(record.positional)
    passed_on = record.base_call[len(record.base_call) - number :]
    if (
        not number
        or len(passed_on) < number
        or any(a is not b for a, b in zip(passed_on, record.positional, strict=True))
    ):
        return dict(record.arguments), record.positional
    root = next(root for root in _ROOTS if issubclass(cls, root))
    names = list(_parameters(root))[len(record.base_call) - number : len(record.base_call)]
    return {**record.arguments, **dict(zip(names, passed_on, strict=True))}, ()


def _dataloader_arguments(loader: DataLoader[Any]) -> dict[str, Any]:
    """The attributes of a loader that stand for its constructor's arguments."""
    known = dict(vars(loader))
    known["multiprocessing_context"] = loader.multiprocessing_context
    if _has_own_batch_sampler(loader):
        for name in ("batch_size", "sampler", "drop_last"):
            known.pop(name)
    else:
        del known["batch_sampler"]
    if isinstance(loader.dataset, IterableDataset):
        known.pop("sampler", None)
    return known


# ---- making it


def _check_accepted(loader: Any, parameters: dict[str, inspect.Parameter], changes: dict[str, Any]) -> None:
    if _has_kind(parameters, inspect.Parameter.VAR_KEYWORD):
        return
    missing = sorted(set(changes) - set(parameters))
    if missing:
        raise MisconfigurationException(
            f"`{type(loader).__name__}` has to be made again with changed arguments, but its constructor does"
            f" not accept {missing}. Add them to its `__init__`, or let it pass `**kwargs` to that of `DataLoader`."
        )


def _make(loader: DataLoader[Any], positional: tuple[Any, ...], arguments: dict[str, Any]) -> DataLoader[Any]:
    cls = type(loader)
    try:
        with recording_dataloader_arguments():
            return cls(*positional, **arguments)
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(
            f"`{cls.__name__}` cannot be made again with the arguments {sorted(arguments)}: {error}. Its constructor"
            " probably hands an argument of its own and one of `**kwargs` to the same argument of `DataLoader`. Make"
            " the loader inside a `*_dataloader` hook, or let `__init__` hand on what it gets."
        ) from error


def _copy_later_attributes(old: Any, new: Any) -> None:
    """Set what was set on the old object after its construction."""
    record: _Record | None = vars(old).get(_RECORD)
    after_construction = vars(new) if record is None or record.attributes is None else record.attributes
    for name, value in list(vars(old).items()):
        is_new = name not in after_construction
        is_changed = record is not None and not is_new and after_construction[name] is not value
        if (is_new or is_changed) and name not in _CHANGED_BY_TORCH:
            setattr(new, name, value)
