"""A loop over training batches that can be stopped and resumed anywhere, and what it is compared with."""

from __future__ import annotations

import io
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import TrainBatches
from fulmen.utilities.seed import collect_rng_states, set_rng_states

__all__ = ["Augmented", "AugmentedStream", "Run", "assert_resume_is_exact", "flat", "seed"]

Dataset: Any = torch.utils.data.Dataset
IterableDataset: Any = torch.utils.data.IterableDataset


class Augmented(Dataset):
    """Each sample is its index and random numbers, one from each generator and one from its own."""

    def __init__(self, length: int = 12) -> None:
        self.length = length
        self.asked: list[int] = []
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        drawn = torch.rand(()).item(), random.random(), np.random.rand(), self.rng.random()
        info = get_worker_info()
        return torch.tensor([index, *drawn, -1 if info is None else info.id], dtype=torch.float64)


class AugmentedStream(IterableDataset):
    """The same without length, a part of it from each worker."""

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        dataset = Augmented()
        for index in range(first, 12, step):
            yield dataset[index]


class Run:
    """A loop that draws random numbers in its steps, and can be stopped and resumed after any of them."""

    def __init__(
        self, make_loader: Any, *, mode: str = "max_size_cycle", limit: float = 6, notes_requests: bool = False
    ) -> None:
        self.batches = TrainBatches(CombinedLoader(make_loader(), mode), limit=limit)
        self.batches.notes_requests = notes_requests
        self.seen: list[tuple[Any, ...]] = []
        self.epoch = 0

    def fit(
        self, epochs: int, *, stop_after: tuple[int, int] | None = None, is_consumed: bool = True, ends_after: int = -1
    ) -> bytes:
        """Iterate; stop after a batch, or with index -1 after an epoch, or before the batch is used."""
        while self.epoch < epochs:
            self.batches.set_epoch(self.epoch)
            for batch, batch_idx, is_last in self.batches:
                if not is_consumed and stop_after == (self.epoch, batch_idx):
                    return self.save(batch_idx)
                noise = torch.rand(()).item(), random.random(), np.random.rand()
                self.seen.append((self.epoch, batch_idx, is_last, flat(batch), noise))
                if stop_after == (self.epoch, batch_idx):
                    return self.save()
                if batch_idx == ends_after:
                    break
            self.epoch += 1
            if stop_after == (self.epoch - 1, -1):
                return self.save(is_over=True)
        return b""

    def save(self, consumed: int | None = None, *, is_over: bool = False) -> bytes:
        file = io.BytesIO()
        torch.save(
            {
                "position": self.batches.state_dict(consumed, is_over=is_over),
                "rng": collect_rng_states(),
                "epoch": self.epoch,
            },
            file,
        )
        return file.getvalue()

    def load(self, saved: bytes, *, rng_first: bool = False) -> None:
        checkpoint = torch.load(io.BytesIO(saved), weights_only=True)
        self.epoch = checkpoint["epoch"]
        self.batches.set_epoch(self.epoch)
        rng = checkpoint["position"].get("rng_at_request") or checkpoint["rng"]
        if rng_first:
            set_rng_states(rng)
        self.batches.load_state_dict(checkpoint["position"])
        if not rng_first:
            self.batches.replay()
            set_rng_states(rng)


def flat(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: flat(value) for key, value in batch.items()}
    if isinstance(batch, list):
        return [flat(value) for value in batch]
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def assert_resume_is_exact(
    make_loader: Any,
    *stops: tuple[int, int],
    rng_first: bool = False,
    is_consumed: bool = True,
    ends_after: int = -1,
    epochs: int = 3,
    **kw: Any,
) -> list[Run]:
    """Compare a run that is stopped at each of these places with one that is not; return its parts."""
    kw["notes_requests"] = not is_consumed
    how: dict[str, Any] = {"is_consumed": is_consumed, "ends_after": ends_after}
    seed(1)
    whole = Run(make_loader, **kw)
    whole.fit(epochs, ends_after=ends_after)
    whole.batches.close()
    seen: list[Any] = []
    saved = b""
    parts = []
    for i, stop in enumerate([*stops, None]):
        seed(1 if i == 0 else 99 + i)
        run = Run(make_loader, **kw)
        parts.append(run)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "To go on where")
            if saved:
                run.load(saved, rng_first=rng_first)
            saved = run.fit(epochs, stop_after=stop, **how)
        run.batches.close()
        assert saved or stop is None
        seen += run.seen

    assert seen == whole.seen
    return parts
