"""LightningCLI: a program's command line, from the arguments of its classes.

options from the signatures -> command line, files, environment -> configuration -> objects -> fit, validate, ...
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

import fulmen
from fulmen.cli.argument_parser import LightningArgumentParser
from fulmen.cli.choices import import_choices
from fulmen.cli.from_checkpoint import merge_stored_hparams
from fulmen.cli.optimizers import LRSchedulerTypeUnion, ReduceLROnPlateau, set_optimizer
from fulmen.cli.save_config import SaveConfigCallback
from fulmen.core.callback import Callback
from fulmen.core.datamodule import LightningDataModule
from fulmen.core.hparams import made_from_config
from fulmen.core.module import LightningModule
from fulmen.core.saving import CLI_INSTANTIATOR
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.tuner import Tuner
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.lazy import require
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import seed_everything

if TYPE_CHECKING:
    from fulmen.cli.optimizers import ArgsType

__all__ = ["LightningCLI"]

_SEED_VARIABLE = "PL_GLOBAL_SEED"


class LightningCLI:
    """Reads the command line, makes model, data and Trainer, and runs a method of the Trainer.

    Every argument of the classes is an option: `--model.width 8`, `--data.batch_size 4`, `--trainer.max_epochs 2`. Each
    value can also come from files (`--config`, repeatable, later ones win) or from environment variables. What is shown
    by `--print_config` is a file that `--config` reads.

    Args:
        model_class: The module, or a function annotated to return one; None lets `--model` choose one.
        datamodule_class: The datamodule, likewise; None lets `--data` choose one, or none.
        save_config_callback: Saves the configuration next to the logs; None saves none.
        save_config_kwargs: Its arguments, e.g. `{"overwrite": True}`.
        trainer_class: The Trainer, or a function that returns one.
        trainer_defaults: Defaults of the Trainer's options. Callbacks among them are always there.
        seed_everything_default: Default of `--seed_everything`: True, False or a seed.
        parser_kwargs: Arguments of the parsers, e.g. `{"default_env": True}`, `{"parser_mode": "omegaconf"}`; those
            of one subcommand under its name: `{"fit": {"default_config_files": ["fit.yaml"]}}`.
        parser_class: The class of the parsers.
        subclass_mode_model: Let `--model` choose a subclass of `model_class`.
        subclass_mode_data: Let `--data` choose a subclass of `datamodule_class`.
        args: The command line as a list, or a configuration as a dict, instead of that of the process.
        run: Whether there are subcommands, one of which runs; False only makes the objects.
        auto_configure_optimizers: Whether `--optimizer` and `--lr_scheduler` can replace `configure_optimizers`.
        load_from_checkpoint_support: Whether `save_hyperparameters()` of model and data keeps their configuration, so
            that `load_from_checkpoint` makes the objects nested in it anew.

    Attributes:
        config: What was read, as it stands in files.
        config_init: The same with objects in the place of their descriptions.
        subcommand: The one that runs, None with `run=False`.
        trainer: The Trainer.
        model: The module.
        datamodule: The datamodule or None.

    Example::

        if __name__ == "__main__":
            LightningCLI(LitModel, LitData)     # python train.py fit --trainer.max_epochs 3
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | dict[str, dict[str, Any]] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        # ---- settings
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.model_class = model_class
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.datamodule_class = datamodule_class
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self.load_from_checkpoint_support = load_from_checkpoint_support

        # ---- parts
        self.trainer: Trainer
        self.model: LightningModule
        self.datamodule: LightningDataModule | None
        self.parser: LightningArgumentParser
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._method_options: dict[str, list[str]] = {}

        # ---- state
        self.subcommand: str | None = None
        self.config: Any = None
        self.config_init: Any = None
        self.config_dump: dict[str, Any] = {}

        main_kwargs, subparser_kwargs = self._split_parser_kwargs()
        self.setup_parser(run, main_kwargs, subparser_kwargs)
        import_choices()
        self.parse_arguments(self.parser, args)
        if run:
            self.subcommand = self.get(self.config, "subcommand")
        merge_stored_hparams(self)
        self._seed()

        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run(self.subcommand)

    # ---- parsers
    def _split_parser_kwargs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        names = self.subcommands()
        main = {name: value for name, value in self.parser_kwargs.items() if name not in names}
        return main, {name: value for name, value in self.parser_kwargs.items() if name in names}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parser with all its options.

        Args:
            add_subcommands: Whether it has subcommands.
            main_kwargs: Arguments of the parser.
            subparser_kwargs: Arguments of the parsers of subcommands, by name.
        """
        self.parser = self.init_parser(**main_kwargs)
        if add_subcommands:
            self._add_subcommands(subparser_kwargs)
        else:
            self._add_options(self.parser)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser without options.

        Args:
            kwargs: Its arguments.
        """
        kwargs.setdefault("dump_header", [f"fulmen=={fulmen.__version__}"])
        return self.parser_class(**kwargs)

    def _add_subcommands(self, subparser_kwargs: dict[str, Any]) -> None:
        commands = self.parser.add_subcommands()
        for name, hidden in self.subcommands().items():
            owner = self._owner_of(name)
            method = getattr(owner, name)
            summary = (inspect.getdoc(method) or name).splitlines()[0]
            parser = self.init_parser(**{"description": summary, **subparser_kwargs.get(name, {})})
            self._add_options(parser)
            added = parser.add_method_arguments(owner, name, skip=_present(method, hidden), fail_untyped=False)
            self._method_options[name] = list(added)
            self._subcommand_parsers[name] = parser
            commands.add_subcommand(name, parser, help=summary)
            self.parser.known_options |= parser.known_options

    def _owner_of(self, subcommand: str) -> type:
        """Return the class whose method a subcommand is: of this class, the Trainer or the Tuner."""
        trainer = self.trainer_class if inspect.isclass(self.trainer_class) else Trainer
        for owner in (type(self), trainer, Tuner):
            if callable(getattr(owner, subcommand, None)):
                return owner
        raise MisconfigurationException(
            f"`{type(self).__name__}.subcommands()` has {subcommand!r}, which is no method of `{type(self).__name__}`,"
            f" `{trainer.__name__}` or `Tuner`. Define `def {subcommand}(self, ...)` in one of them."
        )

    def _add_options(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not any(option.is_automatic for option in parser.optimizer_options):
                parser.add_optimizer_args()
            if not any(option.is_automatic for option in parser.lr_scheduler_options):
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)
        parser.known_options.update(parser._option_string_actions)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is about no class: `--seed_everything`.

        Args:
            parser: To be changed.
        """
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="Seed of all random numbers: a number, True for that of `PL_GLOBAL_SEED` or 0, False for none.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of Trainer, model and data.

        Args:
            parser: To be changed.
        """
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        # callbacks among the defaults are added to those that are chosen, so they are no default
        parser.set_defaults({f"trainer.{key}": v for key, v in self.trainer_defaults.items() if key != "callbacks"})
        parser.add_lightning_class_args(
            self.model_class or LightningModule, "model", subclass_mode=self.subclass_mode_model
        )
        parser.add_lightning_class_args(
            self.datamodule_class or LightningDataModule, "data", subclass_mode=self.subclass_mode_data,
            required=self.datamodule_class is not None,
        )  # fmt: skip

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add further options and links; to be overridden.

        Args:
            parser: To be changed, e.g. by `parser.link_arguments("data.batch_size", "model.batch_size")`.
        """

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Link options of optimizers and schedulers to the arguments that they were added for.

        Args:
            parser: To be changed.
        """
        for option in [*parser.optimizer_options, *parser.lr_scheduler_options]:
            if not option.is_automatic:
                parser.link_option(option)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the parameters of its method that are no options.

        A subclass may add methods of its own, of its Trainer, or of the `Tuner`.
        """
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "predict": {"model", "dataloaders", "datamodule"},
        }

    # ---- parse
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the command line into `self.config`.

        Args:
            parser: The parser.
            args: The command line or the configuration; None for that of the process.
        """
        if args is not None and len(sys.argv) > 1 and not _is_of_hydra():
            rank_zero_warn(
                f"`{type(self).__name__}(args=...)` is used, so the command line, {sys.argv[1:]!r}, is not read."
                " Use one of them."
            )
        if args is None or isinstance(args, list | tuple):
            self.config = parser.parse_args(args)
        else:
            self.config = parser.parse_object(args)

    def get(self, config: Any, key: str, default: Any = None) -> Any:
        """Return what a configuration has under a key, that of the subcommand if there is one.

        Args:
            config: `self.config` or `self.config_init`.
            key: The key, e.g. `"trainer"`.
            default: If it is not there.
        """
        part = config if self.subcommand is None else config[self.subcommand]
        return part.get(key, default)

    def parser_of(self, subcommand: str | None) -> LightningArgumentParser:
        """Return the parser of a subcommand; that of the program for None."""
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    _get, _parser = get, parser_of  # subclasses written for Lightning use these names

    def _seed(self) -> None:
        seed = self.get(self.config, "seed_everything")
        if seed is False or seed is None:
            return
        if seed is True:
            seed = int(os.environ.get(_SEED_VARIABLE, "0"))
        part = self.config if self.subcommand is None else self.config[self.subcommand]
        part["seed_everything"] = seed_everything(seed, workers=True)  # a saved file has the seed itself

    # ---- make the objects
    def before_instantiate_classes(self) -> None:
        """Called before the objects are made; `self.config` may be changed."""

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer."""
        parser = self.parser
        if self.load_from_checkpoint_support:
            yaml = require("yaml", extra="cli", for_="LightningCLI")
            with warnings.catch_warnings():  # that a tuple is a list there is no loss
                warnings.filterwarnings("ignore", message=r"\s*Dump of a value that does not round-trip")
                dump = yaml.safe_load(parser.dump(self.config, skip_link_targets=False, skip_unset=False))
            self.config_dump = dump if self.subcommand is None else dump[self.subcommand]
        self.config_init = parser.instantiate(self.config, instantiators=self._instantiators())
        self.datamodule = self.get(self.config_init, "data")
        self.model = self.get(self.config_init, "model")
        self._configure_optimizers()
        self.trainer = self.instantiate_trainer()

    def after_instantiate_classes(self) -> None:
        """Called after the objects are made, before a subcommand runs."""

    def _instantiators(self) -> list[tuple[Any, type, bool]]:
        if not self.load_from_checkpoint_support:
            return []
        return [
            (_Remembering(self.config_dump, "model", self.subclass_mode_model), LightningModule, True),
            (_Remembering(self.config_dump, "data", self.subclass_mode_data), LightningDataModule, True),
        ]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer of the configuration, with all callbacks.

        Args:
            kwargs: Arguments of the Trainer that replace configured ones.
        """
        settings = {**dict(vars(self.get(self.config_init, "trainer", Namespace()))), **kwargs}
        further = [self.get(self.config_init, key) for key in self.parser_of(self.subcommand).callback_keys]
        further += _as_list(self.trainer_defaults.get("callbacks"))
        if self.save_config_callback is not None and not settings.get("fast_dev_run"):
            further.append(
                self.save_config_callback(
                    self.parser_of(self.subcommand),
                    self.config if self.subcommand is None else self.config[self.subcommand],
                    **self.save_config_kwargs,
                )
            )
        further = [callback for callback in further if callback is not None]
        if "callbacks" in settings:
            settings["callbacks"] = _as_list(settings["callbacks"]) + further
        elif further:
            names = ", ".join(type(callback).__name__ for callback in further)
            rank_zero_warn(
                f"`{self.trainer_class.__name__}` has no argument `callbacks`, so these are left out: {names}."
                " Add the argument, or `save_config_callback=None`."
            )
        return self.trainer_class(**settings)

    # ---- optimizers
    def _configure_optimizers(self) -> None:
        """Let the module use the optimizer that was chosen."""
        if not self.auto_configure_optimizers:
            return
        parser = self.parser_of(self.subcommand)
        optimizer = self._automatic(parser.optimizer_options, "optimizer")
        scheduler = self._automatic(parser.lr_scheduler_options, "lr_scheduler")
        if optimizer is None:
            if scheduler is not None:
                raise MisconfigurationException(
                    f"The scheduler {scheduler['class_path']!r} is chosen, but no optimizer that it could act on."
                    " Choose one, e.g. `--optimizer Adam`."
                )
            return
        if is_overridden("configure_optimizers", self.model):
            rank_zero_warn(
                f"`{type(self.model).__name__}.configure_optimizers` is not used, because the configuration chooses the"
                f" optimizer {optimizer['class_path']!r}: `{type(self).__name__}.configure_optimizers` takes its place."
            )
        set_optimizer(self.model, self.configure_optimizers, optimizer, scheduler)

    def _automatic(self, options: list[Any], kind: str) -> dict[str, Any] | None:
        automatic = [option for option in options if option.is_automatic]
        if len(automatic) > 1:
            keys = [option.key for option in automatic]
            raise MisconfigurationException(
                f"`{type(self).__name__}` has several options {keys!r} of which each is to be the {kind} of the module."
                f" Keep one, or link the others: `parser.add_{kind}_args(..., link_to='model.{kind}_init')`."
            )
        if not automatic:
            return None
        option = automatic[0]
        choice = self.get(self.config_init, option.key)
        if choice is None:
            return None
        choice = choice if isinstance(choice, dict) else choice.as_dict()
        if isinstance(option.classes, tuple):
            return choice
        return {"class_path": f"{option.classes.__module__}.{option.classes.__qualname__}", "init_args": choice}

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: LRSchedulerTypeUnion | None = None
    ) -> Any:
        """Return what `configure_optimizers` of the module returns; may be overridden.

        Args:
            lightning_module: The module.
            optimizer: Over the module's parameters, as chosen.
            lr_scheduler: As chosen, or None.
        """
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor},
            }
        return [optimizer], [lr_scheduler]

    # ---- run
    def _run(self, subcommand: str) -> None:
        """Call `before_<subcommand>`, the method, `after_<subcommand>`."""
        self._call_if_defined(f"before_{subcommand}")
        owner = self._owner_of(subcommand)
        owned_by = self if isinstance(self, owner) else Tuner(self.trainer) if owner is Tuner else self.trainer
        method = getattr(owned_by, subcommand)
        arguments = {name: self.get(self.config_init, name) for name in self._method_options[subcommand]}
        accepted = inspect.signature(method).parameters
        passes_on = any(each.kind is each.VAR_KEYWORD for each in accepted.values())  # `def fit(self, model, **kwargs)`
        if "model" in accepted or passes_on:
            arguments["model"] = self.model
        if ("datamodule" in accepted or passes_on) and self.datamodule is not None:
            arguments["datamodule"] = self.datamodule
        method(**arguments)
        self._call_if_defined(f"after_{subcommand}")

    def _call_if_defined(self, name: str) -> None:
        method = getattr(self, name, None)
        if callable(method):
            method()


class _Remembering:
    """Makes model or data so that its `save_hyperparameters()` keeps the configuration."""

    def __init__(self, config: dict[str, Any], key: str, subclass_mode: bool) -> None:
        self._spec = config.get(key) or {}
        self._key = key
        self._subclass_mode = subclass_mode

    def __call__(self, cls: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
        with self._remembered(cls, applied_instantiation_links):
            return cls(*args, **kwargs)

    @contextmanager
    def _remembered(self, cls: type, links: dict[str, Any]) -> Iterator[None]:
        path = self._spec.get("class_path") if self._subclass_mode else None
        if self._subclass_mode and (path is None or path.rpartition(".")[2] != cls.__name__):
            yield  # an object inside the one that was asked for
            return
        arguments = dict(self._spec.get("init_args") or {}) if self._subclass_mode else dict(self._spec)
        if self._subclass_mode and self._spec.get("dict_kwargs"):
            arguments["dict_kwargs"] = self._spec["dict_kwargs"]
        for target, value in links.items():
            parts = target.split(".")
            if self._key in parts:
                _set_nested(arguments, [p for p in parts[parts.index(self._key) + 1 :] if p != "init_args"], value)
        if path is not None:
            arguments["_class_path"] = path
        with made_from_config(cls, {**arguments, "_instantiator": CLI_INSTANTIATOR}):
            yield


def _set_nested(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = dict(tree.get(key) or {})
        tree[key] = inner
        tree = inner
    if keys:
        tree[keys[-1]] = value


def _is_of_hydra() -> bool:
    """Whether Hydra has read the command line, to make the configuration of it."""
    module = sys.modules.get("hydra.core.hydra_config")
    return module is not None and bool(module.HydraConfig.initialized())


def _present(method: Callable[..., Any], names: set[str]) -> set[str | int]:
    """Those names that are parameters of a method."""
    return {name for name in names if name in inspect.signature(method).parameters}


def _as_list(callbacks: Any) -> list[Callback]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
