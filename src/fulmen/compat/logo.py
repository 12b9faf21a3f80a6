"""The banner that Lightning programs may print."""

from __future__ import annotations

import sys

__all__ = ["LIGHTNING_LOGO", "cli_lightning_logo"]

LIGHTNING_LOGO = r"""
    __
   / _|_   _| |_ __ ___   ___ _ __
  | |_| | | | | '_ ` _ \ / _ \ '_ \
  |  _| |_| | | | | | | |  __/ | | |
  |_|  \__,_|_|_| |_| |_|\___|_| |_|
"""


def cli_lightning_logo() -> None:
    """Print the banner."""
    sys.stdout.write(LIGHTNING_LOGO + "\n")
