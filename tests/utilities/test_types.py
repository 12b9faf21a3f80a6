"""Aliases and protocols of the public signatures."""

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from fulmen.utilities import types


def test_the_defaults_of_a_scheduler_config_are_those_of_lightning():
    scheduler = StepLR(SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), step_size=1)

    config = types.LRSchedulerConfig(scheduler)

    assert (config.name, config.interval, config.frequency) == (None, "epoch", 1)
    assert (config.reduce_on_plateau, config.monitor, config.strict) == (False, None, True)


def test_optimizers_and_modules_fit_the_protocols():
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)

    assert isinstance(optimizer, types.Optimizable)
    assert isinstance(optimizer, types.Steppable)
    assert isinstance(torch.nn.Linear(1, 1), types.Stateful)
    assert not isinstance(torch.nn.Linear(1, 1), types.Optimizable)
    assert not isinstance(torch.ones(1), types.Stateful)


def test_the_scheduler_tuple_works_with_isinstance():
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)

    assert isinstance(StepLR(optimizer, 1), types.LRSchedulerTypeTuple)
    assert isinstance(ReduceLROnPlateau(optimizer), types.LRSchedulerTypeTuple)


def test_the_dictionary_forms_have_the_keys_of_lightning():
    assert types.LRSchedulerConfigType.__required_keys__ == {"scheduler"}
    assert types.LRSchedulerConfigType.__optional_keys__ >= {"name", "interval", "frequency", "monitor", "strict"}
    assert types.OptimizerLRSchedulerConfig.__required_keys__ == {"optimizer", "lr_scheduler"}
    assert types.OptimizerLRSchedulerConfig.__optional_keys__ == {"monitor"}


def test_all_lists_every_public_name_that_is_defined_here():
    assert all(hasattr(types, name) for name in types.__all__)
