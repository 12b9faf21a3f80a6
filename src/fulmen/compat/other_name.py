"""Classes that are other names of classes of this package."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

__all__ = ["OtherName"]


class OtherName(ABCMeta):
    """Makes instances of our class instances of its other name; those of a user's subclass only if they are.

    A class with `is_other_name = True` in its body is another name of its last base.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        """Tell whether an object is of the class that this one stands for."""
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Tell whether a class is derived from the one that this one stands for."""
        if "is_other_name" in vars(cls):
            return cls.__bases__[-1] in subclass.__mro__  # `issubclass` would ask us again
        return cls in subclass.__mro__
