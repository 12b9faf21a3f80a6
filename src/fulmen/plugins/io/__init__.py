"""How checkpoints are written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.io.async_io import AsyncCheckpointIO as AsyncCheckpointIO
    from fulmen.plugins.io.checkpoint_io import CheckpointIO as CheckpointIO
    from fulmen.plugins.io.torch_io import TorchCheckpointIO as TorchCheckpointIO
    from fulmen.plugins.io.xla import XLACheckpointIO as XLACheckpointIO

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AsyncCheckpointIO": "fulmen.plugins.io.async_io",
        "CheckpointIO": "fulmen.plugins.io.checkpoint_io",
        "TorchCheckpointIO": "fulmen.plugins.io.torch_io",
        "XLACheckpointIO": "fulmen.plugins.io.xla",
    },
)
