"""Enumerations whose members are strings."""

import copy
import pickle

import pytest

from fulmen.utilities.enums import GradClipAlgorithmType, LightningEnum


class Style(LightningEnum):
    """An enumeration whose names and values differ."""

    RED_DOTS = "red-dots"
    PLAIN = "plain"


def test_a_member_equals_its_value_in_any_case():
    assert Style.RED_DOTS == "red-dots"
    assert Style.RED_DOTS == "Red-Dots"
    assert Style.RED_DOTS == Style.RED_DOTS
    assert Style.RED_DOTS != "RED_DOTS"
    assert Style.RED_DOTS != Style.PLAIN
    assert Style.RED_DOTS != 3


def test_unequal_is_the_opposite_of_equal():
    assert not (Style.PLAIN != "PLAIN")  # noqa: SIM202 - `!=` is what is tested


def test_a_member_finds_what_its_value_stored():
    assert {"plain": 1}[Style.PLAIN] == 1
    assert Style.PLAIN in {"plain"}


@pytest.mark.parametrize(
    ("text", "source", "member"),
    [
        ("RED_DOTS", "key", Style.RED_DOTS),
        ("red_dots", "key", Style.RED_DOTS),
        ("red-dots", "key", Style.RED_DOTS),
        ("Red-Dots", "value", Style.RED_DOTS),
        ("red_dots", "any", Style.RED_DOTS),
        ("PLAIN", "value", Style.PLAIN),
    ],
)
def test_from_str_finds_a_member(text, source, member):
    assert Style.from_str(text, source=source) is member


def test_from_str_looks_only_where_it_is_told():
    with pytest.raises(ValueError, match=r"'red_dots' .* expected one of \['red-dots', 'plain'\]"):
        Style.from_str("red_dots", source="value")
    with pytest.raises(ValueError, match=r"expected one of \['RED_DOTS', 'PLAIN', 'red-dots', 'plain'\]"):
        Style.from_str("blue", source="any")


def test_members_survive_pickle_and_copy():
    assert pickle.loads(pickle.dumps(Style.PLAIN)) is Style.PLAIN
    assert copy.deepcopy(Style.PLAIN) is Style.PLAIN


def test_the_clip_algorithms_are_known_by_value():
    assert GradClipAlgorithmType.supported_types() == ["value", "norm"]
    assert GradClipAlgorithmType.supported_type("norm")
    assert not GradClipAlgorithmType.supported_type("NORM")
    assert GradClipAlgorithmType.from_str("value") is GradClipAlgorithmType.VALUE
