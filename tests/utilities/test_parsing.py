"""Arguments of constructors, and settings by name."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from argparse import Namespace
from types import SimpleNamespace

import pytest

from fulmen.core.hparams import HyperparametersMixin
from fulmen.utilities.parsing import (
    AttributeDict,
    clean_namespace,
    collect_init_args,
    get_init_args,
    is_picklable,
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
    parse_class_init_keys,
)


def test_attribute_dict_reads_and_writes_keys_as_attributes():
    settings = AttributeDict({"lr": 0.1}, width=2)
    settings.depth = 3
    del settings.width

    assert settings == {"lr": 0.1, "depth": 3}
    assert settings.lr == 0.1


def test_attribute_dict_says_what_it_has_when_a_name_is_missing():
    with pytest.raises(AttributeError, match=r"no attribute 'rate'.*\['lr'\]"):
        _ = AttributeDict(lr=0.1).rate


def test_attribute_dict_survives_copy_and_pickle():
    settings = AttributeDict(nested={"a": 1})

    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings
    assert type(copy.deepcopy(settings)) is AttributeDict


def test_attribute_dict_prints_one_aligned_line_per_key():
    assert repr(AttributeDict(longer=2, a="x")) == '"a":      x\n"longer": 2'


def test_init_keys_are_the_names_the_class_uses():
    class Unusual:
        def __init__(me, a, *rest, b=1, **more):
            pass

    class Plain:
        def __init__(self, a):
            pass

    assert parse_class_init_keys(Unusual) == ("me", "rest", "more")
    assert parse_class_init_keys(Plain) == ("self", None, None)


def test_init_args_leave_out_varargs_and_flatten_kwargs():
    class Thing:
        def __init__(self, a, *rest, b=1, **more):
            local = 5  # noqa: F841
            self.args = get_init_args(inspect.currentframe())

    assert Thing(1, 2, b=3, z=4).args == {"a": 1, "b": 3, "z": 4}


def test_init_args_are_empty_outside_a_constructor():
    assert get_init_args(inspect.currentframe()) == {}


def test_collected_init_args_go_from_base_to_subclass():
    class Base:
        def __init__(self, a):
            self.collected = collect_init_args(inspect.currentframe(), [{"first": 0}])

    class Sub(Base):
        def __init__(self, b):
            super().__init__(b * 2)

    class Owner:
        def __init__(self, unrelated):
            self.sub = Sub(1)

    assert Owner(7).sub.collected == [{"first": 0}, {"a": 2}, {"b": 1}]


def test_collected_init_args_can_be_limited_to_classes():
    class Thing:
        def __init__(self, a):
            self.none = collect_init_args(inspect.currentframe(), [], classes=(int,))
            self.some = collect_init_args(inspect.currentframe(), [], classes=(Thing,))

    assert Thing(1).none == []
    assert Thing(1).some == [{"a": 1}]


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), (print, True), (lambda: 1, False), (threading.Lock(), False)]
)
def test_picklable_is_what_pickle_accepts(value, expected):
    assert is_picklable(value) is expected


@pytest.mark.parametrize("kind", [dict, Namespace])
def test_clean_namespace_removes_what_cannot_be_pickled(kind):
    hparams = kind(a=1, f=lambda: 1)
    with pytest.warns(UserWarning, match="'f' is removed because it cannot be pickled"):
        clean_namespace(hparams)

    assert hparams == kind(a=1)


class Holder(HyperparametersMixin):
    width: int
    lr: int
    trainer: SimpleNamespace

    def __init__(self, lr=1):
        super().__init__()
        self.save_hyperparameters()


def test_setting_is_found_on_the_module_and_in_its_hparams():
    model = Holder()
    model.width = 2

    assert lightning_getattr(model, "width") == 2
    assert lightning_getattr(model, "lr") == 1
    assert not lightning_hasattr(model, "depth")


def test_setting_is_written_wherever_it_is_and_read_from_the_last_holder():
    model, datamodule = Holder(), Holder(lr=2)
    model.trainer = SimpleNamespace(datamodule=datamodule)
    model.lr = 5

    assert lightning_getattr(model, "lr") == 2
    lightning_setattr(model, "lr", 7)
    assert (model.lr, model.hparams.lr, datamodule.hparams.lr) == (7, 7, 7)
    assert not hasattr(datamodule, "lr")


@pytest.mark.parametrize("access", [lightning_getattr, lambda model, name: lightning_setattr(model, name, 1)])
def test_unknown_setting_says_where_it_was_looked_for(access):
    with pytest.raises(AttributeError, match="neither an attribute of `Holder`, nor in its `hparams`"):
        access(Holder(), "nowhere")
