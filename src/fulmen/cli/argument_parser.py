"""LightningArgumentParser: a parser of jsonargparse that knows modules, callbacks, optimizers and where configs err."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from torch.optim import Optimizer

from fulmen.cli.config_lines import with_places
from fulmen.cli.optimizers import LRSchedulerTypeTuple
from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.core.module import LightningModule
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.enums import LightningEnum
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
else:
    ArgumentParser = require("jsonargparse", extra="cli", for_="LightningCLI").ArgumentParser

__all__ = ["LightningArgumentParser", "OptimizerOption"]

# defaults such as `Timer(interval=Interval.step)` are written as the text that they stand for
require("yaml", extra="cli", for_="LightningCLI").SafeDumper.add_multi_representer(
    LightningEnum, lambda dumper, value: dumper.represent_str(value.value)
)

# options that print scripts for completion in a shell, by `argcomplete` or `shtab`
_jsonargparse = require("jsonargparse", extra="cli", for_="LightningCLI")
try:
    _jsonargparse.set_parsing_settings(add_print_completion_argument=True)
except TypeError:
    raise ImportError(
        f"`LightningCLI` does not work with jsonargparse {_jsonargparse.__version__}, which is installed here: it uses"
        " what came with 4.53. Run `pip install 'fulmen[cli]'`."
    ) from None

_UNKNOWN_OPTION = re.compile(r"(?:does not accept option ['\"]|unrecognized arguments: --)([\w.]+)")
_KINDS = (Trainer, LightningModule, LightningDataModule, Callback)


@dataclass(frozen=True, slots=True)
class OptimizerOption:
    """An optimizer or scheduler that the command line can choose."""

    key: str
    """Its option."""
    classes: type | tuple[type, ...]
    """The class whose arguments are options, or those to choose from."""
    link_to: str
    """The option that gets the choice; `"AUTOMATIC"`: it is configured for the module."""

    @property
    def is_automatic(self) -> bool:
        """Whether it replaces `configure_optimizers`."""
        return self.link_to == "AUTOMATIC"


class LightningArgumentParser(ArgumentParser):
    """The parser of a `LightningCLI`; `add_arguments_to_parser(self, parser)` gets it.

    Args:
        args: As for `jsonargparse.ArgumentParser`.
        description: The first line of `--help`.
        env_prefix: Begin of the environment variables, as in `PL_FIT__TRAINER__MAX_EPOCHS`.
        default_env: Whether options are taken from environment variables.
        kwargs: As for `jsonargparse.ArgumentParser`, e.g. `default_config_files`, `parser_mode`.
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Lightning Trainer command line tool",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self._speaks_of: str | None = None
        self.known_options: set[str] = set()
        self.callback_keys: list[str] = []
        self.optimizer_options: list[OptimizerOption] = []
        self.lr_scheduler_options: list[OptimizerOption] = []
        self.add_argument(
            "-c", "--config", action="config", help="Path to a configuration file in json or yaml format."
        )

    # ---- add
    def add_lightning_class_args(
        self,
        lightning_class: Callable[..., Any] | type,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Add the arguments of a class as options `--<nested_key>.<argument>`.

        An instance of a callback added so is given to the Trainer.

        Args:
            lightning_class: A Trainer, module, datamodule or callback class, or a function that returns one and says so
                in its annotation.
            nested_key: What the options begin with.
            subclass_mode: Let `--<nested_key>` choose a subclass.
            required: Whether a subclass must be chosen.

        Returns:
            The options.

        Raises:
            MisconfigurationException: It is none of these classes.
        """
        made = _class_of(lightning_class)
        kind = next((kind for kind in _KINDS if issubclass(made, kind)), None)
        if kind is None:
            raise MisconfigurationException(
                f"`add_lightning_class_args({lightning_class!r}, {nested_key!r})`: this is neither a Trainer, a"
                " LightningModule, a LightningDataModule, a Callback, nor a function annotated to return one."
                " Add arguments of other classes by `parser.add_class_arguments(cls, key)`."
            )
        if kind is Callback:
            self.callback_keys.append(nested_key)
        if subclass_mode:
            self.add_subclass_arguments(made, nested_key, fail_untyped=False, required=required)
            return [nested_key]
        # the Trainer is made last, with further callbacks
        return list(
            self.add_class_arguments(
                made, nested_key, fail_untyped=False, instantiate=kind is not Trainer, sub_configs=True
            )
        )

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = "AUTOMATIC",
    ) -> None:
        """Add an optimizer as an option.

        Args:
            optimizer_class: A class, whose arguments become options; or a tuple of those to choose from, by
                `--<nested_key> Adam`, with their subclasses.
            nested_key: What the options begin with.
            link_to: `"AUTOMATIC"`: the optimizer is configured for the module. Else an option that gets the choice, as
                `{"class_path": ..., "init_args": ...}` for `instantiate_class`.

        Raises:
            TypeError: Not a class of optimizers.
        """
        self.optimizer_options.append(
            self._add_option(OptimizerOption(nested_key, optimizer_class, link_to), (Optimizer,), skip="params")
        )

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: Any = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = "AUTOMATIC",
    ) -> None:
        """Add a learning rate scheduler as an option.

        Args:
            lr_scheduler_class: As for `add_optimizer_args`. `fulmen.cli.ReduceLROnPlateau` has an option for the
                metric to watch.
            nested_key: What the options begin with.
            link_to: As for `add_optimizer_args`.

        Raises:
            TypeError: Not a class of schedulers.
        """
        self.lr_scheduler_options.append(
            self._add_option(
                OptimizerOption(nested_key, lr_scheduler_class, link_to), LRSchedulerTypeTuple, skip="optimizer"
            )
        )

    def _add_option(self, option: OptimizerOption, kinds: tuple[type, ...], *, skip: str) -> OptimizerOption:
        classes = option.classes if isinstance(option.classes, tuple) else (option.classes,)
        for cls in classes:
            if not (inspect.isclass(cls) and issubclass(cls, kinds)):
                names = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(
                    f"The option {option.key!r} got {cls!r}, which is no subclass of {names}. Pass a class, or a tuple"
                    " of classes to choose from."
                )
        common: dict[str, Any] = {"skip": {skip}, "instantiate": False, "fail_untyped": False}
        if isinstance(option.classes, tuple):
            self.add_subclass_arguments(option.classes, option.key, required=False, **common)
        else:
            self.add_class_arguments(option.classes, option.key, sub_configs=True, **common)
        return option

    def link_option(self, option: OptimizerOption) -> None:
        """Give what is chosen for an option to the option that it is linked to."""
        convert = _as_dict if isinstance(option.classes, tuple) else partial(_with_class_path, option.classes)
        self.link_arguments(option.key, option.link_to, compute_fn=convert)

    # ---- report
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and at which lines of which config files it stands; exit with status 2.

        Args:
            message: What is wrong.
            ex: The error behind it.
        """
        root = getattr(self, "parent_parser", self)
        message += "".join(_suggestion(name, root.known_options) for name in _UNKNOWN_OPTION.findall(message))
        if self._speaks_of is not None:
            message = f"{message}\n{self._speaks_of}"
        super().error(with_places(message, getattr(root, "args", None) or ()), ex)

    @contextmanager
    def speaking_of(self, where: str) -> Iterator[None]:
        """Add to errors inside what they are about.

        Args:
            where: Ends the sentence, e.g. "in the file x".
        """
        self._speaks_of = where
        try:
            yield
        finally:
            self._speaks_of = None


def _suggestion(name: str, options: set[str]) -> str:
    similar = difflib.get_close_matches(f"--{name}", options, n=1)
    return f". Did you mean '{similar[0][2:]}'?" if similar else ""


def _class_of(lightning_class: Any) -> type:
    """Return a class, for a function one that is made by calling it."""
    if inspect.isclass(lightning_class):
        return lightning_class
    jsonargparse = require("jsonargparse", extra="cli", for_="LightningCLI")
    if not callable(lightning_class):
        return type(None)
    try:
        made: type = jsonargparse.class_from_function(lightning_class)
    except ValueError:  # no annotation
        return type(None)
    return made


def _with_class_path(cls: type, init_args: Namespace | dict[str, Any]) -> dict[str, Any]:
    """Return the choice of one class in the form of `instantiate_class`."""
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": _as_dict(init_args)}


def _as_dict(settings: Namespace | dict[str, Any] | None) -> dict[str, Any] | None:
    return settings if settings is None or isinstance(settings, dict) else settings.as_dict()
