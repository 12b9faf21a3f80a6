"""What is in a checkpoint, which file a name means, and files of earlier versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.checkpoint.contents import dump_checkpoint as dump_checkpoint
    from fulmen.checkpoint.paths import resolve_ckpt_path as resolve_ckpt_path
    from fulmen.utilities.migration import migrate_checkpoint as migrate_checkpoint

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "dump_checkpoint": "fulmen.checkpoint.contents",
        "migrate_checkpoint": "fulmen.utilities.migration",
        "resolve_ckpt_path": "fulmen.checkpoint.paths",
    },
)
