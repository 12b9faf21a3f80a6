"""A loop of the user's own goes on from the very next batch, with the random numbers it would have had."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from fulmen import Fabric
from tests.distributed_harness import run_ranks

_SIZE = 13
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it


class Augmented(Dataset[Tensor]):
    """Its samples are a number and what two generators draw."""

    num_loaded = 0

    def __getitem__(self, index: int) -> Tensor:
        Augmented.num_loaded += 1
        return torch.tensor([index, torch.rand(()).item(), random.random()])

    def __len__(self) -> int:
        return _SIZE


class Stream(IterableDataset[Tensor]):
    """The same without indices."""

    def __iter__(self) -> Any:
        return iter(Augmented()[i] for i in range(_SIZE))


def weighted(**settings: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    sampler = WeightedRandomSampler([1.0] * _SIZE, _SIZE, generator=generator)
    return DataLoader(Augmented(), batch_size=3, sampler=sampler, **settings)


def stateful(**settings: Any) -> Any:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    return torchdata.StatefulDataLoader(Augmented(), batch_size=3, shuffle=True, **settings)


LOADERS: dict[str, Any] = {
    "in order": lambda: DataLoader(Augmented(), batch_size=3),
    "shuffled": lambda: DataLoader(Augmented(), batch_size=3, shuffle=True, drop_last=True),
    "weighted": weighted,
    "two workers": lambda: DataLoader(Augmented(), batch_size=3, shuffle=True, num_workers=2),
    "workers that stay": lambda: weighted(num_workers=2, persistent_workers=True),
    "stream": lambda: DataLoader(Stream(), batch_size=3),
    "stateful": stateful,
}


class Loop:
    """Three epochs of a small training with dropout."""

    def __init__(self, make_loader: Any) -> None:
        torch.manual_seed(1)
        random.seed(1)
        self.fabric = Fabric(accelerator="cpu", devices=1)
        module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.model, self.optimizer = self.fabric.setup(module, torch.optim.Adam(module.parameters(), lr=0.1))
        self.loader = self.fabric.setup_dataloaders(make_loader())
        self.state = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader, "epoch": 0}
        self.seen: list[Any] = []

    def run(self, *, save_at: int | None = None, path: Path | None = None) -> None:
        number = 0
        for epoch in range(self.state["epoch"], 3):
            self.state["epoch"] = epoch
            for batch_idx, batch in enumerate(self.loader, self.loader.num_consumed):
                self.optimizer.zero_grad()
                loss = self.model(batch).square().mean()
                self.fabric.backward(loss)
                self.optimizer.step()
                self.seen.append((epoch, batch_idx, batch.tolist(), loss.item()))
                number += 1
                if number == save_at:
                    self.fabric.save(path, self.state)  # type: ignore[arg-type]  # given with `save_at`
                    return


def loop_of(name: str) -> Loop:
    return Loop(LOADERS[name])


CASES = [(name, save_at) for name in LOADERS if "workers" not in name for save_at in (1, 4, 5, 7, 12)]
CASES += [("two workers", 7)]


@pytest.mark.parametrize(
    ("name", "save_at"),
    [*CASES, *(pytest.param("workers that stay", save_at, marks=pytest.mark.slow) for save_at in (4, 7))],
)
@pytest.mark.filterwarnings("ignore:.*load(ed)? again")
def test_a_loop_goes_on_with_the_next_batch(name, save_at, tmp_path):
    whole = loop_of(name)
    whole.run()
    first = loop_of(name)
    first.run(save_at=save_at, path=tmp_path / "a.ckpt")
    again = loop_of(name)
    torch.manual_seed(99)
    again.fabric.load(tmp_path / "a.ckpt", again.state)
    torch.manual_seed(98)  # whatever else a program does before it goes on
    again.run()

    assert first.seen + again.seen == whole.seen
    assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))


def test_nothing_of_the_epoch_is_loaded_again(tmp_path):
    first = loop_of("shuffled")
    first.run(save_at=2, path=tmp_path / "a.ckpt")
    again = loop_of("shuffled")
    again.fabric.load(tmp_path / "a.ckpt", again.state)
    number_before = Augmented.num_loaded
    next(iter(again.loader))

    assert Augmented.num_loaded == number_before + 3


def test_a_state_between_two_epochs_begins_the_next_one(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(Augmented(), batch_size=3, shuffle=True))
    list(loader)
    fabric.save(tmp_path / "a.ckpt", {"loader": loader})
    expected = [batch.tolist() for batch in loader]
    again = fabric.setup_dataloaders(DataLoader(Augmented(), batch_size=3, shuffle=True))
    fabric.load(tmp_path / "a.ckpt", {"loader": again})

    assert again.num_consumed == 0
    assert [batch.tolist() for batch in again] == expected


def test_the_state_of_a_stateful_loader_from_elsewhere_is_used(tmp_path):
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    plain = torchdata.StatefulDataLoader(list(range(_SIZE)), batch_size=3)
    batches = iter(plain)
    next(batches)
    torch.save({"loader": plain.state_dict()}, tmp_path / "a.ckpt")
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(torchdata.StatefulDataLoader(list(range(_SIZE)), batch_size=3))
    fabric.load(tmp_path / "a.ckpt", {"loader": loader})

    assert next(iter(loader)).tolist() == [3, 4, 5]


def test_the_state_of_another_kind_of_loader_is_refused(tmp_path):
    torch.save({"loader": {"_steps": 3}}, tmp_path / "a.ckpt")
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(Augmented()))

    with pytest.raises(TypeError, match="cannot take one"):
        fabric.load(tmp_path / "a.ckpt", {"loader": loader})


# ---- several processes


def part_of_an_epoch(path: Path, batch_size: int, save: bool) -> list[int]:
    fabric = Fabric(accelerator="cpu", strategy="ddp")
    fabric.launch()
    torch.manual_seed(1)
    loader = fabric.setup_dataloaders(DataLoader(list(range(24)), batch_size=batch_size, shuffle=True))  # type: ignore[arg-type]
    if not save:
        fabric.load(path, {"loader": loader})
    seen: list[int] = []
    for batch_idx, batch in enumerate(loader, loader.num_consumed):
        seen += batch.tolist()
        if save and batch_idx == 1:
            fabric.save(path, {"loader": loader})
            break
    return seen


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (1, 4), (3, 2), (4, 1)])
def test_an_epoch_goes_on_with_any_number_of_processes(world_size, batch_size, tmp_path):
    first = run_ranks(part_of_an_epoch, 2, tmp_path / "a.ckpt", 2, True, timeout=120)
    rest = run_ranks(part_of_an_epoch, world_size, tmp_path / "a.ckpt", batch_size, False, timeout=120)

    assert sorted(chain(*first, *rest)) == list(range(24))
    assert sum(map(len, first)) == 8
