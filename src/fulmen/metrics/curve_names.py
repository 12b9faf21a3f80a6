"""Which logged names belong into one picture."""

from __future__ import annotations

import re

__all__ = ["curve_group"]

_STAGE = re.compile(r"^(train|training|val|valid|validation|test)[_/.\- ]|[_/.\- ](train|training|val|valid|test)$")
_LOADER = re.compile(r"/dataloader_idx_\d+$")
_RATE = re.compile(r"_(step|epoch)$")


def curve_group(name: str) -> str:
    """Return what a logged name measures: `"loss"` for `train_loss`, `val/loss`, `val_loss_epoch`.

    Args:
        name: As given to `self.log`, with what was added to it.

    Returns:
        The name without stage, dataloader and `_step` or `_epoch`; the name itself if nothing else is in it.
    """
    short = _RATE.sub("", _LOADER.sub("", name))
    return _STAGE.sub("", short) or short
