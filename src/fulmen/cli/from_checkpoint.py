"""Options of the model that a checkpoint brings."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fulmen.core.hparams import stored_hparams
from fulmen.core.module import LightningModule
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.cli.lightning_cli import LightningCLI

__all__ = ["merge_stored_hparams"]


def merge_stored_hparams(cli: LightningCLI) -> None:
    """Give the model the hyperparameters that `--ckpt_path` holds, so that the weights fit.

    They win over the command line and config files; options that others are linked to are computed after that. Only
    local files are looked into; `"best"`, `"last"` and addresses are left to the Trainer.

    Args:
        cli: Its `config` is changed.
    """
    path = None if cli.subcommand is None else cli.get(cli.config, "ckpt_path")
    if path is None or cli.subcommand is None or not Path(path).is_file():
        return
    stored = _stored(path, trusted=cli.get(cli.config, "weights_only") is False)
    stored.pop("_instantiator", None)
    if not stored:
        return
    model: dict[str, Any] = stored
    if cli.subclass_mode_model:
        class_path = stored.pop("_class_path", None)
        model = {"init_args": stored, **({"class_path": class_path} if class_path else {})}
        if "dict_kwargs" in stored:
            model["dict_kwargs"] = stored.pop("dict_kwargs")
    parser = cli.parser_of(cli.subcommand)
    before = cli.config[cli.subcommand]
    with parser.speaking_of(f"It stands in the hyperparameters of the checkpoint `{path}`."):
        after = parser.parse_object({"model": model}, namespace=before)
    _warn_about_replaced(parser.get_defaults(), before, after, path)
    cli.config[cli.subcommand] = after


def _warn_about_replaced(defaults: Any, before: Any, after: Any, path: str | Path) -> None:
    """Name the options that were set and have no effect."""
    replaced = [
        f"`--{key}`: {before.get(key)!r} -> {value!r}"
        for key, value in after.items()
        if key.startswith("model.") and before.get(key) not in (value, defaults.get(key))
    ]
    if replaced:
        rank_zero_warn(
            f"These options are replaced by the hyperparameters of the checkpoint `{path}`, whose weights need them:"
            f" {', '.join(replaced)}. Leave them out, or train without `--ckpt_path`."
        )


def _stored(path: str | Path, *, trusted: bool) -> dict[str, Any]:
    try:
        # only settings are needed: "meta" leaves the weights on the disk
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=not trusted)
    except (pickle.UnpicklingError, RuntimeError, ValueError):
        return {}  # no file of torch's, or one that needs trust: the Trainer will say so
    return stored_hparams(LightningModule, checkpoint, unpickle=trusted) if isinstance(checkpoint, dict) else {}
