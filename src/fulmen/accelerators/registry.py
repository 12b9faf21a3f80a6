"""Accelerators by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cpu import CPUAccelerator
from fulmen.accelerators.cuda import CUDAAccelerator
from fulmen.accelerators.mps import MPSAccelerator
from fulmen.accelerators.xla import XLAAccelerator
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.registry import Registration, Registry

if TYPE_CHECKING:
    import torch

__all__ = ["ACCELERATOR_REGISTRY", "AcceleratorNames", "AcceleratorRegistry"]

_ENTRY_POINT_GROUP = "fulmen.accelerators"
_NAME_OF_DEVICE_TYPE = {"xla": "tpu"}  # where torch calls the hardware by another name


class AcceleratorNames(Registry[Accelerator]):
    """The names that `Trainer(accelerator=...)` takes besides "auto" and "gpu".

    Installed packages add theirs by entry points of the group `fulmen.accelerators`: the name is that of the
    accelerator, the object its class. They are loaded when their name is used.

    Example::

        @AcceleratorRegistry.register("npu", description="our own chip")
        class NPUAccelerator(Accelerator): ...
    """

    def __init__(self) -> None:
        super().__init__("accelerator")

    def register(  # type: ignore[override]  # the public name of the second parameter is `accelerator`
        self,
        name: str,
        accelerator: Callable[..., Accelerator] | None = None,
        description: str = "",
        override: bool = False,
        **init_params: Any,
    ) -> Callable[..., Any]:
        """Add a name; without `accelerator` this is a decorator.

        Args:
            name: The name, compared exactly.
            accelerator: Class or function that makes the accelerator.
            description: One line for listings.
            override: Replace an existing entry of that name.
            init_params: Keyword arguments for `accelerator`.

        Returns:
            `accelerator`, or the decorator.

        Raises:
            MisconfigurationException: The name is not a string, or taken.
        """
        return super().register(name, accelerator, description, override, **init_params)

    def available_accelerators(self) -> set[str]:
        """Return the registered names."""
        return set(self)

    def is_available(self, name: str) -> bool:
        """Tell whether this machine has the hardware of a name.

        Args:
            name: A registered name.
        """
        factory = self.entry(name).factory
        is_class = isinstance(factory, type) and issubclass(factory, Accelerator)
        return bool(factory.is_available() if is_class else self.get(name).is_available())  # type: ignore[attr-defined]

    def for_device(self, device: torch.device) -> Accelerator:
        """Make the accelerator that computes on a device.

        Args:
            device: The device.

        Raises:
            MisconfigurationException: None is registered for its type.
        """
        name = _NAME_OF_DEVICE_TYPE.get(device.type, device.type)
        if name in self:
            accelerator: Accelerator = self.get(name)
            return accelerator
        raise MisconfigurationException(
            f"No accelerator is registered for the device `{device}`; known are {self.names()}."
            " Pass one: `Trainer(accelerator=...)`, or register it by that name."
        )

    # ---- with the accelerators of installed packages

    def entry(self, name: str) -> Registration[Accelerator]:
        """Return how `name` is made.

        Raises:
            KeyError: No such name.
        """
        if not super().__contains__(name) and name in self._packages:
            point = self._packages[name]
            self.register(name, point.load(), description=f"from {point.value}")
        return super().entry(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is registered, here or by an installed package."""
        return super().__contains__(name) or name in self._packages

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in order of registration."""
        yield from dict.fromkeys([*super().__iter__(), *self._packages])

    def __len__(self) -> int:
        """Return the number of names."""
        return sum(1 for _ in self)  # `list` would ask for the length

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        return sorted(self)

    @cached_property
    def _packages(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=_ENTRY_POINT_GROUP)}

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Describe an entry."""
        entry = self.entry(name)
        return {
            "accelerator": entry.factory,
            "accelerator_name": name,
            "description": entry.description,
            "init_params": dict(entry.init_params),
        }


AcceleratorRegistry = ACCELERATOR_REGISTRY = AcceleratorNames()
for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator):
    _accelerator.register_accelerators(ACCELERATOR_REGISTRY)
