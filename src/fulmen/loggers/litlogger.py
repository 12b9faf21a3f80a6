"""The logger of the hosted service lightning.ai, which only that service's own package can speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.loggers.logger import Logger

if TYPE_CHECKING:
    import os

__all__ = ["LitLogger"]

_NO_SERVICE = (
    "`LitLogger` cannot be made: it writes to a teamspace of the hosted service lightning.ai, which fulmen has no"
    " connection to. Use a logger of an open tracker, e.g. `MLFlowLogger`, `AimLogger` or `TrackioLogger`, or"
    " `CSVLogger` for plain files."
)


class LitLogger(Logger):
    """Named here so that programs that mention it get a clear answer: it cannot be made.

    Args:
        root_dir: As in Lightning.
        name: As in Lightning.
        teamspace: As in Lightning.
        metadata: As in Lightning.
        store_step: As in Lightning.
        log_model: As in Lightning.
        save_logs: As in Lightning.
        checkpoint_name: As in Lightning.

    Raises:
        NotImplementedError: Always.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> LitLogger:
        """Raise here, before Python speaks of abstract methods."""
        raise NotImplementedError(_NO_SERVICE)

    def __init__(
        self,
        root_dir: str | os.PathLike[str] | None = None,
        name: str | None = None,
        teamspace: str | None = None,
        metadata: dict[str, str] | None = None,
        store_step: bool = True,
        log_model: bool = False,
        save_logs: bool = True,
        checkpoint_name: str | None = None,
    ) -> None:
        raise NotImplementedError(_NO_SERVICE)
