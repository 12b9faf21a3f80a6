"""Where the processes of a run come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment as ClusterEnvironment
    from fulmen.plugins.environments.local import LightningEnvironment as LightningEnvironment

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ClusterEnvironment": "fulmen.plugins.environments.cluster_environment",
        "LightningEnvironment": "fulmen.plugins.environments.local",
    },
)
