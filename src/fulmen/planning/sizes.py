"""Sizes as people write them, and how much memory GPUs have."""

from __future__ import annotations

import math
import re

import torch

__all__ = ["DEVICE_MEMORY_GIB", "gib_text", "parse_batch", "parse_memory"]

_GIB = 2**30
# Memory of one device in GiB, as the makers name it; what a driver offers is a little less.
DEVICE_MEMORY_GIB: dict[str, float] = {
    "t4": 15, "l4": 22.5, "l40": 45, "l40s": 45, "a10": 22.5, "a10g": 22.5, "a30": 24, "a40": 45, "a6000": 48,
    "v100-16": 16, "v100-32": 32, "a100-40": 40, "a100": 80, "h100": 80, "h200": 140, "h20": 96, "b200": 179,
    "rtx-3090": 24, "rtx-4090": 24, "rtx-5090": 32, "mi300x": 192, "mi325x": 256,
}  # fmt: skip
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_memory(memory: str | float) -> int:
    """Return the memory of a device in bytes.

    Args:
        memory: Bytes, a size with its unit (`"80GiB"`, `"24 GB"`), or the name of a device (`"h100"`).

    Raises:
        ValueError: It is neither, or nothing at all.
    """
    size = _size(memory) if isinstance(memory, str) else memory
    if not 1 <= size < math.inf:
        raise ValueError(f"`memory={memory!r}` is no memory that a device can have. Write its size, e.g. '80GiB'.")
    return int(size)


def _size(memory: str) -> float:
    name = memory.strip().lower().replace(" ", "-").replace("_", "-")
    if name in DEVICE_MEMORY_GIB:
        return DEVICE_MEMORY_GIB[name] * _GIB
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?i?b?)", memory.strip().lower())
    if found is not None and found[2] in _UNITS:
        return float(found[1]) * _UNITS[found[2]]
    raise ValueError(
        f"`memory={memory!r}` is no size, and no device that is known here. Write it with its unit, e.g. '80GiB', or"
        f" name one of {', '.join(sorted(DEVICE_MEMORY_GIB))}."
    )


def parse_batch(text: str) -> torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Return a batch without memory, of the shapes that a text names.

    Args:
        text: Shapes with their types, by commas: `"8x3x224x224,8:int64"` is a tuple of two tensors,
            `"ids=4x2048:int64"` a dict with one; the type is float32 if it is left out.

    Raises:
        ValueError: A shape or type cannot be read, or some tensors have names and others not.
    """
    parts = [part.strip() for part in text.split(",")]
    named = {part.partition("=")[0]: _tensor(part.partition("=")[2], text) for part in parts if "=" in part}
    if not named:
        tensors = tuple(_tensor(part, text) for part in parts)
        return tensors[0] if len(tensors) == 1 else tensors
    if len(named) != len(parts):
        raise ValueError(
            f"`batch={text!r}`: each tensor needs a name of its own, or none has one. Write"
            " 'ids=4x128:int64,mask=4x128' for a dict, '4x128:int64,4x128' for a tuple."
        )
    return named


def _tensor(part: str, text: str) -> torch.Tensor:
    shape, _, name = part.partition(":")
    dtype = getattr(torch, name or "float32", None)
    if not re.fullmatch(r"\d+(x\d+)*", shape) or not isinstance(dtype, torch.dtype):
        raise ValueError(
            f"`batch={text!r}`: {part!r} is no tensor. Write its dimensions and its type, e.g. '8x2048:int64'"
            " (types: float32, bfloat16, int64, bool, ...); several tensors by commas."
        )
    return torch.empty([int(size) for size in shape.split("x")], dtype=dtype, device="meta")


def gib_text(num_bytes: float) -> str:
    """Write bytes in the unit of GPU memory: `1.25 GiB`, `310.0 MiB`, `4 B`."""
    if abs(num_bytes) >= _GIB:
        return f"{num_bytes / _GIB:,.2f} GiB"
    if abs(num_bytes) >= 2**20:
        return f"{num_bytes / 2**20:,.1f} MiB"
    if abs(num_bytes) >= 2**10:
        return f"{num_bytes / 2**10:,.1f} KiB"
    return f"{num_bytes:.0f} B"
