"""Make objects of what a configuration says."""

from __future__ import annotations

import datetime
import functools
import importlib
import pathlib
import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, TypeVar

from fulmen.core.hparams import made_from_config
from fulmen.core.saving import CLI_INSTANTIATOR
from fulmen.utilities.lazy import require

__all__ = ["instantiate_class", "instantiate_module"]

T = TypeVar("T")

# what of the standard library a checkpoint may build: values, nothing that acts
_HARMLESS = (datetime.timedelta, datetime.datetime, datetime.date, pathlib.PurePath, functools.partial)


def instantiate_class(args: Any, init: Mapping[str, Any]) -> Any:
    """Make an object of `{"class_path": ..., "init_args": {...}}`.

    Args:
        args: Positional arguments: a tuple of them, or the only one.
        init: The class by its full name, and its keyword arguments (may be absent).

    Returns:
        The object.

    Raises:
        ValueError: `class_path` is not the name of something in a module.

    Example:
        >>> instantiate_class((), {"class_path": "datetime.timedelta", "init_args": {"hours": 1}})
        datetime.timedelta(seconds=3600)
    """
    kwargs = {**(init.get("init_args") or {}), **(init.get("dict_kwargs") or {})}
    positional = args if isinstance(args, tuple) else (args,)
    path: str = init["class_path"]
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(
            f"`class_path={path!r}` does not say where the class is. Write the full name, e.g. 'torch.optim.{path}'."
        )
    return getattr(importlib.import_module(module_name), name)(*positional, **kwargs)


def instantiate_module(class_type: type[T], config: Mapping[str, Any]) -> T:
    """Make a module or datamodule of the configuration that a checkpoint holds, with the objects nested in it.

    What a checkpoint names must fit the type that the constructor declares. Classes of Python's standard library that
    do something as they are made, as `subprocess.Popen` does, are refused wherever they stand.

    Args:
        class_type: The class.
        config: Name of the argument to value; nested objects as `{"class_path": ..., "init_args": {...}}`.

    Returns:
        The object.

    Raises:
        ValueError: The configuration names a class that is refused.
        jsonargparse.ArgumentError: The configuration does not fit the constructor.
    """
    jsonargparse = require("jsonargparse", extra="cli", for_="instantiate_module")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    keys = parser.add_class_arguments(class_type, "object", fail_untyped=False, sub_configs=True)
    known = {key.split(".")[1] for key in keys}
    further = config.get("dict_kwargs") or {}  # what the constructor takes as `**kwargs`
    parsed = parser.parse_object({"object": {name: config[name] for name in config if name in known}}, defaults=False)
    arguments = parser.instantiate(parsed, instantiate_groups=False, instantiators=[(_build_if_harmless, object, True)])
    # what it saves again is this configuration, not the objects
    with made_from_config(class_type, {**config, "_instantiator": CLI_INSTANTIATOR}):
        return class_type(**vars(arguments.get("object", Namespace())), **further)


def _build_if_harmless(cls: type[T], *args: Any, **kwargs: Any) -> T:
    root = cls.__module__.partition(".")[0]
    if root in sys.stdlib_module_names and root != "__main__" and not issubclass(cls, _HARMLESS):
        raise ValueError(
            f"The checkpoint asks for an object of `{cls.__module__}.{cls.__qualname__}`. Classes of the standard"
            " library are not made from a file, because some of them act as they are made. Pass this argument to"
            " `load_from_checkpoint` yourself."
        )
    return cls(*args, **kwargs)
