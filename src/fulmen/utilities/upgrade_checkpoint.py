"""`python -m fulmen.utilities.upgrade_checkpoint PATH`: bring checkpoint files into today's layout."""

from __future__ import annotations

import argparse
import itertools
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulmen.utilities.files import atomic_save, load_file
from fulmen.utilities.migration import VERSION_KEY, migrate_checkpoint, pl_legacy_patch

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, *, name: str | None = None) -> None:
    """Upgrade the checkpoints that a command line names, and keep each old file beside the new one as `<name>.bak`.

    Files that are up to date stay as they are.

    Args:
        arguments: The command line without the name of the program; that of the process by default.
        name: How the program is called, for its help.

    Raises:
        SystemExit: The arguments are wrong, there is no such file, or one holds more than tensors and plain data.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description="Bring checkpoints of earlier versions into today's layout, and keep the old files as `.bak`.",
    )
    parser.add_argument("path", type=Path, help="a checkpoint, or a folder of which all checkpoints are upgraded")
    parser.add_argument("--extension", "-e", default=".ckpt", help="how checkpoints in the folder end (.ckpt)")
    parser.add_argument(
        "--map-to-cpu", action="store_true", help="put all tensors on the CPU, for files of a GPU this machine has not"
    )
    parser.add_argument(
        "--no-weights-only",
        action="store_true",
        help="also read files that hold more than tensors and plain data: that runs code in them, so only for those"
        " whose source you trust",
    )
    options = parser.parse_args(arguments)
    path: Path = options.path
    if not path.exists():
        parser.error(f"there is no file or folder {str(path)!r}")
    files = sorted(path.rglob(f"*{options.extension}")) if path.is_dir() else [path]
    if not files:
        parser.error(f"no file in {str(path)!r} ends with {options.extension!r}; name the ending by --extension")
    map_location = "cpu" if options.map_to_cpu else None
    refused = []
    for file in files:
        try:
            sys.stdout.write(f"{file}: {_upgrade(file, map_location, weights_only=not options.no_weights_only)}\n")
        except pickle.UnpicklingError as error:  # noqa: PERF203 - the others shall be upgraded all the same
            refused.append(file)
            sys.stderr.write(f"{error}\n")
    if refused:
        parser.exit(
            1, f"{len(refused)} file(s) not upgraded. If you trust their source, repeat it with --no-weights-only.\n"
        )


def _upgrade(file: Path, map_location: str | None, *, weights_only: bool) -> str:
    """Upgrade one file, and say what was done."""
    with pl_legacy_patch():
        checkpoint: dict[str, Any] = load_file(file, map_location=map_location, weights_only=weights_only)
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
