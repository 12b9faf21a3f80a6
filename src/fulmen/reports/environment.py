"""Where a run happens: versions, machine, the commit of the code."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fulmen

__all__ = ["command_line", "environment", "git_commit"]

_SECRET = re.compile(r"key|token|secret|passw|pwd|credential|auth", re.IGNORECASE)
_ASSIGNED_SECRET = re.compile(rf"((?:{_SECRET.pattern})[\w\-]*[\"']?\s*[=:]\s*).+", re.IGNORECASE | re.DOTALL)
_LOGIN_OF_URL = re.compile(r"://[^/@\s]+@")
_HIDDEN = "***"


def environment() -> dict[str, Any]:
    """Return versions and machine as plain data; nothing that names the computer or its user."""
    found: dict[str, Any] = {
        "fulmen": fulmen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    commit = git_commit(Path())
    if commit is not None:
        found["git commit"] = commit
    return found


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command of this process, without its folder and what looks like a secret.

    Hidden are the values of options and settings with such names (`--api-key abc`, `logger.token=abc`, also inside of
    JSON) and logins in addresses.

    Args:
        arguments: Its words; those of this process by default.
    """
    program, *rest = (sys.argv or [""]) if arguments is None else arguments
    words = [os.path.basename(program)]
    hides_next = False
    for word in rest:
        shown = _LOGIN_OF_URL.sub(f"://{_HIDDEN}@", _ASSIGNED_SECRET.sub(rf"\g<1>{_HIDDEN}", word))
        words.append(_HIDDEN if hides_next else shown)
        hides_next = word.startswith("-") and "=" not in word and _SECRET.search(word) is not None
    return " ".join(words)


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out, read from git's own files; None outside of a repository.

    Args:
        folder: A folder of the working tree.
    """
    try:
        folder = folder.absolute()
        git = next((each / ".git" for each in (folder, *folder.parents) if (each / ".git").exists()), None)
        if git is None:
            return None
        if git.is_file():  # a worktree or submodule: the file names the folder
            git = git.parent / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        return _commit_of(git, head.partition(":")[2].strip())
    except (OSError, ValueError):  # not ours to read, or no text
        return None


def _commit_of(git: Path, ref: str) -> str | None:
    common = git / "commondir"
    folders = [git, git / common.read_text(encoding="utf-8").strip()] if common.exists() else [git]
    for each in folders:
        if (each / ref).is_file():
            return (each / ref).read_text(encoding="utf-8").strip()
        packed = each / "packed-refs"
        lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
        for line in lines:
            commit, _, name = line.partition(" ")
            if name == ref:
                return commit
    return None
