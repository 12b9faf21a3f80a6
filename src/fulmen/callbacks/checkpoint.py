"""Checkpoint: the mark by which the Trainer knows callbacks that save."""

from __future__ import annotations

from fulmen.core.callback import Callback

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Base of every callback that writes checkpoints.

    The Trainer puts these last in its list of callbacks, so that a checkpoint contains what the others did, and adds no
    `ModelCheckpoint` of its own when it finds one.
    """
