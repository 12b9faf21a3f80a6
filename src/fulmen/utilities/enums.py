"""Enumerations whose members are strings."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from typing_extensions import Self

__all__ = ["GradClipAlgorithmType", "LightningEnum"]


class LightningEnum(str, Enum):
    """Base of enumerations whose members equal their value as a string, in any case.

    Example::

        class Color(LightningEnum):
            RED = "red"

        assert Color.RED == "Red"
        assert Color.from_str("RED") is Color.RED
    """

    @classmethod
    def from_str(cls, value: str, source: Literal["key", "value", "any"] = "key") -> Self:
        """Find a member by its name or value, in any case; `-` and `_` in a name are the same.

        Args:
            value: The text.
            source: Compare with the names ("key"), the values ("value") or both ("any").

        Returns:
            The member.

        Raises:
            ValueError: No member fits.
        """
        names, values = source in ("key", "any"), source in ("value", "any")
        wanted = value.lower()
        for member in cls:
            if names and member.name.lower() == wanted.replace("-", "_"):
                return member
            if values and member.value.lower() == wanted:
                return member
        allowed = [member.name for member in cls] * names + [member.value for member in cls] * values
        raise ValueError(
            f"{value!r} is not a member of `{cls.__name__}`: expected one of {allowed} (compared by {source!r})."
        )

    def __eq__(self, other: object) -> bool:
        """Compare with a string or a member of any enumeration of strings, ignoring case."""
        text = other.value if isinstance(other, Enum) else other
        return isinstance(text, str) and str(self.value).lower() == text.lower()

    def __ne__(self, other: object) -> bool:
        """Opposite of `==` (`str` brings its own `!=`, which knows nothing of case)."""
        return not self == other

    def __hash__(self) -> int:
        """Hash of the value in lower case."""
        return hash(self.value.lower())


class GradClipAlgorithmType(LightningEnum):
    """How gradients are clipped: each entry by value, or all together by their norm."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Tell whether `val` names an algorithm (in lower case)."""
        return val in GradClipAlgorithmType.supported_types()

    @staticmethod
    def supported_types() -> list[str]:
        """Return the names of the algorithms."""
        return [member.value for member in GradClipAlgorithmType]
