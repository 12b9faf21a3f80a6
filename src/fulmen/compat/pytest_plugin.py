"""A plugin of pytest: `pytest -p fulmen.compat.pytest_plugin` runs a test suite written for Lightning with fulmen.

As an environment variable, for suites that are started by something else: `PYTEST_PLUGINS=fulmen.compat.pytest_plugin`.
Imports of `lightning`, `pytorch_lightning` and `lightning_fabric` are answered from before the first `conftest.py` on,
also in the workers of pytest-xdist. Python processes that the tests start are not reached; give them
`python -m fulmen.compat script.py`.
"""

from __future__ import annotations

import pytest

import fulmen
from fulmen.compat.finder import install
from fulmen.utilities.migration import LAYOUT_VERSION

__all__ = ["pytest_load_initial_conftests", "pytest_report_header"]


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Answer for Lightning before anything of the suite is imported."""
    install()


def pytest_report_header() -> str:
    """Say in the head of pytest's output what answers for Lightning."""
    return f"lightning {LAYOUT_VERSION}: answered by fulmen {fulmen.__version__}"
