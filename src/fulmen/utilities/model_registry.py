"""Checkpoints named by an address in a model registry: `registry`, `registry:NAME`, `registry:NAME:version:VERSION`.

The registry is that of the package `litmodels`. Without the package such a name is the name of a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fulmen.utilities.lazy import is_installed, require

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["download_model_from_registry", "find_model_local_ckpt_path", "is_registry_address"]

_ADDRESS = re.compile(r"registry(?::(?!version:)(?P<name>[^:]+))?(?::version:(?P<version>[^:]+))?")
_FORM = "`registry`, `registry:NAME`, `registry:version:VERSION` or `registry:NAME:version:VERSION`"


def is_registry_address(ckpt_path: str | Path | None) -> bool:
    """Tell whether a checkpoint is named by its address in a registry, and the package for that is there.

    Args:
        ckpt_path: What the user passed.
    """
    return ckpt_path is not None and _ADDRESS.fullmatch(str(ckpt_path)) is not None and is_installed("litmodels")


def find_model_local_ckpt_path(
    ckpt_path: str | Path | None, default_model_registry: str | None, default_root_dir: str
) -> str:
    """Find the checkpoint of an address among the files that were downloaded.

    Args:
        ckpt_path: The address.
        default_model_registry: Name of the model if the address has none.
        default_root_dir: Where files are downloaded to.

    Returns:
        The newest `.ckpt` file of that model and version.

    Raises:
        ValueError: It is no address, or has no name and there is no default.
        FileNotFoundError: Nothing was downloaded.
    """
    folder = Path(default_root_dir) / _folder(*_read(ckpt_path, default_model_registry))
    files = sorted(folder.rglob("*.ckpt"), key=os.path.getmtime)
    if not files:
        raise FileNotFoundError(
            f"There is no checkpoint in `{folder}`, where the files of `{ckpt_path}` belong. Download them:"
            f" `trainer.fit(model, ckpt_path={str(ckpt_path)!r})` does."
        )
    return str(files[-1])


def download_model_from_registry(ckpt_path: str | Path | None, trainer: Trainer) -> None:
    """Download the files of an address, once per machine, to where `find_model_local_ckpt_path` looks for them.

    Args:
        ckpt_path: The address.
        trainer: Knows the default name (`Trainer(model_registry=...)`) and the folder.

    Raises:
        ModuleNotFoundError: `litmodels` is not installed.
        ValueError: It is no address, or has no name and there is no default.
    """
    name, version = _read(ckpt_path, trainer.model_registry)
    if trainer.local_rank == 0:
        litmodels = require("litmodels", extra=None, for_=f"ckpt_path={str(ckpt_path)!r}")
        folder = Path(trainer.default_root_dir) / _folder(name, version)
        litmodels.download_model(name=name if version is None else f"{name}:{version}", download_dir=str(folder))
    trainer.strategy.barrier("download_model_from_registry")


def _read(ckpt_path: str | Path | None, default_name: str | None) -> tuple[str, str | None]:
    address = _ADDRESS.fullmatch(str(ckpt_path)) if ckpt_path is not None else None
    if address is None:
        raise ValueError(f"{ckpt_path!r} is no address in a model registry, which has one of the forms {_FORM}.")
    name = address["name"] or default_name
    if not name:
        raise ValueError(
            f"`{ckpt_path}` does not name a model, and there is no default. Write `registry:NAME`, or pass"
            " `Trainer(model_registry=NAME)`."
        )
    return name, address["version"]


def _folder(name: str, version: str | None) -> str:
    return name.replace("/", "_") + ("" if version is None else f"_{version}")
