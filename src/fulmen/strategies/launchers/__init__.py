"""What starts the processes of a run, and ends them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.strategies.launchers.external import ExternalLauncher as ExternalLauncher
    from fulmen.strategies.launchers.launcher import Carrier as Carrier
    from fulmen.strategies.launchers.launcher import Launcher as Launcher
    from fulmen.strategies.launchers.multiprocessing import MultiProcessingLauncher as MultiProcessingLauncher
    from fulmen.strategies.launchers.subprocess_script import SubprocessScriptLauncher as SubprocessScriptLauncher
    from fulmen.strategies.launchers.xla import XLALauncher as XLALauncher

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Carrier": "fulmen.strategies.launchers.launcher",
        "ExternalLauncher": "fulmen.strategies.launchers.external",
        "Launcher": "fulmen.strategies.launchers.launcher",
        "MultiProcessingLauncher": "fulmen.strategies.launchers.multiprocessing",
        "SubprocessScriptLauncher": "fulmen.strategies.launchers.subprocess_script",
        "XLALauncher": "fulmen.strategies.launchers.xla",
    },
)
