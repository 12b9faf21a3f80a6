"""Training loaders of every kind that a tortured run can have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]  # torchdata has no types

from fulmen.data import CombinedLoader
from tests.torture.settings import Setting

__all__ = ["BATCH_SIZE", "NUM_FEATURES", "TrainData", "parts", "train_data", "val_loader"]

BATCH_SIZE = 3
NUM_FEATURES = 6
_NUM_SAMPLES = 23  # 7 whole batches and a short one
_NUM_OTHER_SAMPLES = 17


class Strikes(Protocol):
    """What may end the run when it is told that a sample is asked for."""

    def at(self, hook: str) -> None: ...


@dataclass
class TrainData:
    """A training loader, and the generators that its order comes from."""

    loader: Any = None
    generators: list[torch.Generator] = field(default_factory=list)

    def generator(self) -> torch.Generator:
        """Return a new generator, always seeded alike, and keep it to be compared."""
        self.generators.append(torch.Generator().manual_seed(1234 + len(self.generators)))
        return self.generators[-1]


def parts(batch: Any) -> list[Any]:
    """Return the `[ids, samples]` that a batch consists of; `None` stands for a loader that has run out."""
    return list(batch.values()) if isinstance(batch, dict) else [batch]


# ---- samples
def _features(number: int) -> Tensor:
    return torch.randn(number, NUM_FEATURES, generator=torch.Generator().manual_seed(number))


def _augmented(sample: Tensor, source: str) -> Tensor:
    if source in ("torch", "all"):
        sample = sample + torch.randn(NUM_FEATURES) / 10
    if source in ("random", "all"):
        sample = sample + random.gauss(0.0, 0.1)
    if source in ("numpy", "all"):
        sample = sample + float(np.random.standard_normal()) / 10
    return sample


class Samples(Dataset[tuple[int, Tensor]]):
    """Numbered samples with random augmentation."""

    def __init__(self, number: int, augment: str, strikes: Strikes) -> None:
        self.features = _features(number)
        self.augment = augment
        self.strikes = strikes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        self.strikes.at("getitem")
        return int(index), _augmented(self.features[index], self.augment)


class Stream(IterableDataset[tuple[int, Tensor]]):
    """The samples in an order of its own, shared out among workers."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = list(range(first, len(self.samples), every))
        random.shuffle(order)
        for index in order:
            yield self.samples[index]


class Batches:
    """Batches that are made in this process, without a `DataLoader`."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples) // BATCH_SIZE

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = list(range(len(self.samples)))
        random.shuffle(order)
        for start in range(0, len(self) * BATCH_SIZE, BATCH_SIZE):
            ids, samples = zip(*(self.samples[index] for index in order[start : start + BATCH_SIZE]), strict=True)
            yield [torch.tensor(ids), torch.stack(samples)]


class StatefulStream(IterableDataset[tuple[int, Tensor]]):
    """A stream that knows where it stands and goes on there, with a generator that lives through all epochs."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.generator = random.Random(7)
        self.order: list[int] = []
        self.position = 0

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if not self.order:
            self._begin()
        while self.position < len(self.order):
            index = self.order[self.position]
            self.position += 1
            yield self.samples[index]
        self.order = []

    def _begin(self) -> None:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self.order, self.position = list(range(first, len(self.samples), every)), 0
        self.generator.shuffle(self.order)

    def state_dict(self) -> dict[str, Any]:
        version, numbers, gauss = self.generator.getstate()
        return {"order": list(self.order), "position": self.position, "random": [version, list(numbers), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = list(state["order"]), state["position"]
        version, numbers, gauss = state["random"]
        self.generator.setstate((version, tuple(numbers), gauss))


# ---- samplers
class OwnSampler(Sampler[int]):
    """Takes its order from one source of random numbers."""

    def __init__(self, number: int, source: str, generator: torch.Generator | None) -> None:
        self.number, self.source, self.epoch = number, source, 0
        if generator is not None:
            self.generator = generator

    def __len__(self) -> int:
        return self.number

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.number))
        if self.source == "python":
            random.shuffle(order)
        elif self.source == "numpy":
            np.random.shuffle(order)
        elif self.source == "epoch":
            random.Random(self.epoch).shuffle(order)
        else:
            order = torch.randperm(self.number, generator=getattr(self, "generator", None)).tolist()
        yield from order


class OwnBatchSampler(Sampler[list[int]]):
    """Batches of different sizes, in random order."""

    sizes = (3, 2, 4, 3, 5, 2, 4)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(sum(self.sizes)).tolist()
        for place in torch.randperm(len(self.sizes)).tolist():
            start = sum(self.sizes[:place])
            yield order[start : start + self.sizes[place]]


# ---- loaders
def train_data(setting: Setting, strikes: Strikes) -> TrainData:
    """Return the training data of a setting, made anew: nothing is left of an earlier call."""
    data = TrainData()
    samples = Samples(_NUM_SAMPLES, setting.augment, strikes)
    kind = setting.loader
    if kind.startswith("combined"):
        other = Samples(_NUM_OTHER_SAMPLES, setting.augment, strikes)
        loaders = {
            "a": DataLoader(samples, BATCH_SIZE, shuffle=True),
            "b": DataLoader(other, BATCH_SIZE, sampler=RandomSampler(other, generator=data.generator())),
        }
        data.loader = CombinedLoader(loaders, kind.removeprefix("combined "))
    elif kind == "no DataLoader":
        data.loader = Batches(samples)
    elif "iterable" in kind:
        data.loader = _stream_loader(setting, samples)
    else:
        data.loader = _sampled_loader(setting, samples, data)
    return data


def _stream_loader(setting: Setting, samples: Samples) -> Any:
    if setting.loader == "stateful iterable":
        return StatefulDataLoader(StatefulStream(samples), BATCH_SIZE)
    if setting.loader == "iterable with state":
        return DataLoader(StatefulStream(samples), BATCH_SIZE)
    return DataLoader(Stream(samples), BATCH_SIZE, num_workers=setting.num_workers)


def _sampled_loader(setting: Setting, samples: Samples, data: TrainData) -> Any:
    kind, workers = setting.loader, setting.num_workers
    if kind in ("stateful", "stateful workers"):
        return StatefulDataLoader(samples, BATCH_SIZE, shuffle=True, num_workers=workers)
    if kind == "own batch sampler":
        return DataLoader(samples, batch_sampler=OwnBatchSampler())
    choices: dict[str, dict[str, Any]] = {
        "persistent workers": {"shuffle": True, "persistent_workers": True},
        "prefetch factor 4": {"shuffle": True, "prefetch_factor": 4},
    }
    if kind == "own generator":
        choices[kind] = {"shuffle": True, "generator": data.generator()}
    elif kind == "own sampler":
        generator = data.generator() if setting.sampler == "generator" else None
        choices[kind] = {"sampler": OwnSampler(_NUM_SAMPLES, setting.sampler, generator)}
    elif kind == "weighted sampler":
        weights = [1.0 + index % 3 for index in range(_NUM_SAMPLES)]
        choices[kind] = {"sampler": WeightedRandomSampler(weights, _NUM_SAMPLES, generator=data.generator())}
    return DataLoader(samples, BATCH_SIZE, num_workers=workers, **choices.get(kind, {"shuffle": True}))


def val_loader(strikes: Strikes) -> Any:
    """Return the loader for validation, whose augmentation draws random numbers, too."""
    samples = Samples((_NUM_OTHER_SAMPLES - 1) // 2, "torch", strikes)
    return DataLoader(samples, batch_sampler=BatchSampler(range(len(samples)), 4, drop_last=False))
