"""How a batch gets to the device: decided once per run, nothing at all where nothing is to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fulmen.core.hooks import DataHooks
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["TransferHooks", "choose_transfer", "transfer_hooks"]

TransferHooks = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def transfer_hooks(trainer: Trainer) -> TransferHooks | None:
    """Return the three transfer hooks in use, the datamodule's before the module's; `None` if all are the defaults."""
    module, datamodule = trainer.lightning_module, trainer.datamodule
    chosen, any_overridden = [], False
    for name in _HOOKS:
        owners = [o for o in (datamodule, module) if o is not None and is_overridden(name, o, DataHooks)]
        if len(owners) == 2:
            rank_zero_warn(
                f"`{name}` is overridden in both the LightningModule and the LightningDataModule; the datamodule's"
                " is used."
            )
        any_overridden = any_overridden or bool(owners)
        chosen.append(getattr(owners[0] if owners else module, name))
    return (chosen[0], chosen[1], chosen[2]) if any_overridden else None


def choose_transfer(trainer: Trainer) -> Callable[[Any, int], Any] | None:
    """Return the function that brings a batch to the device, `None` where batches can be used as they are."""
    strategy = trainer.strategy
    precision, device = strategy.precision_plugin, strategy.root_device
    other_devices = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device.type == "cpu" and precision.is_plain and not other_devices and trainer.transfer_hooks is None:
        return None
    convert, move = precision.convert_input, strategy.batch_to_device
    if precision.is_plain:
        transfer = lambda batch, dataloader_idx: move(batch, device, dataloader_idx)  # noqa: E731
    else:
        transfer = lambda batch, dataloader_idx: move(convert(batch), device, dataloader_idx)  # noqa: E731
    return trainer.profiled(f"[Strategy]{type(strategy).__name__}.batch_to_device", transfer)
