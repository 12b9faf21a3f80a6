"""Samplers as users write them, with their random numbers in all sorts of places."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ["SAMPLERS", "Lazily", "LazilyWithoutReplacement", "Pairs", "Unreadable"]


class _OfLength(Sampler[Any]):
    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class FromProcess(_OfLength):
    """Draws as it is asked for an iterator, not for its first item."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length).tolist())


class OwnPython(_OfLength):
    """With a generator that lives as long as the sampler, and a counter."""

    def __init__(self, length: int = 12) -> None:
        super().__init__(length)
        self.generator_of_mine = random.Random(3)
        self.num_passes = 0

    def __iter__(self) -> Iterator[int]:
        self.num_passes += 1
        order = list(range(self.length))
        self.generator_of_mine.shuffle(order)
        shift = self.num_passes % 5
        return iter(order[shift:] + order[:shift])


class OwnNumpy(_OfLength):
    def __init__(self, length: int = 12) -> None:
        super().__init__(length)
        self.rng = np.random.default_rng(5)

    def __iter__(self) -> Iterator[int]:
        for index in self.rng.permutation(self.length):
            yield int(index)


class CountsEpochs(_OfLength):
    def __init__(self, length: int = 12) -> None:
        super().__init__(length)
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        self.epoch += 1
        yield from order


class TellsPosition(_OfLength):
    """Goes on from the position in a state that was loaded, as those of torchdata do."""

    def __init__(self, length: int = 12) -> None:
        super().__init__(length)
        self.shuffler = torch.Generator().manual_seed(1)
        self.at_start = [self.shuffler.get_state()]
        self.given = 0
        self.first: int | None = None

    def __iter__(self) -> Iterator[int]:
        self.given, is_loaded, self.first = self.first or 0, self.first is not None, None
        if is_loaded:
            self.shuffler.set_state(self.at_start[0])
        self.at_start = [self.shuffler.get_state()]
        for index in torch.randperm(self.length, generator=self.shuffler).tolist()[self.given :]:
            self.given += 1
            yield index

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "at_start": self.at_start[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.at_start = state["given"], [state["at_start"]]


class TellsEpoch(_OfLength):
    """Has a state that says nothing about the position."""

    def __init__(self, length: int = 12) -> None:
        super().__init__(length)
        self.hidden = [0]

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.hidden[0])).tolist()
        self.hidden[0] += 1
        yield from order

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.hidden[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hidden = [state["epoch"]]


class Pairs(_OfLength):
    """A batch sampler that gives tuples."""

    def __len__(self) -> int:
        return self.length // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(self.length).tolist()
        return zip(order[::2], order[1::2], strict=True)


class Lazily(_OfLength):
    """Draws each index when it is asked for it, from the generator that the training uses, too."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.length):
            yield int(torch.randint(self.length, ()))


class LazilyWithoutReplacement(_OfLength):
    """The same, remembering what it gave."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.length))
        while left:
            yield left.pop(int(torch.randint(len(left), ())))


class Unreadable(_OfLength):
    """Gives objects that nobody can compare."""

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.length):
            yield _Index(index)


class _Index:
    def __init__(self, index: int) -> None:
        self.index = index

    def __index__(self) -> int:
        return self.index


SAMPLERS = {each.__name__: each for each in (FromProcess, OwnPython, OwnNumpy, CountsEpochs, TellsPosition, TellsEpoch)}
