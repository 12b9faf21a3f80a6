"""Slurm's short notation for many host names."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["hosts_in"]

# a host name: characters that neither separate nor open a range, and ranges in brackets
_NAME = re.compile(r"(?:[^\s,\[\]]|\[[^\[\]]*\])+")
_RANGES = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_SEPARATORS = re.compile(r"[\s,]*")


def hosts_in(text: str) -> Iterator[str]:
    """Write out a list of hosts, one after the other, in Slurm's order.

    Args:
        text: Names, separated by commas or spaces. `[003-005,7]` in a name stands for each of these numbers, with at
            least as many digits as the first number of its range; several brackets in one name stand for all
            combinations, of which the last bracket varies fastest.

    Yields:
        A host name.

    Raises:
        ValueError: The text cannot be read.

    Example::

        list(hosts_in("node[09-11],gpu-5-[1,3]"))  # node09 node10 node11 gpu-5-1 gpu-5-3
    """
    position = _SEPARATORS.match(text).end()  # type: ignore[union-attr]  # it matches the empty text, too
    while position < len(text):
        name = _NAME.match(text, position)
        if name is None:
            raise ValueError(
                f"The list of hosts {text!r} cannot be read from {text[position:]!r} on: a bracket is not closed or not"
                " opened. It must look like 'node[001-003,7],login'."
            )
        yield from _combinations(_RANGES.split(name[0]), text)
        position = _SEPARATORS.match(text, name.end()).end()  # type: ignore[union-attr]


def _combinations(parts: list[str], text: str) -> Iterator[str]:
    """`parts` are plain text and contents of brackets in turn, as `re.split` returns them."""
    if len(parts) == 1:
        yield parts[0]
        return
    before, ranges, *rest = parts
    for number in _numbers(ranges, text):
        for end in _combinations(rest, text):
            yield before + number + end


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if int(last) < int(first):
            raise ValueError(
                f"The list of hosts {text!r} contains the range {part!r}, which cannot be read. A range is a number, or"
                " two with a hyphen, the smaller one first: '[001-003,7]'."
            )
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}}"
