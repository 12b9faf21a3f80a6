"""Going on inside an epoch gives the batches of the uninterrupted run, to the bit."""

from __future__ import annotations

import io
import warnings
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from fulmen.core.callback import Callback
from fulmen.core.module import LightningModule
from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.position import LoaderPosition
from fulmen.data.prefetch import EvalBatches, TrainBatches
from fulmen.trainer.trainer import Trainer
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from tests.data.resuming import Augmented, AugmentedStream, Run, assert_resume_is_exact, flat, seed

pytestmark = pytest.mark.filterwarnings("ignore:To go on where the checkpoint was taken")

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader


class Plain:
    """An iterable that is no DataLoader, and draws from the generators of the process."""

    def __init__(self, length: int, sized: bool) -> None:
        self.length = length
        if sized:
            self.__class__ = SizedPlain

    def __iter__(self):
        dataset = Augmented(100)
        for index in torch.randperm(self.length).tolist():
            yield dataset[index]


class SizedPlain(Plain):
    def __len__(self) -> int:
        return self.length


def shuffled(num_workers: int = 0, **kwargs: Any) -> DataLoader:
    return DataLoader(Augmented(), batch_size=2, shuffle=True, num_workers=num_workers, **kwargs)


def own_generator(num_workers: int = 0) -> DataLoader:
    return shuffled(num_workers, generator=torch.Generator().manual_seed(5))


def weighted() -> DataLoader:
    sampler = WeightedRandomSampler([1.0] * 12, 12, generator=torch.Generator().manual_seed(7))
    return DataLoader(Augmented(), batch_size=2, sampler=sampler)


def stream(num_workers: int = 0) -> DataLoader:
    return DataLoader(AugmentedStream(), batch_size=2, num_workers=num_workers)


LOADERS = {
    "main": shuffled,
    "workers": lambda: shuffled(2),
    "main-own-generator": own_generator,
    "workers-own-generator": lambda: own_generator(2),
    "weighted": weighted,
    "stream-main": stream,
    "stream-workers": lambda: stream(2),
    "plain": lambda: Plain(6, sized=True),
    "plain-unsized": lambda: Plain(6, sized=False),
    "dict": lambda: {"a": shuffled(), "b": Plain(2, sized=True)},
    "dict-unsized": lambda: {"a": shuffled(2), "b": Plain(2, sized=False)},
    "generator": lambda: (torch.tensor([float(i)]) for i in count()),
}


@pytest.mark.parametrize("stop_after", [(0, 2), (1, 4), (1, 5), (0, -1)], ids=str)
@pytest.mark.parametrize("name", [name for name in LOADERS if "workers" not in name])
def test_resume_is_exact(name, stop_after):
    assert_resume_is_exact(LOADERS[name], stop_after)


@pytest.mark.parametrize("stop_after", [(1, 3), (0, -1)], ids=str)
@pytest.mark.parametrize("name", [name for name in LOADERS if "workers" in name])
def test_resume_is_exact_with_workers(name, stop_after):
    assert_resume_is_exact(LOADERS[name], stop_after)


@pytest.mark.parametrize("name", ["main", "stream-main", "dict-unsized"])
def test_resume_is_exact_if_the_generators_are_restored_before(name):
    assert_resume_is_exact(LOADERS[name], (1, 1), rng_first=True)


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("batch_idx", [0, 2])
def test_resume_is_exact_in_every_mode(mode, sized, batch_idx):
    def loaders():
        return {"a": Plain(5, sized), "b": [Plain(3, sized), Plain(4, sized)]}

    assert_resume_is_exact(loaders, (1, batch_idx), mode=mode, limit=float("inf"))


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("batch_idx", [0, 1, 2, 3, 6, 7])
def test_loaders_that_start_again_inside_an_epoch_do_so_in_the_same_order(sized, batch_idx):
    def loaders():
        return {"a": Plain(8, sized), "b": Plain(2, sized), "c": Plain(3, sized)}

    assert_resume_is_exact(loaders, (1, batch_idx), limit=float("inf"))


def test_a_second_interruption_in_the_same_epoch_is_exact_too():
    for name in ("main", "stream-main"):
        seed(1)
        whole = Run(LOADERS[name])
        whole.fit(2)
        seed(1)
        first = Run(LOADERS[name])
        saved = first.fit(2, stop_after=(1, 1))
        seed(50)
        second = Run(LOADERS[name])
        second.load(saved)
        saved_again = second.save()  # nothing was drawn in between
        assert torch.load(io.BytesIO(saved_again))["position"]["position"]["batches"] == 2
        saved = second.fit(2, stop_after=(1, 3))
        seed(51)
        third = Run(LOADERS[name])
        third.load(saved)
        third.fit(2)

        assert first.seen + second.seen + third.seen == whole.seen


def test_replay_puts_the_generators_back():
    seed(1)
    run = Run(LOADERS["stream-main"])
    saved = run.fit(1, stop_after=(0, 3))
    resumed = Run(LOADERS["stream-main"])
    checkpoint = torch.load(io.BytesIO(saved))
    resumed.batches.load_state_dict(checkpoint["position"])
    before = collect_rng_states()

    assert resumed.batches.replay() == 4
    assert resumed.batches.replay() == 0
    after = collect_rng_states()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["python"][1], after["python"][1])
    assert torch.equal(before["numpy"][1], after["numpy"][1])


def test_nothing_is_replayed_when_the_epoch_was_over():
    loader = [1, 2, 3]
    batches = TrainBatches(CombinedLoader(loader))
    list(batches)
    resumed = TrainBatches(CombinedLoader(loader))
    resumed.load_state_dict(batches.state_dict())

    assert resumed.replay() == 0
    assert list(resumed) == []
    assert not resumed.ended_early
    assert len(list(resumed)) == 3


def test_consumed_batches_can_be_given():
    batches = TrainBatches(CombinedLoader(list(range(5))))
    running = iter(batches)
    [next(running) for _ in range(3)]
    resumed = TrainBatches(CombinedLoader(list(range(5))))
    resumed.load_state_dict(batches.state_dict(2))

    assert [item[:2] for item in resumed] == [(2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("loader", [list(range(5)), Plain(5, sized=False)], ids=["sized", "unsized"])
def test_set_start_skips_without_a_position(loader):
    seed(3)
    whole = [(flat(torch.as_tensor(b)), i) for b, i, _ in TrainBatches(CombinedLoader(loader))]
    seed(3)
    batches = TrainBatches(CombinedLoader(loader))
    batches.set_start(2)

    rest = [(torch.as_tensor(b), i, is_last) for b, i, is_last in batches]

    assert [i for _, i, _ in rest] == [2, 3, 4]
    assert [is_last for _, _, is_last in rest] == [False, False, True]
    assert [b.flatten()[0].item() for b, _, _ in rest] == [np.ravel(b)[0] for b, _ in whole[2:]]


def test_a_shorter_loader_on_resume_warns():
    batches = TrainBatches(CombinedLoader(Plain(5, sized=False)))
    running = iter(batches)
    [next(running) for _ in range(4)]
    resumed = TrainBatches(CombinedLoader(Plain(2, sized=False)))
    resumed.load_state_dict(batches.state_dict())

    with pytest.warns(UserWarning, match="ended after 2"):
        assert list(resumed) == []


def test_other_generators_on_resume_warn():
    batches = TrainBatches(CombinedLoader(own_generator()))
    resumed = TrainBatches(CombinedLoader(shuffled()))
    resumed.load_state_dict(batches.state_dict())

    with pytest.warns(UserWarning, match="states of 1"):
        resumed.replay()


@pytest.mark.parametrize("stop_after", [(1, 2), (0, -1)], ids=str)
def test_persistent_workers_go_on_exactly_also_after_their_first_epoch(stop_after):
    assert_resume_is_exact(lambda: shuffled(2, persistent_workers=True), stop_after)


def test_evaluation_loaders_go_on_with_their_own_order():
    def passes(batches, number):
        return [[batch.tolist() for batch, _, _ in batches] for _ in range(number)]

    def make():
        return EvalBatches(CombinedLoader([own_generator()], "sequential"), [3])

    seed(1)
    whole = passes(make(), 3)
    seed(1)
    first = make()
    seen = passes(first, 1)
    state, rng = first.state_dict(), collect_rng_states()
    seed(5)
    second = make()
    second.load_state_dict(state)
    set_rng_states(rng)

    assert seen + passes(second, 2) == whole


def test_evaluation_with_persistent_workers_goes_on_exactly():
    def make():
        return EvalBatches(CombinedLoader([shuffled(1, persistent_workers=True)], "sequential"), [3])

    def passes(batches, number):
        return [[batch.tolist() for batch, _, _ in batches] for _ in range(number)]

    seed(1)
    whole = make()
    expected = passes(whole, 3)
    whole.close()
    seed(1)
    first = make()
    seen = passes(first, 1)
    state, rng = first.state_dict(), collect_rng_states()
    first.close()
    seed(5)
    second = make()
    second.load_state_dict(state)
    set_rng_states(rng)

    assert seen + passes(second, 2) == expected
    second.close()


# ---- loaders with a state of their own


class Stateful:
    """Counts on over epochs, as a stream in a file does; knows its position."""

    def __init__(self, length: int = 6, *, announces: bool = True) -> None:
        self.position, self.length = 0, length
        self.loaded: list[int] = []
        if announces:
            self.__class__ = SizedStateful

    def __iter__(self):
        for _ in range(self.position % self.length, self.length):
            self.position += 1
            yield torch.tensor([float(self.position)])

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]
        self.loaded.append(self.position)


class SizedStateful(Stateful):
    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("stop_after", [(0, 2), (1, 4), (1, 5), (0, -1)], ids=str)
def test_a_stateful_loader_resumes_by_its_state(announces, stop_after):
    assert_resume_is_exact(lambda: Stateful(announces=announces), stop_after)


def test_a_stateful_loader_is_not_replayed():
    first = Run(Stateful)
    saved = first.fit(1, stop_after=(0, 3))
    resumed = Run(Stateful)
    resumed.load(saved)

    assert resumed.batches.loader.flattened[0].loaded == [4]
    assert [item[1] for item in resumed.batches] == [4, 5]


@pytest.mark.parametrize(("mode", "length"), [("min_size", 6), ("max_size_cycle", 4)])
@pytest.mark.parametrize("stop_after", [(0, 2), (1, 5), (1, 4)], ids=str)
def test_stateful_loaders_among_others_are_exact(mode, length, stop_after):
    assert_resume_is_exact(lambda: {"a": Stateful(), "b": Stateful(length), "c": shuffled()}, stop_after, mode=mode)
    assert_resume_is_exact(lambda: {"a": Stateful(), "b": Stateful(length)}, stop_after, mode=mode)


@pytest.mark.parametrize("limit", [6, float("inf")])
def test_a_stateful_stream_that_was_over_does_not_begin_anew(limit):
    assert_resume_is_exact(lambda: Stateful(announces=False), (1, 5), limit=limit)


def test_another_number_of_stateful_loaders_is_refused():
    batches = TrainBatches(CombinedLoader([Stateful(), [1]]))

    assert batches.loader_states() == [{"position": 0}]
    with pytest.raises(RuntimeError, match="2 stateful"):
        batches.load_loader_states([{"position": 0}] * 2)


def test_states_without_a_position_are_enough():
    batches = TrainBatches(CombinedLoader(Stateful()))
    batches.load_loader_states([{"position": 2}])
    batches.set_start(2)

    assert [(batch.item(), i) for batch, i, _ in batches] == [(3, 2), (4, 3), (5, 4), (6, 5)]


def test_a_position_is_plain_data():
    batches = TrainBatches(CombinedLoader(own_generator()))
    next(iter(batches))
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    file.seek(0)

    loaded = torch.load(file, weights_only=True)

    assert loaded["position"]["batches"] == 1
    assert LoaderPosition.from_state_dict(loaded["position"]).batches == 1


def test_no_warning_while_resuming():
    run = Run(shuffled)
    saved = run.fit(1, stop_after=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = Run(shuffled)
        resumed.load(saved)
        resumed.fit(1)


# ---- through the Trainer


class Saves(Callback):
    """Writes a checkpoint after one batch."""

    def __init__(self, path, epoch: int, batch_idx: int) -> None:
        self.path, self.at = path, (epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


class Regression(LightningModule):
    def __init__(self, make_loader) -> None:
        super().__init__()
        self.make_loader = make_loader
        self.layer = torch.nn.Linear(6, 1, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(0.5)
        self.losses: list[tuple[int, int, float]] = []

    def training_step(self, batch, batch_idx):
        batch = sum(batch.values()) if isinstance(batch, dict) else batch
        loss = self.layer(self.dropout(batch)).pow(2).mean() * 1e-3
        self.losses.append((self.trainer.current_epoch, batch_idx, loss.item()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return self.make_loader()


TRAINED = {
    "main": shuffled,
    "workers": lambda: shuffled(2),
    "stream": stream,
    "dict": lambda: {"a": shuffled(), "b": DataLoader(Augmented(4), batch_size=2, shuffle=True)},
}


@pytest.mark.parametrize("at", [(0, 0), (1, 3), (1, 5)], ids=str)
@pytest.mark.parametrize("name", list(TRAINED))
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, name, at):
    def train(run_seed, *, callbacks=(), ckpt_path=None):
        seed(run_seed)
        module = Regression(TRAINED[name])
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, ckpt_path=ckpt_path)
        return module

    whole = train(1, callbacks=[Saves(tmp_path / "at.ckpt", *at)])
    resumed = train(77, ckpt_path=tmp_path / "at.ckpt")

    assert resumed.losses == [entry for entry in whole.losses if entry[:2] > at]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
