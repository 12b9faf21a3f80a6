"""Things that can be made by name."""

from typing import Any

import pytest

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.registry import Registry


@pytest.fixture
def registry():
    registry = Registry[dict[str, Any]]("color")
    registry.register("red", dict, description="like fire", hue=0)
    return registry


def test_a_name_makes_its_thing_with_the_registered_arguments(registry):
    assert registry.get("red") == {"hue": 0}
    assert registry.get("red", hue=5, dark=True) == {"hue": 5, "dark": True}
    assert registry.get("red") is not registry.get("red")


def test_register_without_a_factory_is_a_decorator(registry):
    @registry.register("green", description="like grass")
    class Green(dict[str, Any]):
        pass

    assert type(registry.get("green")) is Green
    assert registry.entry("green").description == "like grass"


def test_a_taken_name_is_refused_unless_it_shall_be_replaced(registry):
    with pytest.raises(MisconfigurationException, match="color name 'red' is taken"):
        registry.register("red", dict)
    registry.register("red", dict, override=True, hue=1)

    assert registry.get("red") == {"hue": 1}


def test_a_name_must_be_a_string(registry):
    with pytest.raises(MisconfigurationException, match="must be a string"):
        registry.register(dict)


def test_an_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(KeyError, match=r"No color is registered as 'blue'\. Known: red"):
        registry.get("blue")
    with pytest.raises(KeyError, match="blue"):
        registry.remove("blue")


def test_a_name_can_be_removed(registry):
    registry.remove("red")

    assert "red" not in registry
    assert len(registry) == 0
    assert str(registry) == "Registered color names: none"


def test_names_are_listed(registry):
    registry.register("blue", dict)

    assert registry.names() == ["blue", "red"]
    assert list(registry) == ["red", "blue"]
    assert str(registry) == "Registered color names: blue, red"
