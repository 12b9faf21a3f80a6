"""Build a module or datamodule from a checkpoint, and keep hyperparameters in files.

read the file -> migrate it -> arguments for the constructor -> construct -> weights or state
"""

from __future__ import annotations

import ast
import csv
import functools
import importlib
import inspect
import os
import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch

from fulmen.core.hparams import stored_hparams, unread_hparams
from fulmen.strategies.late_weights import fill_whole_module
from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import get_filesystem, is_local, load_file, local_path, problem_without_meta
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.migration import migrate_checkpoint
from fulmen.utilities.plain_data import NotPlainError, explain_refusal, to_plain
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.state_names import named_as_in
from fulmen.utilities.tree import move_data_to_device

if TYPE_CHECKING:
    from builtins import classmethod as class_only

    from fulmen.core.datamodule import LightningDataModule
    from fulmen.core.module import LightningModule

__all__ = [
    "CHECKPOINT_PAST_HPARAMS_KEYS",
    "CLI_INSTANTIATOR",
    "INSTANTIATORS",
    "class_only",
    "convert",
    "load_datamodule_from_checkpoint",
    "load_from_checkpoint",
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
    "update_hparams",
]

CHECKPOINT_PAST_HPARAMS_KEYS = ("hparams", "module_arguments")
"""Where Lightning before 1.0 kept the hyperparameters of a module."""

CLI_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""What a LightningCLI writes under `_instantiator`: Lightning's name, so that files move both ways."""

INSTANTIATORS: dict[str, Callable[[type, dict[str, Any]], Any] | str] = dict.fromkeys(
    (CLI_INSTANTIATOR, "pytorch_lightning.cli.instantiate_module", "fulmen.cli.instantiate_module"),
    "fulmen.cli.instantiation:instantiate_module",
)
"""Trusted functions that build an object from hyperparameters; a checkpoint names one under `_instantiator`.

A value may be `"module:function"`, which is imported when it is needed.
"""

T = TypeVar("T")


if not TYPE_CHECKING:

    class class_only(classmethod):
        """A classmethod that refuses to be called on an instance, where its result would be lost."""

        def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
            """Bind to the class; TorchScript reads every attribute of an instance, so only a call may fail."""
            if instance is None:
                return super().__get__(instance, owner)
            return functools.partial(_refuse_instance, type(instance).__name__, self.__func__.__name__)


def _refuse_instance(class_name: str, method: str, *args: Any, **kwargs: Any) -> None:
    raise TypeError(
        f"`{method}` was called on an instance of `{class_name}`. It makes a new object and leaves this one as it is."
        f" Call it on the class and use what it returns: `obj = {class_name}.{method}(...)`."
    )


# ---- from a checkpoint


def load_from_checkpoint(
    cls: type[LightningModule],
    checkpoint_path: str | Path | IO[bytes],
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Build a module of class `cls` and load its weights; see `LightningModule.load_from_checkpoint`."""
    checkpoint = _read(checkpoint_path, map_location, weights_only)
    module: LightningModule = _construct(cls, checkpoint, hparams_file, kwargs, unpickle=weights_only is False)
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    exact = _resolve_strict(module, strict)
    weights: dict[str, Any] = checkpoint["state_dict"]
    fill_whole_module(module, torch.device("cpu"), weights)
    keys = module.load_state_dict(named_as_in(module, weights), strict=exact)
    if not exact:
        _warn_about_keys(keys.missing_keys, keys.unexpected_keys)
    devices = [value.device for value in weights.values() if isinstance(value, torch.Tensor)]
    return module.to(devices[0]) if devices else module


def load_datamodule_from_checkpoint(
    cls: type[LightningDataModule],
    checkpoint_path: str | Path | IO[bytes],
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Build a datamodule of class `cls` and give it its state; see `LightningDataModule.load_from_checkpoint`."""
    checkpoint = _read(checkpoint_path, map_location, weights_only)
    datamodule: LightningDataModule = _construct(cls, checkpoint, hparams_file, kwargs, unpickle=weights_only is False)
    key = type(datamodule).__qualname__
    if key in checkpoint:
        datamodule.load_state_dict(checkpoint[key])
    return datamodule


def _read(path: str | Path | IO[bytes], map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    location = _where_available if map_location is None else map_location
    if isinstance(path, str | os.PathLike):
        if is_local(path) and os.path.isdir(local_path(path)):
            checkpoint = _read_folder(path, map_location, weights_only)
        else:
            checkpoint = load_file(path, location, weights_only)
    else:
        try:
            checkpoint = torch.load(path, map_location=location, weights_only=weights_only)
        except pickle.UnpicklingError as error:
            raise explain_refusal(error, path) from error
    migrated, _ = migrate_checkpoint(checkpoint)
    return migrated


def _read_folder(path: str | os.PathLike[str], map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    if is_deepspeed_folder(path):
        checkpoint = DeepSpeedFolder(path, trust=weights_only is False).read_whole()
    else:
        from fulmen.plugins.io.distributed_io import ShardedCheckpoint

        if problem := problem_without_meta(path):
            raise DamagedFileError(problem)
        checkpoint = ShardedCheckpoint(path, weights_only=weights_only).read_weights()
    if isinstance(map_location, str | torch.device):
        checkpoint["state_dict"] = move_data_to_device(checkpoint["state_dict"], torch.device(map_location))
    return checkpoint


def _where_available(storage: Any, location: str) -> Any:
    """Put a storage where it was saved, or leave it on the CPU if there is no such device."""
    try:
        return torch.serialization.default_restore_location(storage, location)  # type: ignore[no-untyped-call]  # in torch
    except (RuntimeError, AssertionError):
        return storage


def _construct(
    cls: type[T],
    checkpoint: dict[str, Any],
    hparams_file: str | Path | None,
    overrides: dict[str, Any],
    *,
    unpickle: bool,
) -> T:
    hparams = _hparams(cls, checkpoint, hparams_file, unpickle=unpickle)
    instantiator = _instantiator(hparams.pop("_instantiator", None))
    argument: str | None = checkpoint.get(getattr(cls, "CHECKPOINT_HYPER_PARAMS_NAME"))  # noqa: B009 - not of `type[T]`
    if instantiator is not None:
        return instantiator(_class_named(hparams, cls), {**hparams, **overrides})  # type: ignore[no-any-return]  # contract
    hparams.pop("_class_path", None)
    parameters = inspect.signature(cls).parameters
    arguments = _arguments(parameters, argument, hparams, overrides)
    _check_complete(cls, parameters, arguments, unread_hparams(cls, checkpoint))
    return cls(**arguments)


def _hparams(
    cls: Any, checkpoint: dict[str, Any], hparams_file: str | Path | None, *, unpickle: bool
) -> dict[str, Any]:
    if hparams_file is not None:
        suffix = Path(hparams_file).suffix.lower()
        if suffix not in _READERS:
            raise ValueError(
                f"`hparams_file={str(hparams_file)!r}` has the unknown suffix {suffix!r}."
                f" Use one of {sorted(_READERS)}."
            )
        return dict(_READERS[suffix](hparams_file))
    for key in CHECKPOINT_PAST_HPARAMS_KEYS:
        if key in checkpoint and cls.CHECKPOINT_HYPER_PARAMS_KEY == "hyper_parameters":
            checkpoint.setdefault("hyper_parameters", checkpoint[key])
    return stored_hparams(cls, checkpoint, unpickle=unpickle)


def _arguments(
    parameters: Mapping[str, inspect.Parameter],
    argument: str | None,
    hparams: dict[str, Any],
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """Choose what the constructor gets: all that it names, or one config object and what was overridden."""
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if argument in named and argument not in hparams:
        config = {**hparams, **{name: value for name, value in overrides.items() if name not in named}}
        direct = {name: value for name, value in overrides.items() if name in named or name not in hparams}
        candidates = {argument: config, **direct}
    else:
        candidates = {**hparams, **overrides}
    return candidates if takes_any else {name: value for name, value in candidates.items() if name in named}


def _check_complete(
    cls: type, parameters: Mapping[str, inspect.Parameter], arguments: dict[str, Any], unread: set[str]
) -> None:
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    if not missing:
        return
    example = ", ".join(f"{name}=..." for name in missing)
    reason = "the checkpoint does not have among its hyperparameters"
    remedy = ""
    if unread & set(missing):
        reason = "the checkpoint has only in pickled form, because they are no plain data"
        remedy = " If you trust the source of the file, `weights_only=False` unpickles them."
    raise TypeError(
        f"`{cls.__name__}.__init__()` requires the arguments {missing!r}, which {reason}."
        f" Pass them: `{cls.__name__}.load_from_checkpoint(path, {example})`.{remedy}"
    )


def _instantiator(name: str | None) -> Callable[[type, dict[str, Any]], Any] | None:
    if name is None:
        return None
    if name not in INSTANTIATORS:
        raise ValueError(
            f"The checkpoint asks to be instantiated by {name!r}, which is not in the list of trusted instantiators"
            f" {sorted(INSTANTIATORS)!r}: calling what a file names could run any code. If it is a function of yours,"
            " add it to `fulmen.core.saving.INSTANTIATORS` before loading."
        )
    function = INSTANTIATORS[name]
    if isinstance(function, str):  # a layer above, and its package may not be installed
        module_name, _, attribute = function.partition(":")
        function = getattr(importlib.import_module(module_name), attribute)
    return function


def _class_named(hparams: dict[str, Any], cls: type[T]) -> type[T]:
    """Return the subclass that `_class_path` names; it must be imported already, so that a file imports nothing."""
    path = hparams.pop("_class_path", None)
    if path is None:
        return cls
    waiting = [cls]
    while waiting:
        candidate = waiting.pop()
        if f"{candidate.__module__}.{candidate.__qualname__}" == path:
            return candidate
        waiting.extend(candidate.__subclasses__())
    raise ValueError(
        f"The checkpoint was made with the class {path!r}, which is not `{cls.__name__}` or an imported subclass of it."
        " Import the module of that class first, or call its own `load_from_checkpoint`."
    )


def _resolve_strict(module: LightningModule, strict: bool | None) -> bool:
    explicit = module._strict_loading  # the property cannot tell "unset" from True
    if strict is not None and explicit is not None and strict != explicit:
        raise ValueError(
            f"`load_from_checkpoint(strict={strict})` contradicts"
            f" `{type(module).__name__}.strict_loading = {explicit}`. Leave `strict` out, or give both the same value."
        )
    return module.strict_loading if strict is None else strict


def _warn_about_keys(missing: list[str], unexpected: list[str]) -> None:
    if missing:
        rank_zero_warn(f"Keys of the model that the checkpoint does not have, so they keep their values: {missing}")
    if unexpected:
        rank_zero_warn(f"Keys of the checkpoint that the model does not have, so they are not used: {unexpected}")


# ---- hyperparameters in files


def save_hparams_to_tags_csv(tags_csv: str | Path, hparams: dict[str, Any] | Namespace) -> None:
    """Write hyperparameters as rows `key,value`.

    Args:
        tags_csv: The file to write.
        hparams: Name to value.

    Raises:
        RuntimeError: The folder does not exist.
    """
    entries = vars(hparams) if isinstance(hparams, Namespace) else hparams
    filesystem = get_filesystem(tags_csv)
    _check_folder(filesystem, tags_csv)
    with filesystem.open(str(tags_csv), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("key", "value"))
        writer.writerows(entries.items())


def load_hparams_from_tags_csv(tags_csv: str | Path) -> dict[str, Any]:
    """Read what `save_hparams_to_tags_csv` wrote.

    Returns:
        Name to value; texts that are Python literals are evaluated. Empty, with a warning, if there is no such file.
    """
    filesystem = get_filesystem(tags_csv)
    if not filesystem.exists(str(tags_csv)):
        rank_zero_warn(f"There is no file `{tags_csv}`, so no hyperparameters are read.", category=RuntimeWarning)
        return {}
    with filesystem.open(str(tags_csv), "r", newline="") as file:
        return {row["key"]: convert(row["value"]) for row in csv.DictReader(file)}


def save_hparams_to_yaml(
    config_yaml: str | Path, hparams: Mapping[str, Any] | Namespace, use_omegaconf: bool = True
) -> None:
    """Write hyperparameters to a YAML file; what is no plain data is left out with a warning.

    Args:
        config_yaml: The file to write.
        hparams: Name to value.
        use_omegaconf: Let OmegaConf write its own containers, if it is installed.

    Raises:
        RuntimeError: The folder does not exist.
        TypeError: `hparams` is no mapping.
    """
    entries = vars(hparams) if isinstance(hparams, Namespace) else hparams
    if not isinstance(entries, Mapping):
        raise TypeError(f"`hparams` must be a dictionary or a namespace, not {type(hparams).__name__!r}.")
    filesystem = get_filesystem(config_yaml)
    _check_folder(filesystem, config_yaml)
    with filesystem.open(str(config_yaml), "w", newline="") as file:
        if use_omegaconf and type(entries).__module__.startswith("omegaconf."):
            require("omegaconf", extra="yaml", for_="save_hparams_to_yaml").OmegaConf.save(entries, file)
        else:
            _dump_yaml(entries, file)


def _dump_yaml(entries: Mapping[str, Any], file: IO[str]) -> None:
    yaml = require("yaml", extra="yaml", for_="save_hparams_to_yaml")
    dump = functools.partial(yaml.dump, Dumper=_yaml_dumper())

    def writable(name: str, value: Any) -> bool:
        try:
            dump(to_plain(value))
        except (NotPlainError, yaml.YAMLError):
            rank_zero_warn(
                f"The hyperparameter {name!r} of type {type(value).__name__!r} is left out: YAML cannot express it."
            )
            return False
        return True

    dump({name: to_plain(value) for name, value in entries.items() if writable(name, value)}, file)


def load_hparams_from_yaml(config_yaml: str | Path, use_omegaconf: bool = True) -> Any:
    """Read hyperparameters from a YAML file. Only plain data is read, no Python objects.

    Args:
        config_yaml: The file.
        use_omegaconf: Return an OmegaConf container if the file has interpolations, `${...}`, and OmegaConf is
            installed.

    Returns:
        Name to value; empty, with a warning, if there is no such file.
    """
    filesystem = get_filesystem(config_yaml)
    if not filesystem.exists(str(config_yaml)):
        rank_zero_warn(f"There is no file `{config_yaml}`, so no hyperparameters are read.", category=RuntimeWarning)
        return {}
    with filesystem.open(str(config_yaml), "r") as file:
        text = file.read()
    yaml = require("yaml", extra="yaml", for_="load_hparams_from_yaml")
    hparams = yaml.load(text, Loader=_yaml_loader()) or {}
    if use_omegaconf and "${" in text and is_installed("omegaconf"):
        return require("omegaconf", extra="yaml", for_="load_hparams_from_yaml").OmegaConf.create(hparams)
    return hparams


@functools.cache
def _yaml_dumper() -> Any:
    yaml = require("yaml", extra="yaml", for_="save_hparams_to_yaml")

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]  # an optional package
        pass

    Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence(_TUPLE_TAG, list(items)))
    return Dumper


@functools.cache
def _yaml_loader() -> Any:
    yaml = require("yaml", extra="yaml", for_="load_hparams_from_yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # an optional package
        pass

    Loader.add_constructor(_TUPLE_TAG, lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
    return Loader


_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
_READERS: dict[str, Callable[[str | Path], Mapping[str, Any]]] = {
    ".csv": load_hparams_from_tags_csv,
    ".yaml": load_hparams_from_yaml,
    ".yml": load_hparams_from_yaml,
}


def _check_folder(filesystem: Any, file: str | Path) -> None:
    folder = os.path.dirname(os.path.abspath(file)) if "://" not in str(file) else os.path.dirname(str(file))
    if not filesystem.isdir(folder):
        raise RuntimeError(f"`{file}` cannot be written: the folder `{folder}` does not exist. Create it first.")


def convert(val: str) -> Any:
    """Return the Python literal in a text, or the text itself if it is none.

    Example:
        >>> convert("[1, 2]"), convert("adam")
        ([1, 2], 'adam')
    """
    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError):
        return val


def update_hparams(hparams: MutableMapping[str, Any], updates: Mapping[str, Any]) -> None:
    """Merge `updates` into `hparams` in place; dicts inside are merged too.

    Example:
        >>> hparams = {"optimizer": {"lr": 0.1}}
        >>> update_hparams(hparams, {"optimizer": {"momentum": 0.9}})
        >>> hparams
        {'optimizer': {'lr': 0.1, 'momentum': 0.9}}
    """
    for name, value in updates.items():
        if isinstance(value, Mapping) and isinstance(hparams.get(name), MutableMapping):
            update_hparams(hparams[name], value)
        else:
            hparams[name] = value
