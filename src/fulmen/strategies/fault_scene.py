"""What each rank does while a run stands still, and which of them the others wait for."""

from __future__ import annotations

import linecache
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from fulmen.utilities.stack_dump import StackLine, stack_of
from fulmen.utilities.user_code import is_user_code

__all__ = ["Scene", "is_backward", "is_exchange", "report_text"]

_DISTRIBUTED = f"{os.sep}torch{os.sep}distributed{os.sep}"
_DDP = str(Path("torch", "nn", "parallel", "distributed.py"))
_AUTOGRAD = str(Path("torch", "autograd", "graph.py"))
_MOST_LINES = 14
_LONGEST_LINE = 100


@dataclass(frozen=True, slots=True)
class Scene:
    """One rank at one moment.

    Attributes:
        rank: Which one.
        host: Name of its machine.
        pid: Its process id.
        where: Stage, epoch, batch and hook, in words.
        idle_s: Seconds since it made progress.
        place: What its thread does, in words; equal on ranks that do the same.
        waits: It may be waiting for other ranks.
        lines: Its stack, the innermost line last.
    """

    rank: int
    host: str
    pid: int
    where: str
    idle_s: float
    place: str
    waits: bool
    lines: list[str]

    @classmethod
    def take(cls, thread: int, *, rank: int, world_size: int, where: str, idle_s: float) -> Scene:
        """Look at a thread of this process.

        Args:
            thread: Its identifier.
            rank: Number of this process.
            world_size: Number of processes.
            where: Where the run is, in words.
            idle_s: Seconds since it made progress.
        """
        stack = stack_of(thread)
        place, waits = _place_of(stack, is_alone=world_size == 1)
        return cls(rank, socket.gethostname(), os.getpid(), where, round(idle_s, 1), place, waits, _lines_of(stack))


def is_exchange(filename: str) -> bool:
    """Tell whether a file belongs to the collectives that torch offers in Python.

    Args:
        filename: As in the code objects of frames.
    """
    return _DISTRIBUTED in filename


def is_backward(filename: str) -> bool:
    """Tell whether a file is the one from which autograd runs backward.

    Args:
        filename: As in the code objects of frames.
    """
    return filename.endswith(_AUTOGRAD)


def _place_of(stack: list[StackLine], *, is_alone: bool) -> tuple[str, bool]:
    """Say what a stack does, the innermost frame first, and whether others may be to blame."""
    if not stack:
        return "its thread has ended", False
    own = next((i for i, line in enumerate(stack) if is_user_code(line.file)), len(stack))
    called = f", called at {_position(stack[own])}" if own < len(stack) else ""
    file = stack[0].file
    if (chain := _outermost_exchange(stack)) is not None:
        return f"waits in `{chain}`", True
    if file.endswith(_DDP):
        return f"waits in `DistributedDataParallel.{stack[0].function}`", True
    if is_backward(file):
        return ("is in backward" if is_alone else "is in backward, where ranks exchange gradients"), not is_alone
    if any(line.function == "_get_data" for line in stack[: min(own, 9)]):
        return f"waits for a batch of a dataloader{called}", False
    if own == len(stack):
        return f"is in {_position(stack[0])}", False
    return f"is in {_position(stack[own])}", False


def _outermost_exchange(stack: list[StackLine]) -> str | None:
    """Return the name by which a collective was called, if that is what a stack is in."""
    name = None
    for line in stack:
        if not is_exchange(line.file):
            break
        if line.function != "wrapper":
            name = line.function
    return name


def _position(line: StackLine) -> str:
    return f"`{line.function}` at {Path(line.file).name}:{line.number}"


def _lines_of(stack: list[StackLine]) -> list[str]:
    """Return the user's lines, marked, and the innermost ones; others are counted."""
    lines: list[str] = []
    skipped = 0
    shown = {i for i, line in enumerate(stack) if i < 2 or is_user_code(line.file)}
    shown = set(sorted(shown)[:_MOST_LINES])
    for i in range(len(stack) - 1, -1, -1):
        if i not in shown:
            skipped += 1
            continue
        if skipped:
            lines.append(f"      ({skipped} frames of libraries)")
            skipped = 0
        mark = ">" if is_user_code(stack[i].file) else " "
        source = linecache.getline(stack[i].file, stack[i].number).strip()[:_LONGEST_LINE]
        lines.append(f"    {mark} {stack[i]}" + (f": {source}" if source else ""))
    return lines


# ---- all ranks together


def report_text(scenes: dict[int, Scene], world_size: int, *, limit_s: float) -> str:
    """Return what to show of a run that stands still; the last line says who is to blame, as far as that is known.

    Args:
        scenes: The ranks that answered.
        world_size: Number of ranks.
        limit_s: How long the run may stand still, in seconds.
    """
    silent = [rank for rank in range(world_size) if rank not in scenes]
    lines = [f"No progress for more than {limit_s:g} s:"]
    for rank, scene in sorted(scenes.items()):
        who = f"rank {rank} (process {scene.pid} on {scene.host})" if world_size > 1 else f"process {scene.pid}"
        lines.append(f"  {who}: {scene.where}, no progress for {scene.idle_s:g} s, {scene.place}")
        lines.extend(scene.lines)
    lines.extend(
        f"  rank {rank}: does not answer. Native code holds its interpreter lock, or the process was stopped, or its"
        " machine can't be reached; or it has no `HangWatchdog`."
        for rank in silent
    )
    return "\n".join([*lines, _verdict(scenes, silent)])


def _verdict(scenes: dict[int, Scene], silent: list[int]) -> str:
    """Name the ranks that differ from the others."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for rank, scene in sorted(scenes.items()):
        groups.setdefault((scene.waits, scene.place), []).append(rank)
    texts = {key: f"{_ranks(ranks)} {_plural(key[1], ranks)}" for key, ranks in groups.items()}
    waiting = [texts[key] for key in groups if key[0]]
    working = [texts[key] for key in groups if not key[0]]
    if silent:
        working.insert(0, f"{_ranks(silent)} {'does' if len(silent) == 1 else 'do'} not answer")
    if len(scenes) + len(silent) == 1:
        return f"It {next(iter(scenes.values())).place}."
    if working and waiting:
        return f"{_sentence(working)}, while {'; '.join(waiting)}."
    if len(groups) + bool(silent) == 1:
        return f"All ranks do the same: {next(iter(texts.values()))}."
    if waiting:
        return f"The ranks wait for each other at different points: {'; '.join(waiting)}."
    return f"{_sentence(working)}."


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _plural(place: str, ranks: list[int]) -> str:
    if len(ranks) == 1:
        return place
    return place.replace("waits ", "wait ", 1).replace("is in ", "are in ", 1)
