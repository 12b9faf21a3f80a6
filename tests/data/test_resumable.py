"""Resuming passes over what was consumed without loading it, and nothing is different from the uninterrupted run."""

from __future__ import annotations

import io
import itertools
import random
from functools import partial
from types import GeneratorType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, get_worker_info

from fulmen.data.combined_loader import CombinedLoader
from fulmen.data.prefetch import TrainBatches
from fulmen.data.resumable import ResumableLoader
from fulmen.utilities.seed import collect_rng_states
from tests.data.resuming import Augmented, AugmentedStream, Run, assert_resume_is_exact, seed
from tests.data.samplers import SAMPLERS, Lazily, LazilyWithoutReplacement, Pairs, Unreadable

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
DataLoader: Any = torch.utils.data.DataLoader
Dataset: Any = torch.utils.data.Dataset
IterableDataset: Any = torch.utils.data.IterableDataset


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loader(num_workers: int = 0, **kwargs: Any) -> Any:
    kwargs = {"batch_size": 2, **kwargs}
    if "sampler" not in kwargs and "batch_sampler" not in kwargs:
        kwargs["shuffle"] = True
    return DataLoader(Augmented(), num_workers=num_workers, **kwargs)


class Shifted(DataLoader):
    """A subclass that only begins when it is asked for its first batch."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch + 100


class Twice(DataLoader):
    """A subclass that draws one batch for two."""

    def __iter__(self):
        for batch in super().__iter__():
            yield from (batch, -batch)


class StatefulStream(IterableDataset):
    """A stream that tells its position; it goes on where it stopped, and begins anew at its end."""

    def __init__(self, length: int = 12) -> None:
        self.next, self.length = 0, length
        self.samples = Augmented(length)

    def __iter__(self):
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        if self.next * num_workers + worker >= self.length:
            self.next = 0
        while (index := self.next * num_workers + worker) < self.length:
            self.next += 1
            yield self.samples[index]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


# ---- nothing is loaded


KINDS: dict[str, Any] = {
    "shuffled": loader,
    "own generator": lambda: loader(generator=torch.Generator().manual_seed(4)),
    "subset": lambda: loader(sampler=SubsetRandomSampler(range(12))),
    "weighted": lambda: loader(sampler=WeightedRandomSampler([1.0] * 12, 12)),
    "with replacement": lambda: loader(
        sampler=RandomSampler(range(12), replacement=True, generator=torch.Generator().manual_seed(4))
    ),
    "no batches": lambda: loader(batch_size=None),
    "pairs": lambda: DataLoader(Augmented(), batch_sampler=Pairs()),
    "batch sampler": lambda: DataLoader(Augmented(), batch_sampler=BatchSampler(RandomSampler(range(12)), 2, False)),
    "subclass": lambda: Shifted(Augmented(), batch_size=2, shuffle=True),
    **{name: partial(lambda kind: loader(sampler=kind()), kind) for name, kind in SAMPLERS.items()},
}


@pytest.mark.parametrize("stop", [(0, 2), (1, 3), (1, 0)], ids=str)
@pytest.mark.parametrize("name", list(KINDS))
def test_no_consumed_sample_is_loaded_again(name, stop):
    parts = assert_resume_is_exact(KINDS[name], stop, limit=5)

    if name == "subclass" and stop[1] == 0:
        return  # after one batch it is not known yet whether it gives one batch for each that it draws
    asked = parts[1].batches.loader.flattened[0].dataset.asked
    assert len(asked) == sum(1 if name == "no batches" else len(entry[3]) for entry in parts[1].seen)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("stop", [(0, -1), (1, 4)], ids=str)
def test_an_epoch_that_was_over_is_not_begun_again(name, stop):
    assert_resume_is_exact(KINDS[name], stop, limit=5)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_batch_that_was_handed_out_but_not_used_comes_again(name):
    for stop in ((0, 0), (1, 0), (1, 4)):
        assert_resume_is_exact(KINDS[name], stop, limit=5, is_consumed=False)


def test_many_interruptions_of_one_epoch_add_up():
    assert_resume_is_exact(loader, (1, 0), (1, 1), (1, 3), (1, 4), (2, 0))


def test_an_epoch_that_was_left_early_is_not_gone_on_with():
    assert_resume_is_exact(loader, (0, -1), (1, 1), ends_after=2)


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_interruptions_of_any_loader_are_exact(data):
    length, batch_size = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 4))
    drop_last = data.draw(st.booleans())
    per_epoch = length // batch_size if drop_last else -(-length // batch_size)
    if per_epoch == 0:
        return
    num_workers = data.draw(st.sampled_from([0, 0, 0, 0, 2]))
    kwargs: dict[str, Any] = {"batch_size": batch_size, "drop_last": drop_last, "num_workers": num_workers}
    if num_workers:
        kwargs["persistent_workers"] = data.draw(st.booleans())
        kwargs["prefetch_factor"] = data.draw(st.sampled_from([1, 2, 5]))
    kind = data.draw(st.sampled_from([None, *SAMPLERS.values()]))
    limit = data.draw(st.integers(1, per_epoch))
    is_several = data.draw(st.booleans())
    mode = data.draw(st.sampled_from(["min_size", "max_size", "max_size_cycle"]))

    def make() -> Any:
        order = {"shuffle": True} if kind is None else {"sampler": kind(length)}
        first = DataLoader(Augmented(length), **kwargs, **order)
        if not is_several:
            return first
        return {"a": first, "b": [DataLoader(Augmented(5), batch_size=2, shuffle=True), [1, 2, 3]]}

    most = int(Run(make, mode=mode, limit=limit).batches.num_batches)
    places = st.tuples(st.integers(0, 2), st.integers(-1, most - 1))
    stops = sorted(
        data.draw(st.sets(places, min_size=1, max_size=3)), key=lambda at: (at[0], most if at[1] < 0 else at[1])
    )
    is_consumed = data.draw(st.booleans()) or any(idx < 0 for _, idx in stops)

    assert_resume_is_exact(make, *stops, mode=mode, limit=limit, is_consumed=is_consumed)


# ---- workers


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        pytest.param({"prefetch_factor": 1}, marks=pytest.mark.slow),
        pytest.param({"prefetch_factor": 5, "persistent_workers": True}, marks=pytest.mark.slow),
        pytest.param({"batch_size": None, "persistent_workers": True}, marks=pytest.mark.slow),
        pytest.param({"generator": 4, "persistent_workers": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_random_numbers_and_numbers_of_workers_go_on(kwargs):
    def make() -> Any:
        own = {"generator": torch.Generator().manual_seed(kwargs["generator"])} if "generator" in kwargs else {}
        return loader(2, **{**kwargs, **own})

    assert_resume_is_exact(make, (0, 2), (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no batches", "pairs", "subclass", "weighted", *SAMPLERS])
@pytest.mark.parametrize("persistent", [False, True])
def test_every_kind_goes_on_in_workers(name, persistent):
    def make() -> Any:
        plain = KINDS[name]()
        order = {"sampler": plain.sampler, "batch_size": plain.batch_size}
        order = {"batch_sampler": plain.batch_sampler} if name == "pairs" else order
        return type(plain)(Augmented(), num_workers=2, persistent_workers=persistent, **order)

    assert_resume_is_exact(make, (0, 0), (0, 3), (1, 2), limit=5)
    assert_resume_is_exact(make, (0, -1), (1, 4), (2, 0), limit=5)
    assert_resume_is_exact(make, (0, 1), (1, 2), limit=5, is_consumed=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_it_does_not_matter_how_workers_are_started(how):
    assert_resume_is_exact(
        lambda: loader(1, multiprocessing_context=how, persistent_workers=True), (0, 2), (1, 1), epochs=2
    )


class SeedsItself(Dataset):
    """Makes its generator from the worker's seed, in the worker."""

    def __init__(self) -> None:
        self.rng: Any = None

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        assert info is not None
        if self.rng is None:
            self.rng = random.Random(info.seed)
        return torch.tensor([index, self.rng.random(), float(info.id), float(info.seed % 2**50)], dtype=torch.float64)


def make_generator(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.rng = random.Random(info.seed + torch.initial_seed() + worker_id)


def test_generators_that_datasets_make_in_workers_go_on():
    def make() -> Any:
        return DataLoader(SeedsItself(), batch_size=2, shuffle=True, num_workers=2, worker_init_fn=make_generator)

    assert_resume_is_exact(make, (0, 2), (1, 2), epochs=2)


def test_another_number_of_workers_keeps_the_order_and_is_told():
    def order(run: Run) -> list[Any]:
        return [[row[0] for row in entry[3]] for entry in run.seen]

    seed(1)
    whole = Run(loader)
    whole.fit(2)
    seed(1)
    first = Run(loader)
    saved = first.fit(2, stop_after=(1, 1))
    resumed = Run(lambda: loader(2))
    with pytest.warns(UserWarning, match=r"num_workers=0\)`, and there are 2 workers now: the order"):
        resumed.load(saved)
    rest = resumed.fit(2)

    assert rest == b""
    assert order(first) + order(resumed) == order(whole)


def test_workers_that_answer_in_any_order_lose_and_repeat_nothing():
    class Slow(Augmented):
        def __getitem__(self, index: int) -> torch.Tensor:
            torch.zeros(4000 * (index % 3), 100).sum()
            return super().__getitem__(index)

    def make() -> Any:
        return DataLoader(Slow(24), batch_size=2, shuffle=True, num_workers=2, in_order=False)

    seed(1)
    seen: list[float] = []
    saved = b""
    for stop in (2, 3, 7, None):
        run = Run(make, limit=12)
        if saved:
            run.load(saved)
        saved = run.fit(1, stop_after=None if stop is None else (0, stop))
        run.batches.close()
        seen += [row[0] for entry in run.seen for row in entry[3]]

    assert sorted(seen) == list(range(24))


def test_a_worker_notes_its_random_state_for_far_less_than_a_batch_costs():
    """Generous, as other things may run; without them it takes 20 us, and 50 us if NumPy's numbers are drawn."""
    from timeit import repeat

    from fulmen.data.rng import raw_rng_states

    assert min(repeat(raw_rng_states, number=200, repeat=5)) / 200 < 1e-3


# ---- samplers that draw while they are iterated


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:The sampler 'Lazily' gave other samples")
def test_a_sampler_that_draws_in_between_goes_on_exactly(num_workers):
    for stops in (((0, 2),), ((1, 1), (1, 3), (2, 4))):
        assert_resume_is_exact(lambda: loader(num_workers, sampler=Lazily()), *stops)
    assert_resume_is_exact(lambda: loader(num_workers, sampler=Lazily()), (1, 2), is_consumed=False)


@pytest.mark.parametrize(
    ("kind", "match"),
    [(Lazily, "'Lazily' gave other"), (LazilyWithoutReplacement, "without|not at all"), (Unreadable, "be compared")],
)
def test_what_cannot_be_known_of_a_sampler_is_told(kind, match):
    seed(1)
    first = Run(lambda: loader(sampler=kind()))
    saved = first.fit(1, stop_after=(0, 2))
    resumed = Run(lambda: loader(sampler=kind()))

    def resume() -> None:
        resumed.load(saved)
        resumed.fit(1)

    with pytest.warns(UserWarning, match=match):
        resume()


# ---- loaders that cannot pass over


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda: DataLoader(AugmentedStream(), batch_size=2), 3),
        (lambda: Twice(Augmented(), batch_size=2, shuffle=True), 4),
        (lambda: (x for x in range(100)), 3),
    ],
    ids=["stream", "own way to iterate", "generator"],
)
def test_what_is_loaded_again_is_told_once_and_exact(make, number):
    def make_tensors() -> Any:
        return map(torch.tensor, made) if isinstance(made := make(), GeneratorType) else made

    first = Run(make_tensors)
    saved = first.fit(1, stop_after=(0, number - 1))
    resumed = Run(make_tensors)
    with pytest.warns(UserWarning, match=f"{number} batches of .* are loaded again") as caught:
        resumed.load(saved)

    assert len([each for each in caught if "loaded again" in str(each.message)]) == 1
    assert_resume_is_exact(make_tensors, (0, 1), (0, 3), (1, 1))


def test_a_dataset_that_tells_its_position_is_not_read_again():
    def make() -> Any:
        return DataLoader(StatefulStream(), batch_size=2)

    parts = assert_resume_is_exact(make, (0, 2), (0, 4), limit=float("inf"))

    assert parts[1].batches.loader.flattened[0].dataset.samples.asked == [6, 7, 8, 9, 10, 11]
    assert_resume_is_exact(make, (0, -1), limit=float("inf"))


# ---- torchdata


STATEFUL: dict[str, dict[str, Any]] = {
    "main": {},
    "weighted": {"sampler": WeightedRandomSampler},
    "own generator": {"sampler": WeightedRandomSampler, "generator": 3},
    "stream": {"dataset": StatefulStream},
    "stream without state": {"dataset": AugmentedStream},
    "workers": {"num_workers": 2},
    "stream in workers": {"dataset": StatefulStream, "num_workers": 2},
    "stream without state in workers": {"dataset": AugmentedStream, "num_workers": 2},
    "rare snapshots": {"num_workers": 2, "snapshot_every_n_steps": 3},
    "persistent": {"num_workers": 2, "persistent_workers": True},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("workers" in str(STATEFUL[name]))) for name in STATEFUL]
)
def test_a_stateful_dataloader_goes_on_exactly(name):
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        kwargs = dict(STATEFUL[name])
        dataset = kwargs.pop("dataset", Augmented)()
        seed_of_own = kwargs.pop("generator", None)
        own = None if seed_of_own is None else torch.Generator().manual_seed(seed_of_own)
        if "sampler" in kwargs:
            kwargs["sampler"] = kwargs["sampler"]([1.0] * 12, 12, generator=own)
        elif not isinstance(dataset, IterableDataset):
            kwargs["shuffle"] = True
        return torchdata.StatefulDataLoader(dataset, batch_size=2, **kwargs)

    for stops in (((0, 2),), ((1, 3),), ((0, -1),), ((0, 1), (0, 3), (2, 2))):
        assert_resume_is_exact(make, *stops)
    assert_resume_is_exact(make, (0, 3), is_consumed=False)
    if "stream" not in name:
        assert_resume_is_exact(make, (0, -1), (1, 1), limit=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
def test_the_state_of_a_stateful_dataloader_before_its_first_pass_starts_no_workers():
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")
    passes = []
    state: Any = None
    for begin in (5, 6):
        seed(begin)  # the order comes from a generator that the loader seeds as it is made
        loader = torchdata.StatefulDataLoader(Augmented(), batch_size=2, shuffle=True, num_workers=1)
        resumable = ResumableLoader(loader)
        if state is not None:
            resumable.load_state_dict(state)
        again = through_a_file(resumable.state_dict(0))
        through_a_file(TrainBatches(CombinedLoader([loader])).loader_states())

        assert loader._iterator is None
        state = again
        seed(7)
        passes.append([batch.tolist() for batch in resumable.open()])
    assert passes[0] == passes[1]
    assert len(passes[0]) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
def test_a_stateful_dataloader_whose_workers_could_not_be_noted_says_so_when_it_goes_on(monkeypatch):
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> ResumableLoader:
        return ResumableLoader(torchdata.StatefulDataLoader(Augmented(), batch_size=2, num_workers=1))

    with monkeypatch.context() as patch:
        patch.setattr("fulmen.data.state_source.recorded_workers", lambda *_: None)
        resumable = make()
        next(resumable.open())
        state = through_a_file(resumable.state_dict(1))
    again = make()
    again.load_state_dict(state)

    with pytest.warns(UserWarning, match=r"random state of the DataLoader's workers .* shared memory"):
        assert len(list(again.open())) == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'set_vital'")
@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_loaders_of_all_kinds_go_on_together(mode):
    torchdata: Any = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        return {
            "a": loader(),
            "b": DataLoader(Augmented(5), batch_size=2, shuffle=True),
            "c": torchdata.StatefulDataLoader(Augmented(8), batch_size=2, sampler=Lists(8)),
            "d": [DataLoader(StatefulStream(8), batch_size=2), DataLoader(AugmentedStream(), batch_size=4)],
            "e": range(4),
        }

    for limit in (6, float("inf")):
        for stops in (((0, 0), (0, 1), (1, 0)), ((0, 2), (2, 0)), ((0, -1),)):
            assert_resume_is_exact(make, *stops, mode=mode, limit=limit)
        assert_resume_is_exact(make, (0, 1), mode=mode, limit=limit, is_consumed=False)


class Lists(WeightedRandomSampler):
    """A sampler without a state that draws from the generators of the process."""

    def __init__(self, length: int) -> None:
        super().__init__([1.0] * length, length)


# ---- one loader alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_loader_can_be_resumed_without_a_trainer(num_workers):
    seed(1)
    whole = [batch.tolist() for batch in ResumableLoader(loader(num_workers)).open()]
    seed(1)
    first = ResumableLoader(loader(num_workers))
    seen = [batch.tolist() for batch in itertools.islice(first.open(), 4)]
    state, rng = through_a_file(first.state_dict(4)), torch.get_rng_state()
    assert through_a_file(first.state_dict(3))["consumed"] == 3
    seed(7)
    second = ResumableLoader(loader(num_workers))
    second.load_state_dict(state)
    assert second.is_going_on
    before = torch.get_rng_state()
    rest = second.open()
    assert torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(rng)

    if num_workers == 0:
        assert [row[0] for batch in seen + [b.tolist() for b in rest] for row in batch] == [
            r[0] for b in whole for r in b
        ]
    else:
        assert seen + [batch.tolist() for batch in rest] == whole
    assert not second.is_going_on
    assert second.num_replayed == 0


def test_a_state_can_be_loaded_into_a_loader_whose_workers_live():
    def make() -> Any:
        return loader(1, persistent_workers=True)

    seed(1)
    resumable = ResumableLoader(make())
    list(resumable.open())
    running = resumable.open()
    next(running)
    state = through_a_file(resumable.state_dict(1))
    expected = [batch.tolist() for batch in running]
    resumable.load_state_dict(state)
    again = [batch.tolist() for batch in resumable.open()]
    resumable.load_state_dict(state)
    resumable.skip_rest()
    new_pass = list(resumable.open())

    assert again == expected
    assert len(new_pass) == 6
    CombinedLoader(resumable.loader).reset()


def test_a_loader_of_another_kind_only_counts_and_says_so():
    first = ResumableLoader(DataLoader(list(range(8))))
    next(first.open())
    state = first.state_dict(1)
    second = ResumableLoader([10, 11, 12])
    second.load_state_dict(state)

    with pytest.warns(UserWarning, match="another kind of loader"):
        assert list(second.open()) == [11, 12]


def test_a_state_does_not_grow_with_the_data_or_the_batches():
    def size(number: int) -> int:
        resumable = ResumableLoader(DataLoader(range(number), batch_size=2, sampler=SAMPLERS["OwnNumpy"](number)))
        for _ in itertools.islice(resumable.open(), number // 2 - 3):
            pass
        file = io.BytesIO()
        torch.save(resumable.state_dict(number // 2 - 3), file)
        return file.tell()

    assert abs(size(1000) - size(20)) < 1000


# ---- files of the first version


@pytest.mark.parametrize("name", ["shuffled", "own generator", "several"])
def test_a_position_of_the_first_version_still_goes_on_exactly(name):
    def make() -> Any:
        return {"a": loader(), "b": [loader(), [1, 2]]} if name == "several" else KINDS[name]()

    seed(1)
    run = Run(make)
    rng_at_start = collect_rng_states(include_cuda=False)
    generators = [make().generator.get_state()] if name == "own generator" else []
    run.fit(1, stop_after=(0, 3))
    rng = collect_rng_states()
    run.batches.close()
    whole = Run(make)
    seed(1)
    whole.fit(1)
    position = {
        "epoch": 0,
        "batches": 4,
        "is_ahead": False,
        "is_over": False,
        "drawn_before": 0,
        "rng_at_start": rng_at_start,
        "rng_before_ahead": None,
        "generators_at_start": generators,
        "live_workers_at_start": [False],
        "states_at_start": [],
        "restarts": {},
    }
    old = {"position": position, "generators": generators, "live_workers": [False]}
    seed(50)
    resumed = Run(make)
    file = io.BytesIO()
    torch.save({"position": old, "rng": rng, "epoch": 0}, file)
    resumed.load(file.getvalue())
    resumed.fit(1)

    def ids(seen: list[tuple[Any, ...]]) -> list[list[float]]:
        return [[row[0] for row in (entry[3]["a"] if name == "several" else entry[3])] for entry in seen]

    assert ids(resumed.seen) == ids(whole.seen[4:])


def test_numpy_is_asked_for_its_state_only_when_it_has_changed():
    from fulmen.data.rng import NumpySnapshot

    np.random.seed(3)
    snapshot = NumpySnapshot()
    first = snapshot.take()
    assert snapshot.take() is first
    np.random.rand()
    second = snapshot.take()
    assert second is not first
    np.random.normal()  # keeps a second number
    third = snapshot.take()
    assert third[3] == 1
    np.random.normal()  # gives it, without any change in the generator's memory
    assert snapshot.take()[3] == 0


def test_positions_are_plain_data_of_a_few_kilobytes():
    batches = TrainBatches(CombinedLoader(loader(2)))
    next(iter(batches))
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    batches.close()

    assert file.tell() < 200_000
