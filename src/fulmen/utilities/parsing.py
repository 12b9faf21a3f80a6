"""Find out with which arguments an object was made, and look settings up by name."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from types import FrameType

__all__ = [
    "AttributeDict",
    "clean_namespace",
    "collect_init_args",
    "get_init_args",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "parse_class_init_keys",
    "save_hyperparameters",
]

_NO_ATTRIBUTE = "`{}` has no attribute {!r}. It has {!r}."


class AttributeDict(dict[Any, Any]):
    """A dict whose string keys can also be read and written as attributes.

    Example:
        >>> settings = AttributeDict(lr=0.1)
        >>> settings.lr = 0.2
        >>> settings["lr"]
        0.2
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(
                f"`{type(self).__name__}` has no attribute {key!r}. It holds {list(self)!r}."
            ) from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        try:
            del self[key]
        except KeyError:
            raise AttributeError(
                f"`{type(self).__name__}` has no attribute {key!r}. It holds {list(self)!r}."
            ) from None

    def __repr__(self) -> str:
        """One key a line, sorted and aligned."""
        width = max((len(str(key)) for key in self), default=0) + 3
        lines = sorted((str(key), value) for key, value in self.items())
        return "\n".join(f'{chr(34)}{key}":'.ljust(width + 1) + str(value) for key, value in lines)


# ---- arguments of constructors


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """Return the names that `cls.__init__` gives to its instance, `*args` and `**kwargs`.

    Returns:
        `("self", "args", "kwargs")`, with `None` for a part that is not there.
    """
    parameters = list(inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]  # asked of the class on purpose
    by_kind = {parameter.kind: parameter.name for parameter in parameters}
    return (
        parameters[0].name,
        by_kind.get(inspect.Parameter.VAR_POSITIONAL),
        by_kind.get(inspect.Parameter.VAR_KEYWORD),
    )


def get_init_args(frame: FrameType | None) -> dict[str, Any]:
    """Return the arguments of the constructor that runs in `frame`, with their present values.

    The instance itself and `*args` are left out; the content of `**kwargs` is put among the others.

    Args:
        frame: A frame of the call stack, as `inspect.currentframe()` returns it.

    Returns:
        Name to value; empty if the frame is not one of an `__init__` method.
    """
    return {} if frame is None or _constructed_object(frame) is None else _arguments(frame)


def collect_init_args(
    frame: FrameType | None,
    path_args: list[dict[str, Any]],
    inside: bool = False,
    classes: tuple[type, ...] = (),
) -> list[dict[str, Any]]:
    """Collect the arguments of the constructors of one object, from `frame` outwards.

    A subclass's `__init__` that calls `super().__init__(...)` is further out, so it comes later in the list.

    Args:
        frame: Where to begin.
        path_args: Arguments found so far; the result begins with them.
        inside: `True` if the walk is inside a constructor already, so that the first frame which is none ends it.
        classes: Regard only objects of these classes.

    Returns:
        One dict for each constructor frame.
    """
    found = list(path_args)
    instance: Any = None
    while frame is not None:
        candidate = _constructed_object(frame)
        if candidate is not None and (not classes or isinstance(candidate, classes)):
            if instance is not None and candidate is not instance:
                break
            instance = candidate
            found.append(_arguments(frame))
        elif inside:
            break
        frame = frame.f_back
    return found


def _constructed_object(frame: FrameType) -> Any:
    """Return the object whose `__init__` runs in `frame`, `None` if another function does."""
    code = frame.f_code
    if code.co_name != "__init__" or code.co_argcount == 0:
        return None
    return frame.f_locals.get(code.co_varnames[0])


def _arguments(frame: FrameType) -> dict[str, Any]:
    code, variables = frame.f_code, frame.f_locals
    num_named = code.co_argcount + code.co_kwonlyargcount
    # argument names come first in `co_varnames`: named ones, then *args, then **kwargs; the first is the instance
    arguments = {name: variables[name] for name in code.co_varnames[1:num_named] if name in variables}
    if code.co_flags & inspect.CO_VARKEYWORDS:
        idx = num_named + bool(code.co_flags & inspect.CO_VARARGS)
        arguments.update(variables.get(code.co_varnames[idx], {}))
    return arguments


def _own_init_args(obj: Any, frame: FrameType | None) -> dict[str, Any]:
    """Merge the arguments of all running constructors of `obj`; a subclass's value wins."""
    merged: dict[str, Any] = {}
    while frame is not None:
        if _constructed_object(frame) is obj:
            merged.update(_arguments(frame))
        frame = frame.f_back
    return merged


# ---- hyperparameters


def save_hyperparameters(
    obj: Any,
    *args: Any,
    ignore: Iterable[str] | str | None = None,
    frame: FrameType | None = None,
    given_hparams: dict[str, Any] | None = None,
) -> None:
    """Store the constructor's arguments of `obj` as its hyperparameters.

    Args:
        obj: An object with `HyperparametersMixin`, usually during its `__init__`.
        args: Nothing for all arguments; names for only those; or one mapping, `Namespace` or config object that
            becomes the hyperparameters itself.
        ignore: Names to leave out.
        frame: The frame of the constructor; default: the caller's.
        given_hparams: The arguments, if they are known otherwise than from the call stack.

    Raises:
        KeyError: A name in `args` is no argument of the constructor.
        ValueError: The config object is a plain number or string, of an unknown type, or there are several.
    """
    if len(args) == 1 and not isinstance(args[0], str) and not args[0]:
        return  # an empty config
    if frame is None:
        frame = inspect.currentframe().f_back  # type: ignore[union-attr]  # CPython always has frames
    init_args = _init_args_of(obj, frame, given_hparams)
    ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
    init_args = {name: value for name, value in init_args.items() if name not in ignored}
    obj.remove_ignored_hparams(ignored)

    if configs := [arg for arg in args if not isinstance(arg, str)]:
        hparams = _only_config(configs, args)
        name = _name_of(hparams, init_args)
    else:
        hparams = _select(init_args, args, owner=type(obj).__name__)
        name = "kwargs" if hparams else None
        _warn_about_modules(hparams)
    obj._set_hparams(hparams, name)


def _init_args_of(obj: Any, frame: FrameType | None, given_hparams: dict[str, Any] | None) -> dict[str, Any]:
    if given_hparams is not None:
        return dict(given_hparams)
    if dataclasses.is_dataclass(obj):
        # a generated `__init__` runs `__post_init__`, where its arguments are attributes already
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if field.init}
    return _own_init_args(obj, frame)


def _only_config(configs: list[Any], args: tuple[Any, ...]) -> Any:
    if len(configs) > 1:
        raise ValueError(
            f"`save_hyperparameters()` got {len(configs)} objects that are not names:"
            f" {[type(config).__name__ for config in configs]}. Only one object can become the hyperparameters."
            " Pass the names of the arguments instead, as in `save_hyperparameters('model_config', 'data_config')`."
        )
    if len(args) > 1:
        names = [arg for arg in args if isinstance(arg, str)]
        rank_zero_warn(
            f"`save_hyperparameters()` got a config object and the names {names!r}. The config object becomes the"
            " hyperparameters and the names are ignored. Pass either the object or names."
        )
    return configs[0]


def _name_of(config: Any, init_args: dict[str, Any]) -> str | None:
    """The constructor argument that held `config`; loading passes the config there."""
    for name, value in init_args.items():
        if value is config:
            return name
    comparable = (Mapping, Namespace)  # others may compare elementwise
    for name, value in init_args.items():
        if isinstance(value, comparable) and isinstance(config, comparable) and value == config:
            return name
    return None


def _select(init_args: dict[str, Any], names: tuple[Any, ...], *, owner: str) -> dict[str, Any]:
    if not names:
        return init_args
    if unknown := [name for name in names if name not in init_args]:
        raise KeyError(
            f"`save_hyperparameters({', '.join(map(repr, names))})`: {unknown!r} is no argument of `{owner}.__init__()`"
            f" or is ignored. Choose from {sorted(init_args)!r}."
        )
    return {name: init_args[name] for name in names}


def _warn_about_modules(hparams: dict[str, Any]) -> None:
    from torch import nn

    for name, value in hparams.items():
        if isinstance(value, nn.Module):
            rank_zero_warn(
                f"The hyperparameter {name!r} is an `nn.Module`, whose weights are in the checkpoint already."
                f" Leave it out with `self.save_hyperparameters(ignore=[{name!r}])`."
            )


def is_picklable(obj: object) -> bool:
    """Return whether `pickle` can store `obj`."""
    try:
        pickle.dumps(obj)
    except Exception:  # whatever a `__reduce__` raises, the answer is no
        return False
    return True


def clean_namespace(hparams: MutableMapping[str, Any] | Namespace) -> None:
    """Remove the entries that cannot be pickled, each with a warning.

    Args:
        hparams: Changed in place.
    """
    entries: MutableMapping[str, Any] = vars(hparams) if isinstance(hparams, Namespace) else hparams
    for name in [name for name, value in entries.items() if not is_picklable(value)]:
        rank_zero_warn(
            f"The hyperparameter {name!r} is removed because it cannot be pickled."
            f" Leave it out yourself to hide this: `self.save_hyperparameters(ignore=[{name!r}])`."
        )
        del entries[name]


# ---- a setting by name, wherever it is


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Return whether the module, its hparams, its datamodule or that one's hparams have `attribute`."""
    return any(True for _ in _holders(model, attribute))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """Return a setting by name from module, module.hparams, datamodule or datamodule.hparams; the last one wins.

    Raises:
        AttributeError: None of them has it.
    """
    holder = _holders_or_raise(model, attribute)[-1]
    return holder[attribute] if isinstance(holder, Mapping) else getattr(holder, attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Set a setting by name in each of module, module.hparams, datamodule and datamodule.hparams that has it.

    Raises:
        AttributeError: None of them has it.
    """
    for holder in _holders_or_raise(model, attribute):
        if isinstance(holder, MutableMapping):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)


def _holders(model: Any, attribute: str) -> Iterator[Any]:
    for owner in (model, _datamodule_of(model)):
        if owner is None:
            continue
        if hasattr(owner, attribute):
            yield owner
        hparams = getattr(owner, "hparams", None)
        if hparams is not None and (attribute in hparams):
            yield hparams


def _holders_or_raise(model: Any, attribute: str) -> list[Any]:
    holders = list(_holders(model, attribute))
    if not holders:
        raise AttributeError(
            f"{attribute!r} is neither an attribute of `{type(model).__name__}`, nor in its `hparams`, nor in the"
            f" datamodule. Set `self.{attribute}` or save it with `save_hyperparameters()`."
        )
    return holders


def _datamodule_of(model: Any) -> Any:
    try:
        trainer = getattr(model, "trainer", None)
    except RuntimeError:  # a LightningModule that is not attached says so this way
        return None
    return getattr(trainer, "datamodule", None)
