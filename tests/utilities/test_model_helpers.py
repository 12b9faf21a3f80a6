"""Does an object bring its own version of a method?"""

import functools
from typing import Any
from unittest.mock import Mock

import pytest

from fulmen.utilities.lazy import is_installed
from fulmen.utilities.model_helpers import get_torchvision_model, is_overridden


class Parent:
    """What users inherit from."""

    def hook(self):
        """Do nothing."""

    def step(self):
        """Do nothing."""


class Child(Parent):
    """Overrides one of two."""

    def hook(self):
        """Do something."""


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_a_method_of_a_subclass_is_overridden():
    assert is_overridden("hook", Child(), Parent)
    assert not is_overridden("step", Child(), Parent)
    assert not is_overridden("hook", Parent(), Parent)


def test_a_function_on_the_instance_is_overridden():
    instance: Any = Parent()
    instance.hook = lambda: None

    assert is_overridden("hook", instance, Parent)


def test_the_methods_of_the_same_text_are_not_the_same():
    class Other(Parent):
        hook = eval("lambda self: None")

    class Same(Parent):
        hook = eval("lambda self: None")

    assert is_overridden("hook", Same(), Other)


def test_wrappers_around_the_parents_method_change_nothing():
    instance: Any = Parent()
    instance.hook = logged(instance.hook)
    instance.step = functools.partial(Parent.step, instance)

    assert not is_overridden("hook", instance, Parent)
    assert not is_overridden("step", instance, Parent)


def test_a_wrapped_method_of_the_subclass_stays_overridden():
    class Wrapped(Parent):
        @logged
        def hook(self):
            """Do something."""

    assert is_overridden("hook", Wrapped(), Parent)


def test_a_decorated_method_of_the_parent_is_seen_through():
    class DecoratedParent:
        @logged
        def hook(self):
            """Do nothing."""

    class DecoratedChild(DecoratedParent):
        pass

    assert not is_overridden("hook", DecoratedChild(), DecoratedParent)


def test_a_mock_counts_as_what_it_wraps():
    instance: Any = Parent()
    instance.hook = Mock(wraps=instance.hook)
    instance.step = Mock(wraps=Child().hook)

    assert not is_overridden("hook", instance, Parent)
    assert is_overridden("step", instance, Parent)
    instance.step = Mock()
    assert not is_overridden("step", instance, Parent)


def test_a_callable_object_counts_as_itself():
    class Callable_:
        def __call__(self):
            """Do something."""

    instance: Any = Parent()
    instance.hook = Callable_()

    assert is_overridden("hook", instance, Parent)


def test_nothing_and_objects_without_the_method_override_nothing():
    assert not is_overridden("hook", None, Parent)
    assert not is_overridden("hook", 3, Parent)


def test_a_parent_without_the_method_is_an_error():
    instance: Any = Child()
    instance.other = print

    with pytest.raises(ValueError, match="`Parent` has no method `other`"):
        is_overridden("other", instance, Parent)


def test_without_a_parent_the_base_class_of_the_framework_is_taken():
    from fulmen.core.callback import Callback

    class Mine(Callback):
        def on_fit_start(self, trainer, pl_module):
            """Do something."""

    assert is_overridden("on_fit_start", Mine())
    assert not is_overridden("on_fit_end", Mine())
    with pytest.raises(ValueError, match="Pass the class that defines it as `parent`"):
        is_overridden("hook", Child())


@pytest.mark.skipif(is_installed("torchvision"), reason="tests the error without torchvision")
def test_a_torchvision_model_without_torchvision_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"`get_torchvision_model` needs .* pip install torchvision$"):
        get_torchvision_model("resnet18")
