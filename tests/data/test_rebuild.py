"""Loaders made again keep everything but what was to be changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler

from fulmen.data.rebuild import rebuild, rebuild_batch_sampler, recording_dataloader_arguments
from fulmen.utilities.exceptions import MisconfigurationException

# As `Any`: plain lists serve as datasets here, which torch's hints do not allow.
BatchSampler: Any = torch.utils.data.BatchSampler
DataLoader: Any = torch.utils.data.DataLoader
IterableDataset: Any = torch.utils.data.IterableDataset

DATA = list(range(6))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class OwnDataset(DataLoader):
    """Makes its own dataset and hands the rest on."""

    def __init__(self, number, *args, **kwargs):
        super().__init__(list(range(number)), *args, **kwargs)


class Renamed(DataLoader):
    def __init__(self, extra, ds, *args, **kwargs):
        self.doubled = extra * 2
        super().__init__(ds, *args, **kwargs)


class Strict(DataLoader):
    def __init__(self, dataset, batch_size):
        super().__init__(dataset, batch_size)


class WithAttributes(DataLoader):
    def __init__(self, number, dataset, flag=False, **kwargs):
        self.number, self.flag = number, flag
        super().__init__(dataset, **kwargs)


class WeightedBatches(BatchSampler):
    def __init__(self, sampler, batch_size, drop_last, extra):
        super().__init__(sampler, batch_size, drop_last)
        self.more = extra


class NotLikeBatchSampler:
    def __init__(self, number):
        self.number = number

    def __iter__(self):
        return iter([[i] for i in range(self.number)])

    def __len__(self):
        return self.number


def recorded(make):
    with recording_dataloader_arguments():
        return make()


def made_both_ways(make):
    return [make(), recorded(make)]


def identity(batch):
    return batch


def no_init(worker_id):
    return None


def test_every_argument_survives():
    generator = torch.Generator()
    make = lambda: DataLoader(  # noqa: E731
        DATA,
        batch_size=2,
        shuffle=True,
        num_workers=1,
        collate_fn=identity,
        drop_last=True,
        timeout=3,
        worker_init_fn=no_init,
        multiprocessing_context="fork",
        generator=generator,
        prefetch_factor=4,
        persistent_workers=True,
        in_order=False,
    )
    names = [
        "dataset", "batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn",
        "generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
    ]  # fmt: skip
    for loader in made_both_ways(make):
        again: Any = rebuild(loader)

        assert again is not loader
        assert [getattr(again, name) for name in names] == [getattr(loader, name) for name in names]
        assert again.multiprocessing_context.get_start_method() == "fork"
        assert isinstance(again.sampler, RandomSampler)
        assert again.sampler.generator is generator


def test_a_new_sampler_replaces_shuffling():
    for loader in made_both_ways(lambda: DataLoader(DATA, batch_size=4, shuffle=True)):
        again: Any = rebuild(loader, sampler=SequentialSampler(DATA))

        assert [batch.tolist() for batch in again] == [[0, 1, 2, 3], [4, 5]]
        assert isinstance(loader.sampler, RandomSampler)


def test_a_new_batch_sampler_replaces_batch_size_and_sampler():
    for loader in made_both_ways(lambda: DataLoader(DATA, 4, True, drop_last=True)):
        again: Any = rebuild(loader, batch_sampler=[[1, 2], [5]])

        assert [batch.tolist() for batch in again] == [[1, 2], [5]]


def test_loaders_without_batching_and_over_streams():
    for loader in made_both_ways(lambda: DataLoader(DATA, batch_size=None, shuffle=True)):
        assert list(rebuild(loader, sampler=SequentialSampler(DATA))) == DATA
    for loader in made_both_ways(lambda: DataLoader(Stream(), batch_size=4, drop_last=True)):
        assert [batch.tolist() for batch in rebuild(loader)] == [[0, 1, 2, 3]]
        assert [batch.tolist() for batch in rebuild(loader, drop_last=False)] == [[0, 1, 2, 3], [4, 5]]


def test_a_batch_sampler_of_the_user_is_kept():
    batches = [[1, 2], [5]]
    for loader in made_both_ways(lambda: DataLoader(DATA, batch_sampler=batches)):
        again: Any = rebuild(loader, num_workers=0, collate_fn=identity)

        assert again.batch_sampler is batches
        assert list(again) == batches


def test_a_new_sampler_goes_into_the_batch_sampler_of_the_user():
    for loader in made_both_ways(
        lambda: DataLoader(DATA, batch_sampler=WeightedBatches(RandomSampler(DATA), 4, True, extra=3))
    ):
        if "_fulmen_record" not in vars(loader.batch_sampler):
            loader.batch_sampler.extra = 3  # the argument's name, without which it cannot be made again
        again: Any = rebuild(loader, sampler=SequentialSampler(DATA), drop_last=False)

        assert type(again.batch_sampler) is WeightedBatches
        assert again.batch_sampler.more == 3
        assert [batch.tolist() for batch in again] == [[0, 1, 2, 3], [4, 5]]
        assert isinstance(loader.batch_sampler.sampler, RandomSampler)


def test_a_batch_sampler_of_another_make_cannot_be_changed():
    loader = DataLoader(DATA, batch_sampler=NotLikeBatchSampler(3))
    with pytest.raises(TypeError, match="constructor"):
        rebuild(loader, sampler=SequentialSampler(DATA))
    with pytest.raises(TypeError, match="extra"):
        rebuild_batch_sampler(WeightedBatches(RandomSampler(DATA), 4, True, 3), drop_last=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnDataset(6, batch_size=2, shuffle=True),
        lambda: OwnDataset(6, 2, True),
        lambda: Renamed(1, DATA, 2, True),
        lambda: Renamed(extra=1, ds=DATA, batch_size=2, shuffle=True),
        lambda: WithAttributes(1, DATA, True, batch_size=2, shuffle=True),
    ],
)
def test_subclasses_made_in_a_hook_are_made_again(make):
    loader = recorded(make)

    again: Any = rebuild(loader, sampler=SequentialSampler(DATA))
    third = rebuild(again, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, False))

    assert type(again) is type(loader)
    assert [batch.tolist() for batch in again] == [[0, 1], [2, 3], [4, 5]]
    assert [len(batch) for batch in third] == [5, 1]


def test_a_subclass_defined_in_a_hook_is_recorded():
    def hook():
        class Local(DataLoader):
            def __init__(self, number):
                super().__init__(list(range(number)), batch_size=2)

        return Local(4)

    again: Any = rebuild(recorded(hook))

    assert len(again) == 2


def test_attributes_of_the_same_name_are_enough():
    loader = WithAttributes(7, DATA, flag=True, batch_size=3, shuffle=True)

    again: Any = rebuild(loader, sampler=SequentialSampler(DATA))

    assert (again.number, again.flag, again.batch_size) == (7, True, 3)
    assert [batch.tolist() for batch in again] == [[0, 1, 2], [3, 4, 5]]


def test_attributes_set_later_are_set_again():
    for loader in made_both_ways(lambda: DataLoader(DATA, batch_size=2)):
        loader.note = "mine"
        loader.worker_init_fn = no_init
        loader.collate_fn = identity
        again: Any = rebuild(loader, sampler=SequentialSampler(DATA))

        assert (again.note, again.worker_init_fn, again.collate_fn) == ("mine", no_init, identity)
        assert next(iter(again)) == [0, 1]


def test_attributes_changed_after_recording_win():
    loader = recorded(lambda: WithAttributes(7, DATA, batch_size=2))
    loader.number = 8

    again: Any = rebuild(loader)

    assert again.number == 8


def test_hidden_arguments_are_an_error_with_advice():
    with pytest.raises(MisconfigurationException, match=r"\['number'\].*`\*_dataloader` hook.*`self.number`"):
        rebuild(OwnDataset(6))


def test_arguments_that_are_not_accepted_are_an_error_with_advice():
    for loader in made_both_ways(lambda: Strict(DATA, 2)):
        with pytest.raises(MisconfigurationException, match=r"not accept \['sampler'\].*\*\*kwargs"):
            rebuild(loader, sampler=SequentialSampler(DATA))


def test_arguments_given_twice_are_an_error_with_advice():
    loader = OwnDataset(6)
    loader.number = 6

    with pytest.raises(MisconfigurationException, match="'dataset'"):
        rebuild(loader)


def test_recording_leaves_no_trace():
    classes = [DataLoader, BatchSampler, OwnDataset, WeightedBatches]
    before = [vars(cls).get("__init__") for cls in classes]
    with recording_dataloader_arguments():
        with recording_dataloader_arguments():
            assert inspect.signature(DataLoader) is not None
        inner = DataLoader(DATA)
        with pytest.raises(TypeError):
            DataLoader()
    with pytest.raises(ZeroDivisionError), recording_dataloader_arguments():
        raise ZeroDivisionError

    assert "_fulmen_record" in vars(inner)
    assert "_fulmen_record" not in vars(DataLoader(DATA))
    assert [vars(cls).get("__init__") for cls in classes] == before
    assert "__init_subclass__" not in vars(DataLoader)


def test_other_samplers_survive():
    sampler = SubsetRandomSampler([1, 2])
    for loader in made_both_ways(lambda: DataLoader(DATA, sampler=sampler)):
        assert rebuild(loader).sampler is sampler
