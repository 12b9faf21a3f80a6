"""Plans of training on machines that are not there: memory, exchanges and work of one step, traced without either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.planning.plan import Plan as Plan
    from fulmen.planning.sizes import parse_batch as parse_batch
    from fulmen.planning.values import PlanError as PlanError

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Plan": "fulmen.planning.plan",
        "PlanError": "fulmen.planning.values",
        "parse_batch": "fulmen.planning.sizes",
    },
)
