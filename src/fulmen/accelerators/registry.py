"""Accelerators by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cpu import CPUAccelerator
from fulmen.accelerators.cuda import CUDAAccelerator
from fulmen.accelerators.mps import MPSAccelerator
from fulmen.utilities.registry import Registry

__all__ = ["ACCELERATOR_REGISTRY", "AcceleratorNames", "AcceleratorRegistry"]


class AcceleratorNames(Registry[Accelerator]):
    """The names that `Trainer(accelerator=...)` takes besides "auto" and "gpu".

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
for _accelerator in (CPUAccelerator, CUDAAccelerator, MPSAccelerator):
    _accelerator.register_accelerators(ACCELERATOR_REGISTRY)
