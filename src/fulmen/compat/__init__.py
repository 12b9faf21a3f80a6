"""Run programs written for Lightning 2.6: `import lightning` answers with the objects of this package.

In a program::

    import fulmen.compat

    fulmen.compat.install()
    import lightning as L

or without touching the program: `python -m fulmen.compat script.py --its arguments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.compat.finder import install as install

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"install": "fulmen.compat.finder"})
