"""Read a checkpoint that nobody vouches for: a stand-in takes the place of what is not plain data, and no code runs."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from fulmen.utilities.files import is_local, load_file, local_path
from fulmen.utilities.plain_data import explain_refusal

__all__ = ["StandIn", "read_untrusted"]

_BLOCKED = re.compile(r"GLOBAL (\S+) whose module \S+ is blocked")
_CLASS = re.compile(r"_StandIn(\d+)")


class StandIn:
    """In the place of an object in a checkpoint whose class was not asked to make it.

    Attributes:
        stands_for: The full name of what the file asked for.
    """

    stands_for = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Leave out what the object was to hold."""

    def __repr__(self) -> str:
        return f"<{self.stands_for}, not loaded>"


def read_untrusted(path: str) -> tuple[Any, list[str]]:
    """Load what `torch.save` wrote as far as it is tensors and plain data.

    It goes through torch's own reader for `weights_only=True`, which runs nothing that a file asks for.

    Args:
        path: A local path, whose tensors stay on the disk until they are read; or a URL, of which nothing but plain
            data is read.

    Returns:
        What the file holds, with a `StandIn` for each object that is not plain, and the full names of what they stand
        for.

    Raises:
        UnpicklingError: It cannot be read even so.
    """
    if not is_local(path) or not zipfile.is_zipfile(local_path(path)):  # torch's old format has no list of its objects
        return load_file(path, map_location="cpu", weights_only=True), []
    name = local_path(path)
    refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(name))
    stand_ins = [_stand_in(number, each) for number, each in enumerate(refused)]
    while True:
        try:
            with torch.serialization.safe_globals(list(zip(stand_ins, refused, strict=True))):
                return torch.load(name, map_location="cpu", weights_only=True, mmap=True), refused
        except (pickle.UnpicklingError, TypeError) as error:  # noqa: PERF203 - each attempt replaces another stand-in
            found = _CLASS.search(str(error))
            if found is None:
                raise _refusal(error, path) if isinstance(error, pickle.UnpicklingError) else error from error
            stand_ins[int(found[1])] = _filled(refused[int(found[1])])


def _refusal(error: pickle.UnpicklingError, path: str) -> pickle.UnpicklingError:
    blocked = _BLOCKED.search(str(error))
    if blocked is None:
        return explain_refusal(error, path)
    return pickle.UnpicklingError(
        f"The checkpoint `{path}` asks for `{blocked[1]}`, which acts on the machine and which no checkpoint needs, so"
        " nothing of it is read. It may be meant to do harm: do not load it elsewhere either."
    )


def _stand_in(number: int, stands_for: str) -> Callable[..., Any]:
    return type(f"_StandIn{number}", (StandIn,), {"stands_for": stands_for})


def _filled(stands_for: str) -> Callable[..., Any]:
    """Return what stands in for a mapping: torch lets a file put items into nothing but plain dicts."""

    class Filled(StandIn):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return OrderedDict()

    Filled.stands_for = stands_for
    return Filled
