"""`python -m fulmen.utilities.upgrade_checkpoint PATH`: bring checkpoint files into today's layout."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

from fulmen.utilities.files import atomic_save, load_file
from fulmen.utilities.migration import VERSION_KEY, migrate_checkpoint, pl_legacy_patch

__all__ = ["main"]


def main() -> None:
    """Upgrade the checkpoints that `sys.argv` names, and keep each old file beside the new one as `<name>.bak`.

    Files that are up to date stay as they are.

    Raises:
        SystemExit: The arguments are wrong, or there is no such file.
    """
    parser = argparse.ArgumentParser(
        description="Bring checkpoints of earlier versions into today's layout, and keep the old files as `.bak`."
        " Loading runs code that is in the files: use it only for those you trust."
    )
    parser.add_argument("path", type=Path, help="a checkpoint, or a folder of which all checkpoints are upgraded")
    parser.add_argument("--extension", "-e", default=".ckpt", help="how checkpoints in the folder end (.ckpt)")
    parser.add_argument(
        "--map-to-cpu", action="store_true", help="put all tensors on the CPU, for files of a GPU this machine has not"
    )
    arguments = parser.parse_args()
    path: Path = arguments.path
    if not path.exists():
        parser.error(f"there is no file or folder {str(path)!r}")
    files = sorted(path.rglob(f"*{arguments.extension}")) if path.is_dir() else [path]
    if not files:
        parser.error(f"no file in {str(path)!r} ends with {arguments.extension!r}; name the ending by --extension")
    for file in files:
        sys.stdout.write(f"{file}: {_upgrade(file, 'cpu' if arguments.map_to_cpu else None)}\n")


def _upgrade(file: Path, map_location: str | None) -> str:
    """Upgrade one file, and say what was done."""
    with pl_legacy_patch():
        checkpoint: dict[str, Any] = load_file(file, map_location=map_location, weights_only=False)
        written_by = checkpoint.get(VERSION_KEY)
        checkpoint, _ = migrate_checkpoint(checkpoint)
        if checkpoint[VERSION_KEY] == written_by:
            return f"is up to date ({written_by})"
        backup = _free_name(file)
        shutil.copy2(file, backup)
        atomic_save(checkpoint, file)
    return f"upgraded from {written_by} to {checkpoint[VERSION_KEY]}, old file kept as {backup.name}"


def _free_name(file: Path) -> Path:
    """Name for the old file; a backup of before stays."""
    names = (file.with_name(f"{file.name}.bak{number or ''}") for number in itertools.count())
    return next(name for name in names if not name.exists())


if __name__ == "__main__":
    main()
