"""Compare a run that was interrupted with the one that was not."""

from __future__ import annotations

import csv
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FIGURES", "Difference", "compare", "differences", "read_record", "steps_done"]

FIGURES = ("bits", "duplicate", "lost", "changed", "validations", "rows twice", "rows lost", "rows changed", "stray")
"""Kinds of differences: bits of the final state; batches; validation batches; rows of the log; files left over."""

_Entry = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """What differs.

    Attributes:
        figure: One of `FIGURES`.
        count: How many.
        text: The first of them, in words.
    """

    figure: str
    count: int
    text: str

    def __str__(self) -> str:
        """Tell in a line."""
        return f"{self.figure}: {self.count} ({self.text})"


def compare(whole: Path, interrupted: Path) -> list[Difference]:
    """Return all differences between two finished runs.

    Args:
        whole: Folder of the run that was not interrupted.
        interrupted: Folder of the one that was, and resumed until its end.
    """
    expected, found = _segments(whole)[0], _segments(interrupted)
    return [
        *_batch_differences(_batches([expected]), _batches(found)),
        *_validation_differences(_validations([expected]), _validations(found)),
        *_row_differences(_rows(whole), _rows(interrupted)),
        *_state_differences(whole, interrupted),
        *_stray_files(interrupted),
    ]


# ---- what was written down
def read_record(folder: Path) -> list[_Entry]:
    """Return the lines that a run wrote down; a line that a kill has cut off is left out."""
    path = folder / "record.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_done(folder: Path) -> int:
    """Return the number of training steps behind the last one that a run wrote down."""
    return next((entry["step"] + 1 for entry in reversed(read_record(folder)) if "step" in entry), 0)


def _segments(folder: Path) -> list[list[_Entry]]:
    """Return what was written down between one start and the next."""
    segments: list[list[_Entry]] = []
    for entry in read_record(folder):
        if "begin" in entry:
            segments.append([])
        else:
            segments[-1].append(entry)
    return segments


# ---- training batches
def _batches(segments: list[list[_Entry]]) -> list[_Entry]:
    """Return the steps whose effect is in the weights at the end.

    `step` counts the steps that the weights themselves have seen, so a resumed run tells by its first one which steps
    before are void.
    """
    effective: list[_Entry] = []
    for segment in segments:
        steps = [entry for entry in segment if "step" in entry]
        if steps:
            first = steps[0]["step"]
            effective = [entry for entry in effective if entry["step"] < first] + steps
    return effective


def _batch_differences(expected: list[_Entry], found: list[_Entry]) -> Iterator[Difference]:
    wanted, got = Counter(map(_place, expected)), Counter(map(_place, found))
    twice, lost = got - wanted, wanted - got
    changed = [(a, b) for a, b in zip(expected, found, strict=False) if a != b]
    first = ""
    if changed or len(expected) != len(found):
        first = f"{len(expected)} steps expected, {len(found)} found"
    if changed:
        first += f"; first at step {changed[0][0]['step']}: {_told(*changed[0])}"
    if twice:
        yield Difference("duplicate", twice.total(), f"(epoch, ids) {next(iter(twice))}; {first}")
    if lost:
        yield Difference("lost", lost.total(), f"(epoch, ids) {next(iter(lost))}; {first}")
    if changed and not twice and not lost:
        yield Difference("changed", len(changed), first)


def _place(entry: _Entry) -> tuple[int, str]:
    return entry["epoch"], str(entry["ids"])


def _told(expected: _Entry, found: _Entry) -> str:
    return ", ".join(f"{key} {expected[key]} became {found[key]}" for key in expected if expected[key] != found[key])


# ---- validation batches
def _validations(segments: list[list[_Entry]]) -> dict[int, list[_Entry]]:
    """Return the batches of validation by the training step after which they came; a later run's count."""
    effective: dict[int, list[_Entry]] = {}
    for segment in segments:
        seen: dict[int, list[_Entry]] = {}
        for entry in segment:
            if "validated" in entry:
                seen.setdefault(entry["validated"], []).append(entry)
        steps = [entry["step"] for entry in segment if "step" in entry]
        if steps:  # what comes after the place of the checkpoint is void; the one just there may be in it
            effective = {step: entries for step, entries in effective.items() if step <= steps[0]}
        effective |= seen
    return effective


def _validation_differences(expected: dict[int, list[_Entry]], found: dict[int, list[_Entry]]) -> Iterator[Difference]:
    differing = [step for step in sorted(expected.keys() | found.keys()) if expected.get(step) != found.get(step)]
    if differing:
        step = differing[0]
        text = f"after step {step}: {_first_pair(expected.get(step, []), found.get(step, []))}"
        yield Difference("validations", len(differing), text)


def _first_pair(expected: list[_Entry], found: list[_Entry]) -> str:
    for a, b in zip(expected, found, strict=False):
        if a != b:
            return _told(a, b)
    return f"{len(expected)} batches expected, {len(found)} found"


# ---- rows of the log
def _rows(folder: Path) -> list[tuple[tuple[str, str], ...]]:
    path = folder / "logs" / "version_0" / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [tuple(sorted((k, v) for k, v in row.items() if v not in ("", None))) for row in csv.DictReader(file)]


def _row_differences(expected: list[Any], found: list[Any]) -> Iterator[Difference]:
    wanted, got = Counter(map(_row_place, expected)), Counter(map(_row_place, found))
    twice, lost = got - wanted, wanted - got
    if twice:
        yield Difference("rows twice", twice.total(), f"e.g. (step, names) {next(iter(twice))}")
    if lost:
        yield Difference("rows lost", lost.total(), f"e.g. (step, names) {next(iter(lost))}")
    changed = [(a, b) for a, b in zip(expected, found, strict=False) if a != b]
    if changed and not twice and not lost:
        a, b = changed[0]
        text = f"first {dict(set(a) - set(b))} became {dict(set(b) - set(a))} in row {dict(a).get('step')}"
        yield Difference("rows changed", len(changed), text)


def _row_place(row: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    values = dict(row)
    return values.get("step", ""), " ".join(sorted(values.keys() - {"step"}))


# ---- the state at the end
def _state_differences(whole: Path, interrupted: Path) -> Iterator[Difference]:
    expected, found = (torch.load(folder / "final.pt", weights_only=False) for folder in (whole, interrupted))
    for part in expected:
        differing = list(differences(expected[part], found[part], part))
        if differing:
            bits = sum(number for number, _ in differing)
            yield Difference("bits", bits, f"of {len(differing)} values in {part}; {differing[0][1]}")


def differences(a: Any, b: Any, path: str) -> Iterator[tuple[int, str]]:
    """Yield for each value that differs how many bits do, and where it is.

    Args:
        a: Tensors, arrays and plain values, in dicts, lists and tuples.
        b: What is to be equal.
        path: Where they come from.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from differences(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{path}[{key!r}]")
    elif isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        for place, (mine, theirs) in enumerate(zip(a, b, strict=True)):
            yield from differences(mine, theirs, f"{path}[{place}]")
    else:
        number = _bits(a, b)
        if number:
            yield number, f"{path}: {_short(a)} became {_short(b)}"


_ABSENT = "absent"


def _bits(a: Any, b: Any) -> int:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = a.detach().contiguous().numpy(), b.detach().contiguous().numpy()
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype:
        return _differing_bits(a.tobytes(), b.tobytes())
    if isinstance(a, float) and isinstance(b, float):
        return _differing_bits(struct.pack("d", a), struct.pack("d", b))
    return int(type(a) is not type(b) or bool(np.any(a != b)))


def _differing_bits(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).bit_count()


def _short(value: Any) -> str:
    text = str(value.flatten()[:3].tolist() if isinstance(value, Tensor) else value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---- files
def _stray_files(folder: Path) -> Iterator[Difference]:
    known = {"final.pt", "record.jsonl", "output.txt", "metrics.csv", "hparams.yaml", "run_notes.json"}
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    stray = [path for path in files if path.name not in known and path.suffix not in (".ckpt", ".bak")]
    if stray:
        yield Difference("stray", len(stray), str(stray[0].relative_to(folder)))
