"""`save_hyperparameters`, `hparams`, and what a checkpoint keeps of them."""

from __future__ import annotations

import io
import threading
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fulmen.core import hparams as hparams_module
from fulmen.core.hparams import HyperparametersMixin, dump_hparams, stored_hparams, unread_hparams
from fulmen.utilities.parsing import AttributeDict


class Owner(HyperparametersMixin):
    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"


class Everything(Owner):
    def __init__(self, a, b=2, *args, c=3, **kwargs):
        super().__init__()
        a = 10 * a
        local = 1  # noqa: F841
        self.save_hyperparameters()


@pytest.fixture(autouse=True)
def _fresh_warnings():
    hparams_module._warned.clear()


# ---- what is saved


def test_all_arguments_are_saved_with_their_present_values():
    assert Everything(1, 5, 6, 7, z=9).hparams == {"a": 10, "b": 5, "c": 3, "z": 9}


def test_arguments_of_subclass_constructors_are_saved_and_win():
    class Sub(Everything):
        def __init__(self, a, q=1):
            super().__init__(a, z=3)

    assert Sub(1).hparams == {"a": 1, "b": 2, "c": 3, "z": 3, "q": 1}


def test_ignore_of_a_subclass_removes_what_the_base_saved():
    class Sub(Everything):
        def __init__(self, a, q=1):
            super().__init__(a, z=3)
            self.save_hyperparameters(ignore=["z", "b"])

    model = Sub(1)
    assert model.hparams == {"a": 1, "c": 3, "q": 1}
    assert model.hparams_initial == model.hparams


def test_an_object_made_inside_another_constructor_does_not_take_its_arguments():
    class Outer(Owner):
        def __init__(self, outer=1):
            self.inner = Everything(1)

    assert "outer" not in Outer().inner.hparams


def test_names_select_arguments():
    class Net(Owner):
        def __init__(self, a, b, **kwargs):
            self.save_hyperparameters("a", "x")

    assert Net(1, 2, x=3, y=4).hparams == {"a": 1, "x": 3}


def test_second_call_adds():
    class Net(Owner):
        def __init__(self, a, b):
            self.save_hyperparameters("a")
            self.save_hyperparameters("b")

    assert Net(1, 2).hparams == {"a": 1, "b": 2}


def test_call_from_a_method_and_before_super_init_works():
    class Net(Owner):
        def __init__(self, a):
            self.remember()
            super().__init__()

        def remember(self):
            self.save_hyperparameters()

    assert Net(1).hparams == {"a": 1}


def test_dataclass_fields_are_arguments():
    @dataclass
    class Net(Owner):
        x: int = 1
        y: float = 2.0

        def __post_init__(self):
            super().__init__()
            self.save_hyperparameters(ignore="y")

    assert Net(5).hparams == {"x": 5}


@pytest.mark.parametrize("config", [{"k": 1}, Namespace(k=1), AttributeDict(k=1)], ids=lambda c: type(c).__name__)
def test_a_config_object_becomes_the_hparams(config):
    class Net(Owner):
        def __init__(self, conf, other=1):
            self.save_hyperparameters(conf)

    model = Net(config)
    assert model.hparams == {"k": 1}
    assert type(model.hparams) is AttributeDict
    assert dump_hparams(model) == {"hparams_name": "conf", "hyper_parameters": {"k": 1}}


def test_a_config_that_is_no_argument_has_no_name():
    class Net(Owner):
        def __init__(self, a):
            self.save_hyperparameters({"z": 1})

    assert dump_hparams(Net(1)) == {"hparams_name": None, "hyper_parameters": {"z": 1}}


def test_an_empty_config_saves_nothing():
    class Net(Owner):
        def __init__(self, conf):
            self.save_hyperparameters(conf)

    assert Net({}).hparams == {}
    assert dump_hparams(Net({})) == {}


def test_outside_a_constructor_nothing_is_saved():
    model = Owner()
    model.save_hyperparameters()

    assert model.hparams == {}


# ---- wrong calls


@pytest.mark.parametrize(
    ("config", "message"),
    [(3, "plain int"), ([1], "of type 'list'"), ({1}, "of type 'set'"), (Path("a"), "of type 'PosixPath'")],
)
def test_a_config_without_names_is_refused(config, message):
    class Net(Owner):
        def __init__(self, conf):
            self.save_hyperparameters(conf)

    with pytest.raises(ValueError, match=message):
        Net(config)


def test_an_unknown_name_is_refused():
    class Net(Owner):
        def __init__(self, a):
            self.save_hyperparameters("b")

    with pytest.raises(KeyError, match=r"\['b'\] is no argument of `Net.__init__\(\)`"):
        Net(1)


def test_several_configs_are_refused():
    class Net(Owner):
        def __init__(self, a, b):
            self.save_hyperparameters(a, b)

    with pytest.raises(ValueError, match="Only one object can become the hyperparameters"):
        Net({"x": 1}, {"y": 1})


def test_names_beside_a_config_are_ignored_with_a_warning():
    class Net(Owner):
        def __init__(self, a, b):
            self.save_hyperparameters(a, "b")

    with pytest.warns(UserWarning, match="names are ignored"):
        model = Net({"x": 1}, 2)
    assert model.hparams == {"x": 1}


def test_a_module_as_hyperparameter_warns():
    with pytest.warns(UserWarning, match="'a' is an `nn.Module`, whose weights are in the checkpoint already"):
        ModuleKeeper(torch.nn.ReLU())


class ModuleKeeper(Owner):
    def __init__(self, a):
        self.save_hyperparameters()


# ---- hparams of an object


def test_hparams_can_be_changed_and_the_initial_ones_stay():
    class Net(Owner):
        def __init__(self, sizes):
            self.save_hyperparameters()

    model = Net([1])
    model.hparams.sizes.append(2)
    model.hparams.new = 3
    model.hparams_initial["sizes"].append(9)

    assert model.hparams == {"sizes": [1, 2], "new": 3}
    assert model.hparams_initial == {"sizes": [1]}


def test_values_that_cannot_be_copied_are_shared():
    class Net(Owner):
        def __init__(self, lock):
            self.save_hyperparameters()

    lock = threading.Lock()
    assert Net(lock).hparams_initial.lock is lock


def test_hparams_cannot_be_assigned():
    with pytest.raises(AttributeError):
        Owner().hparams = {"a": 1}  # type: ignore[misc]  # wrong on purpose


# ---- in a checkpoint


class Net(Owner):
    def __init__(self, lr=0.1, path="x", act=None):
        self.save_hyperparameters()


def test_plain_hparams_are_stored_as_they_are():
    assert dump_hparams(Net()) == {
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "path": "x", "act": None},
    }
    assert type(dump_hparams(Net())["hyper_parameters"]) is dict


def test_a_checkpoint_with_special_hparams_loads_with_weights_only():
    with pytest.warns(UserWarning, match=r"`act` of `Net` are not plain data \(builtin_function_or_method\)"):
        checkpoint = reloaded(dump_hparams(Net(path=Path("y"), act=torch.relu)))

    assert stored_hparams(Net, checkpoint, unpickle=False) == {"lr": 0.1, "path": "y"}
    assert unread_hparams(Net, checkpoint) == {"act"}


def test_exact_hparams_come_back_from_a_trusted_file():
    with pytest.warns(UserWarning, match="not plain data"):
        checkpoint = reloaded(dump_hparams(Net(path=Path("y"), act=torch.relu)))

    assert stored_hparams(Net, checkpoint, unpickle=True) == {"lr": 0.1, "path": Path("y"), "act": torch.relu}


def test_hparams_that_cannot_be_pickled_are_missing_with_one_warning():
    model = Net(act=lambda x: x)
    with pytest.warns(UserWarning, match=r"`act` of `Net` cannot be pickled") as record:
        checkpoint = dump_hparams(model)

    assert len(record) == 1
    assert dump_hparams(model) == checkpoint  # without a second warning
    assert checkpoint == {"hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "path": "x"}}


def reloaded(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
