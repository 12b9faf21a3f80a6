"""Warning categories, and how to hide them."""

from __future__ import annotations

import os
import warnings

__all__ = ["PossibleUserWarning", "disable_possible_user_warnings"]


class PossibleUserWarning(UserWarning):
    """Advice that may not apply to the program at hand."""


def disable_possible_user_warnings(module: str = "") -> None:
    """Hide every `PossibleUserWarning`.

    The environment variable `POSSIBLE_USER_WARNINGS` set to `0` or `off` does the same from outside.

    Args:
        module: Regular expression of the modules whose warnings are hidden; empty for all.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


if os.environ.get("POSSIBLE_USER_WARNINGS", "").strip().lower() in ("0", "off"):
    disable_possible_user_warnings()
