"""SaveConfigCallback: the configuration of a run, next to its logs."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from fulmen.core.callback import Callback
from fulmen.utilities.files import get_filesystem
from fulmen.utilities.lazy import require

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from fulmen.cli.argument_parser import LightningArgumentParser
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["SaveConfigCallback"]


class SaveConfigCallback(Callback):
    """Writes the configuration as a file that `--config` reads, when a run begins.

    Args:
        parser: The parser that read the configuration.
        config: The configuration.
        config_filename: Name of the file.
        overwrite: Whether an existing file is replaced.
        multifile: Whether parts that came from files of their own are written to such again.
        save_to_log_dir: Write to `trainer.log_dir`; False leaves all to `save_config`.

    Example::

        class LogConfig(SaveConfigCallback):
            def save_config(self, trainer, pl_module, stage):
                trainer.logger.log_hyperparams({"config": self.parser.dump(self.config)})

        LightningCLI(Model, save_config_callback=LogConfig, save_config_kwargs={"save_to_log_dir": False})
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace | Any,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        if not save_to_log_dir and type(self).save_config is SaveConfigCallback.save_config:
            raise ValueError(
                f"`{type(self).__name__}(save_to_log_dir=False)` would save nothing: `save_config` is not overridden."
                " Override it, or leave `save_to_log_dir=True`."
            )
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration, once.

        Raises:
            RuntimeError: The file exists and `overwrite` is False.
        """
        if self.already_saved:
            return
        if self.save_to_log_dir:
            self._save_to_log_dir(trainer)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def _save_to_log_dir(self, trainer: Trainer) -> None:
        folder = trainer.log_dir
        if folder is None:
            raise RuntimeError(
                f"`{type(self).__name__}` has no folder to write to: `trainer.log_dir` is None. Choose a logger with a"
                " folder, or pass `save_config_callback=None` to the LightningCLI."
            )
        path = os.path.join(folder, self.config_filename)
        filesystem = get_filesystem(folder)
        # all ranks must come to the same end, so rank 0 looks and tells
        exists = trainer.strategy.broadcast(filesystem.exists(path) if trainer.is_global_zero else False)
        if exists and not self.overwrite:
            raise RuntimeError(
                f"The configuration of an earlier run is at `{path}` and would be replaced. Give this run a log folder"
                " of its own (a logger's `version`, or `--trainer.default_root_dir`), delete the file, pass"
                " `save_config_kwargs={'overwrite': True}` to the LightningCLI to replace it, or"
                " `save_config_callback=None` to save none."
            )
        if trainer.is_global_zero:
            filesystem.makedirs(folder, exist_ok=True)
            self._write(path)

    def _write(self, path: str) -> None:
        config = _with_plain_parts(self.parser, self.config) if self.multifile else self.config
        self.parser.save(
            config, path, skip_unset=False, overwrite=self.overwrite, multifile=self.multifile,
            skip_validation=self.multifile,
        )  # fmt: skip

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration elsewhere, too: called on rank 0, for subclasses to override."""


def _with_plain_parts(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """Return a copy in which parts that came from files are plain data: jsonargparse writes them as they are."""
    yaml = require("yaml", extra="cli", for_="SaveConfigCallback(multifile=True)")
    with warnings.catch_warnings():  # that a tuple is a list there is no loss
        warnings.filterwarnings("ignore", message=r"\s*Dump of a value that does not round-trip")
        plain = yaml.safe_load(parser.dump(config, skip_unset=False))
    copy = config.clone()
    _make_parts_plain(copy, plain)
    return copy


def _make_parts_plain(config: Any, plain: dict[str, Any]) -> None:
    for name, part in list(vars(config).items()):
        if name not in plain or not hasattr(part, "clone"):  # a value, or nothing that is saved
            continue
        if "__path__" in part:
            config[name] = type(part)({**plain[name], "__path__": part["__path__"]})
        elif isinstance(plain[name], dict):
            _make_parts_plain(part, plain[name])
