"""Kill a program at random instants while it saves checkpoints, and look at what it leaves behind.

`python -m tests.plugins.io.kill_while_saving --kills 200 --mode async` prints what was found, and fails if after any
kill a checkpoint is not whole, the newest one is older than one that was reported as durable, or the next run leaves a
hidden file of the dead one.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fulmen.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from fulmen.utilities.files import atomic_symlink, ensure_writable, load_file

KEPT = 3
MODES: dict[str, Callable[[], CheckpointIO]] = {"sync": TorchCheckpointIO, "async": AsyncCheckpointIO}


@dataclass
class Findings:
    """What a series of kills has shown."""

    kills: int = 0
    saved: int = 0
    in_the_middle: int = 0  # kills that left a hidden file

    def __str__(self) -> str:
        return (
            f"{self.kills} kills during {self.saved} saves, {self.in_the_middle} in the middle of a file:"
            " each time all checkpoints whole, the newest durable one there, no leftovers after the next start"
        )


def checkpoint(number: int, size: int) -> dict[str, Any]:
    """A checkpoint whose content tells its number everywhere."""
    weights = {f"w{part}": torch.full((size // 4,), float(number)) for part in range(4)}
    return {"number": number, "state_dict": weights}


def check(path: Path) -> int:
    """Load a checkpoint, see that it is of one piece, and return its number."""
    content = load_file(path)
    number: int = content["number"]
    wrong = [name for name, weight in content["state_dict"].items() if not bool((weight == number).all())]
    assert not wrong, f"{path}: {wrong} are of another checkpoint than {number}"
    return number


def newest_in(folder: Path) -> int:
    """Return the number of the checkpoint that `last.ckpt` leads to; 0 without one."""
    return check(folder / "last.ckpt") if os.path.lexists(folder / "last.ckpt") else 0


def save_on(folder: str, mode: str, size: int, first: int, durable: Connection) -> None:
    """Save for ever: a file, then the link to it, then the report, then the removal of an old one."""
    torch.set_num_threads(1)
    files = MODES[mode]()
    ensure_writable(folder)
    torch.save({}, io.BytesIO())  # imports what torch imports late
    durable.send(0)
    number = first
    while True:
        path = os.path.join(folder, f"{number}.ckpt")
        files.save_checkpoint(checkpoint(number, size), path)
        files.publish(partial(atomic_symlink, path, os.path.join(folder, "last.ckpt")))
        files.publish(partial(durable.send, number))
        if number > KEPT:
            files.remove_checkpoint(os.path.join(folder, f"{number - KEPT}.ckpt"))
        number += 1


def kill_once(folder: Path, mode: str, size: int, first: int, delay_s: float) -> tuple[int, bool]:
    """Start a saver, kill it after some time, and look; return the newest number, and if a file was half written."""
    durable = newest_in(folder)
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=save_on, args=(str(folder), mode, size, first, sender))
    process.start()
    sender.close()
    assert receiver.poll(60), "the saver has not started"
    receiver.recv()
    time.sleep(delay_s)
    process.kill()
    process.join()
    with suppress(EOFError):
        while receiver.poll():
            durable = receiver.recv()
    in_the_middle = any(name.endswith(".tmp") for name in os.listdir(folder))
    ensure_writable(folder)  # as the next run does first
    names = sorted(os.listdir(folder))
    assert not [name for name in names if not name.endswith(".ckpt")], names
    numbers = [check(folder / name) for name in names if name != "last.ckpt"]
    newest = newest_in(folder)
    assert newest >= durable, f"{durable} was reported as durable, and the newest is {newest}"
    for number in numbers:
        if number < newest - KEPT:
            os.remove(folder / f"{number}.ckpt")  # the saver was killed before it could
    return max(numbers, default=0), in_the_middle


def kill_often(mode: str, kills: int, *, seed: int, folder: Path, size: int = 2_000_000) -> Findings:
    """Kill savers one after the other, each going on in the folder of the one before.

    Args:
        mode: One of `MODES`.
        kills: How many.
        seed: Of the instants.
        folder: An empty folder.
        size: Numbers in a checkpoint.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fulmen.plugins.io"])
    draw, findings, newest = random.Random(seed), Findings(), 0
    for _ in range(kills):
        reached, in_the_middle = kill_once(folder, mode, size, newest + 1, draw.uniform(0, 0.15))
        findings.kills += 1
        findings.saved += reached - newest
        findings.in_the_middle += in_the_middle
        newest = reached
    return findings


def kill_as_asked(kill: Callable[..., Findings], modes: Collection[str], *, kills: int, name: str, about: str) -> None:
    """Kill as often as the command line says.

    Args:
        kill: A `kill_often`.
        modes: What it takes as its first argument.
        kills: How many of each mode, if the command line does not say.
        name: Of the program, for the folder.
        about: What the help says.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--mode", choices=modes, action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=kills, help="of each mode (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=".", help="where to save, in a folder of its own (default: %(default)s)")
    arguments = parser.parse_args()
    for mode in arguments.mode or modes:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=f"{name}_") as folder:
            findings = kill(mode, arguments.kills, seed=arguments.seed, folder=Path(folder))
        sys.stdout.write(f"{mode}: {findings}\n")


if __name__ == "__main__":
    kill_as_asked(kill_often, MODES, kills=200, name="kill_while_saving", about=__doc__ or "")
