"""Batch normalization over all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fulmen.plugins import TorchSyncBatchNorm


class OwnNorm(nn.BatchNorm1d):
    """A layer of a user."""


def test_revert_gives_the_users_layers_back_with_what_they_learned():
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm2d(2)), OwnNorm(2))
    originals = [model[1][0], model[2]]
    sync = TorchSyncBatchNorm()

    model = sync.apply(model)
    applied = [type(model[1][0]), type(model[2])]
    with torch.no_grad():
        model[2].weight.fill_(5.0)
    model[2]._buffers["running_mean"] = torch.full((2,), 3.0)
    model.eval()
    model = TorchSyncBatchNorm().revert(model)

    assert applied == [nn.SyncBatchNorm, nn.SyncBatchNorm]
    assert [model[1][0], model[2]] == originals
    assert model[2].weight.tolist() == [5.0, 5.0]
    assert model[2].running_mean.tolist() == [3.0, 3.0]
    assert not model[2].training


def test_state_dict_has_the_same_names_while_applied():
    model: Any = nn.Sequential(nn.BatchNorm1d(2))
    names = list(model.state_dict())

    assert list(TorchSyncBatchNorm().apply(model).state_dict()) == names


def test_a_layer_that_the_user_synchronized_stays_so():
    model: Any = nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm1d(2))
    own = model[0]
    sync = TorchSyncBatchNorm()

    model = sync.revert(sync.apply(model))

    assert type(model[0]) is nn.SyncBatchNorm
    assert type(model[1]) is nn.BatchNorm1d
    assert model[0].weight is own.weight


def test_a_module_that_is_itself_such_a_layer():
    layer = nn.BatchNorm1d(2)
    sync = TorchSyncBatchNorm()

    assert sync.revert(sync.apply(layer)) is layer
