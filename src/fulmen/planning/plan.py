"""What a plan says: per rank the memory, the exchanges and the work of one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fulmen.planning.sizes import gib_text

__all__ = ["Exchange", "Memory", "Plan"]

_MEANING = {
    "weights": "parameters and buffers",
    "gradients": "",
    "optimizer state": "",
    "activations": "saved for the backward pass",
    "communication": "gathered weights, buckets, buffers",
    "batch": "",
    "temporaries": "inside operations, and between them",
}
_ORDER = ("weights", "gradients", "optimizer state", "activations", "communication", "batch", "temporaries")
_TIGHT = 0.9  # of the memory: beyond, a driver and fragmentation can take the rest


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory for one purpose, on one rank, in bytes.

    Attributes:
        at_peak: When most memory is used in all.
        at_most: At whatever time most is used for this.
    """

    at_peak: int
    at_most: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Collectives of one kind over one dimension of the mesh, in one optimizer step.

    Attributes:
        kind: "all-gather", "reduce-scatter", "all-reduce", ...
        over: The dimension of the mesh, or "all ranks".
        num_ranks: Ranks that take part.
        count: How often.
        payload_bytes: Sizes of the whole tensors, summed.
        sent_bytes: What one rank sends, by the ring algorithms.
    """

    kind: str
    over: str
    num_ranks: int
    count: int
    payload_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Plan:
    """One optimizer step on one of many ranks, as it would be.

    Attributes:
        module: Class of the module.
        strategy: Class of the strategy.
        precision: The number format.
        num_nodes: Machines.
        devices_per_node: Devices of each.
        mesh: Dimensions of the mesh with their sizes.
        data_parallel_size: How many ranks have batches of their own.
        accumulate_grad_batches: Batches per optimizer step on each rank.
        batch_size: Samples in a batch of one rank; None if the batch has no tensor.
        num_parameters: Of the whole module.
        num_trainable: Those that need gradients.
        memory: By purpose.
        peak_bytes: The most that a rank holds.
        peak_phase: When: "forward", "backward" or "optimizer step".
        exchanges: Collectives of one optimizer step.
        flops: Operations of one rank in one optimizer step, what is computed twice counted twice.
        device_bytes: Memory of a device, None if nobody said.
        notes: What was assumed, and what is left out.
        advice: What would help, if it does not fit.
    """

    module: str
    strategy: str
    precision: str
    num_nodes: int
    devices_per_node: int
    mesh: dict[str, int]
    data_parallel_size: int
    accumulate_grad_batches: int
    batch_size: int | None
    num_parameters: int
    num_trainable: int
    memory: dict[str, Memory]
    peak_bytes: int
    peak_phase: str
    exchanges: list[Exchange]
    flops: int
    device_bytes: int | None = None
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return self.num_nodes * self.devices_per_node

    @property
    def global_batch_size(self) -> int | None:
        """Samples of one optimizer step over all ranks."""
        if self.batch_size is None:
            return None
        return self.batch_size * self.data_parallel_size * self.accumulate_grad_batches

    @property
    def fits(self) -> bool | None:
        """Whether a rank's peak is within the memory of its device; None if that is not known."""
        return None if self.device_bytes is None else self.peak_bytes <= self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON; sizes in bytes."""
        derived = {"num_ranks": self.num_ranks, "global_batch_size": self.global_batch_size, "fits": self.fits}
        return {**asdict(self), **derived}

    def __str__(self) -> str:
        """The plan as tables."""
        parts = [
            f"{self.module} on {self.num_ranks:,} {'rank' if self.num_ranks == 1 else 'ranks'}"
            f" ({self.num_nodes} x {self.devices_per_node})",
            _columns(list(self._facts())),
            "\nmemory of a rank",
            _columns(list(self._memory_rows()), right=(1, 2)),
            "\nexchanges of a rank in one optimizer step",
            _columns(list(self._exchange_rows()), right=(2, 3, 4)) if self.exchanges else "  none",
        ]
        if self.device_bytes is not None:
            parts += ["", self._verdict(), *(f"  - {each}" for each in self.advice)]
        if self.notes:
            parts += ["\nnotes", *(f"  - {note}" for note in self.notes)]
        return "\n".join(parts)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "strategy", f"{self.strategy}, {self.precision}"
        yield "mesh", " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        frozen = self.num_parameters - self.num_trainable
        yield "parameters", f"{_short(self.num_parameters)}{f', {_short(frozen)} of them frozen' if frozen else ''}"
        if self.batch_size is not None:
            shares = f" x {self.data_parallel_size:,} shares of the data" if self.data_parallel_size > 1 else ""
            window = f" x {self.accumulate_grad_batches} accumulated" if self.accumulate_grad_batches > 1 else ""
            total = f" = {self.global_batch_size:,}" if shares or window else ""
            yield "batch", f"{self.batch_size:,} per rank{shares}{window}{total}"
        yield "work", f"{_short(self.flops)}FLOP per rank and optimizer step"

    def _memory_rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield "", "at peak", "at most", ""
        for role in _ORDER:
            held = self.memory[role]
            yield role, gib_text(held.at_peak), gib_text(held.at_most), _MEANING[role]
        yield "peak", gib_text(self.peak_bytes), "", f"in the {self.peak_phase}"

    def _exchange_rows(self) -> Iterator[tuple[str, ...]]:
        yield "", "over", "times", "tensors", "sent", ""
        for each in self.exchanges:
            yield (
                each.kind, f"{each.over} ({each.num_ranks:,})", f"{each.count:,}", gib_text(each.payload_bytes),
                gib_text(each.sent_bytes), "",
            )  # fmt: skip

    def _verdict(self) -> str:
        assert self.device_bytes is not None  # noqa: S101 - asked by the caller
        share = f"{gib_text(self.peak_bytes)} of {gib_text(self.device_bytes)}"
        if not self.fits:
            return f"DOES NOT FIT: {share}, {gib_text(self.peak_bytes - self.device_bytes)} too much. What would help:"
        if self.peak_bytes > _TIGHT * self.device_bytes:
            return f"TIGHT: {share}; what driver, libraries and fragmentation take is not counted."
        return f"FITS: {share}."


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )  # fmt: skip


def _short(number: float) -> str:
    """Write a count in three figures: `70.6 B`, `1.35 P`."""
    units = ("", "K", "M", "G", "T", "P", "E")
    power = min(len(units) - 1, int(math.log10(number) // 3)) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {units[power]}"
