"""The import hook in worker processes, before they import the program.

A process of `multiprocessing` that is not forked reads a dictionary first, then imports the program's main module, then
runs its target. An entry of that dictionary installs the hook as it is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

__all__ = ["install_in_workers"]

_FORK_SERVER = "ignore"  # the name under which `multiprocessing` asks on behalf of the server, which unpickles nothing


def install_in_workers(install: Callable[[], None]) -> None:
    """Call a function in all processes that `multiprocessing` starts from now on, and in those that these start.

    Args:
        install: A function of a module; it is called before the program is imported there.
    """
    prepare: Callable[[str], dict[str, Any]] = spawn.get_preparation_data

    def with_installation(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name == _FORK_SERVER:
            data.pop("init_main_from_path", None)  # its children import the program
            return data
        return {"fulmen.compat": _Call(install), **data}

    spawn.get_preparation_data = with_installation  # there is no other way in


class _Call:
    """Calls a function as it is unpickled."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return self._function, ()
