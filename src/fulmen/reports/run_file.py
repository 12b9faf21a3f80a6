"""`run_notes.json` in the folder of a run: what the metrics do not say, e.g. when it began and how it ended.

It holds a list of runs: a training that was interrupted and resumed into the same folder, and a test after it, have an
entry each.
"""

from __future__ import annotations

import json
import os
from typing import Any

from fulmen.loggers.text_file import read_text, replace_text

__all__ = ["RUN_FILE", "put_run", "read_runs"]

RUN_FILE = "run_notes.json"
_FORMAT = 1
_MOST_RUNS = 200


def read_runs(folder: str) -> list[dict[str, Any]]:
    """Return the runs that a folder's `run_notes.json` tells of, oldest first; none if there is no such file.

    Args:
        folder: Local path or URL.

    Raises:
        ValueError: The file is broken.
    """
    text = read_text(os.path.join(folder, RUN_FILE))
    if text is None:
        return []
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"`{RUN_FILE}` is nested too deeply.") from error
    runs = content.get("runs") if isinstance(content, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError(f"`{RUN_FILE}` has no list of runs.")
    return runs


def put_run(folder: str, run: dict[str, Any]) -> None:
    """Add a run to a folder's `run_notes.json`, or replace the entry with the same `id`.

    Args:
        folder: Local path or URL.
        run: Plain data.
    """
    try:
        runs = read_runs(folder)
    except ValueError:  # a file of others, or a broken one: what we know is worth more
        runs = []
    others = [each for each in runs if each.get("id") != run["id"]]
    content = {"format": _FORMAT, "runs": [*others, run][-_MOST_RUNS:]}
    replace_text(os.path.join(folder, RUN_FILE), json.dumps(content, indent=1) + "\n")
