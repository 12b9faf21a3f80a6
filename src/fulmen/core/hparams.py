"""Hyperparameters of modules and datamodules: taken from the constructor, stored as plain data."""

from __future__ import annotations

import copy
import inspect
import io
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from fulmen.utilities.parsing import AttributeDict, save_hyperparameters
from fulmen.utilities.plain_data import split_settings
from fulmen.utilities.rank_zero import WarningCache

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["HyperparametersMixin", "dump_hparams", "made_from_config", "stored_hparams", "unread_hparams"]

_OWN_SECTION = "fulmen"
_PICKLED = "pickled_hparams"

_LEFT_OUT = """\
The hyperparameters {names} of `{owner}` are not plain data ({types}), so a checkpoint holds them only in pickled form.
`load_from_checkpoint(path)` needs them as arguments, or `weights_only=False` to unpickle them from a trusted file.
To hide this: self.save_hyperparameters(ignore={ignore})"""

_LOST = """\
The hyperparameters {names} of `{owner}` cannot be pickled ({types}) and are missing in the checkpoint.
Pass them to `load_from_checkpoint()` as arguments. To hide this: self.save_hyperparameters(ignore={ignore})"""

_warned = WarningCache()

_config_of: ContextVar[tuple[type, dict[str, Any]] | None] = ContextVar("_config_of", default=None)


@contextmanager
def made_from_config(cls: type, config: dict[str, Any]) -> Iterator[None]:
    """Let `save_hyperparameters()` of an object that is made inside keep its configuration, not the objects made of it.

    Args:
        cls: The class of the object, exactly.
        config: Name of the argument to plain value; what goes into a checkpoint.
    """
    token = _config_of.set((cls, config))
    try:
        yield
    finally:
        _config_of.reset(token)


def _given_config(owner: object) -> dict[str, Any] | None:
    given = _config_of.get()
    return given[1] if given is not None and given[0] is type(owner) else None


class HyperparametersMixin:
    """Adds `save_hyperparameters()` and `hparams` to a class."""

    # class-level defaults: `save_hyperparameters()` may run before this `__init__`
    _log_hyperparams: bool = False
    _hparams_name: str | None = None

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Iterable[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of `__init__` in `self.hparams`, in checkpoints and in the loggers.

        Values are those that the argument names have at this moment. Arguments of subclass constructors are kept too;
        `**kwargs` are flattened, `*args` are not kept. Calling it again adds to what was saved before.

        A checkpoint stores plain data, so that it loads without `weights_only=False`: numbers, strings, tensors and
        collections of them stay as they are; paths, enum members, NumPy scalars, namespaces and special mappings are
        stored as the string, number or dict that they stand for; modules, functions, classes and other objects are
        left out, with a warning. The exact value of what was changed or left out is in the file as a pickle, which
        `load_from_checkpoint(..., weights_only=False)` uses. `self.hparams` always has the exact values.

        Args:
            args: Nothing to keep all arguments; names to keep only those; or one dict, `Namespace` or config object,
                which becomes `hparams` itself.
            ignore: Names to leave out, also of those that a base class saved.
            frame: Stack frame of the constructor; default: the caller's.
            logger: Whether to send them to the loggers when a run starts.

        Raises:
            KeyError: A given name is no argument of the constructor.
            ValueError: The config object is a plain number or string, or of an unknown type.

        Example:
            >>> class Net(HyperparametersMixin):
            ...     def __init__(self, width: int = 8, lr: float = 0.1) -> None:
            ...         self.save_hyperparameters(ignore="width")
            >>> dict(Net(lr=0.2).hparams)
            {'lr': 0.2}
        """
        self._log_hyperparams = logger
        if frame is None:
            frame = inspect.currentframe().f_back  # type: ignore[union-attr]  # CPython always has frames
        save_hyperparameters(self, *args, ignore=ignore, frame=frame, given_hparams=_given_config(self))

    @property
    def hparams(self) -> Any:
        """The saved hyperparameters, an `AttributeDict` (or the config object); may be changed by the user."""
        if "_hparams" not in self.__dict__:
            self._hparams: Any = AttributeDict()
        return self._hparams

    @property
    def hparams_initial(self) -> Any:
        """A copy of the hyperparameters as they were when saved."""
        if "_hparams_initial" not in self.__dict__:
            self._hparams_initial: Any = AttributeDict()
        return _copied(self._hparams_initial)

    def remove_ignored_hparams(self, ignore_list: Iterable[str]) -> None:
        """Remove names from the hyperparameters saved so far.

        Args:
            ignore_list: The names; unknown ones are passed over.
        """
        if not isinstance(self.hparams, MutableMapping):
            return
        present = [name for name in ignore_list if name in self.hparams]
        for name in present:
            del self.hparams[name]
        if present:
            self._hparams_initial = _copied(self.hparams)

    def _set_hparams(self, hparams: Any, name: str | None = None) -> None:
        """Merge `hparams` into those saved before; `name` is the constructor argument they go to."""
        settings = _as_mapping(hparams)
        if isinstance(settings, AttributeDict) and isinstance(self.hparams, AttributeDict):
            self.hparams.update(settings)
        else:
            self._hparams = settings
        if settings:
            self._hparams_name = name
        self._hparams_initial = _copied(self._hparams)


def _as_mapping(hparams: Any) -> Any:
    """As `AttributeDict`; mappings of other libraries (OmegaConf) stay what they are."""
    if isinstance(hparams, Namespace):
        return AttributeDict(vars(hparams))
    if isinstance(hparams, dict):
        return AttributeDict(hparams)
    if isinstance(hparams, MutableMapping):
        return hparams
    if isinstance(hparams, bool | int | float | str):
        raise ValueError(
            f"`save_hyperparameters({hparams!r})`: a plain {type(hparams).__name__} is no set of hyperparameters,"
            " it has no name. Pass the *name* of the argument, or nothing to save all arguments."
        )
    raise ValueError(
        f"`save_hyperparameters()` got an object of type {type(hparams).__name__!r}, which has no named values."
        " Pass a dict, an `argparse.Namespace` or another mapping, or the names of arguments."
    )


def _copied(settings: Any) -> Any:
    """A deep copy; a value that refuses to be copied (a generator, a lock) is shared."""
    if not isinstance(settings, AttributeDict):
        return copy.deepcopy(settings)
    result = AttributeDict()
    for name, value in settings.items():
        result[name] = _copied_value(value)
    return result


def _copied_value(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever a `__deepcopy__` or `__reduce__` raises
        return value


# ---- in a checkpoint


def dump_hparams(owner: Any) -> dict[str, Any]:
    """Return the checkpoint entries for the hyperparameters of a module or datamodule.

    Args:
        owner: A module or datamodule: its `CHECKPOINT_HYPER_PARAMS_KEY` and `..._NAME` are the keys.

    Returns:
        Name of the constructor argument and plain hyperparameters; empty if there are none. What is not plain is
        pickled under the key `"fulmen"`.
    """
    hparams = owner.hparams
    if not hparams:
        return {}
    parts = split_settings(hparams)
    left_out = [name for name in parts.left_out if name not in parts.lost]
    _warn_about(owner, left_out, _LEFT_OUT)
    _warn_about(owner, parts.lost, _LOST)
    section: dict[str, Any] = {owner.CHECKPOINT_HYPER_PARAMS_NAME: owner._hparams_name}
    section[owner.CHECKPOINT_HYPER_PARAMS_KEY] = parts.plain
    if parts.pickled:
        section[_OWN_SECTION] = {_PICKLED: {owner.CHECKPOINT_HYPER_PARAMS_KEY: parts.pickled}}
    return section


def _warn_about(owner: Any, names: list[str], text: str) -> None:
    if names:
        types = ", ".join(sorted({type(owner.hparams[name]).__name__ for name in names}))
        listed = ", ".join(f"`{name}`" for name in names)
        _warned.warn(text.format(names=listed, owner=type(owner).__name__, types=types, ignore=names))


def stored_hparams(owner: Any, checkpoint: Mapping[str, Any], *, unpickle: bool) -> dict[str, Any]:
    """Return the hyperparameters that a checkpoint holds.

    Args:
        owner: The module or datamodule, or its class.
        checkpoint: A loaded checkpoint, of this framework or of Lightning.
        unpickle: Whether to unpickle those that are not plain. This can run any code: only for trusted files.

    Returns:
        Name to value; empty if the file has none.
    """
    hparams = dict(checkpoint.get(owner.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    if unpickle:
        for name, pickled in _pickled_part(owner, checkpoint).items():
            hparams[name] = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=False)
    return hparams


def unread_hparams(owner: Any, checkpoint: Mapping[str, Any]) -> set[str]:
    """Return the names that are only in the pickled part of a checkpoint."""
    return set(_pickled_part(owner, checkpoint)) - set(checkpoint.get(owner.CHECKPOINT_HYPER_PARAMS_KEY) or {})


def _pickled_part(owner: Any, checkpoint: Mapping[str, Any]) -> dict[str, bytes]:
    own: dict[str, Any] = checkpoint.get(_OWN_SECTION) or {}
    part: dict[str, bytes] = own.get(_PICKLED, {}).get(owner.CHECKPOINT_HYPER_PARAMS_KEY, {})
    return part
