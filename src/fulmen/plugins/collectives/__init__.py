"""Communication between processes, as an object that owns its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.collectives.collective import Collective as Collective
    from fulmen.plugins.collectives.single_device import SingleDeviceCollective as SingleDeviceCollective
    from fulmen.plugins.collectives.torch_collective import TorchCollective as TorchCollective

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Collective": "fulmen.plugins.collectives.collective",
        "SingleDeviceCollective": "fulmen.plugins.collectives.single_device",
        "TorchCollective": "fulmen.plugins.collectives.torch_collective",
    },
)
