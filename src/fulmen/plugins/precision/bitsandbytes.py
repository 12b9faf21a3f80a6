"""8- and 4-bit weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fulmen.plugins.precision.precision import Precision
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["BitsandbytesPrecision"]


class BitsandbytesPrecision(Precision):
    """Quantized weights by the package `bitsandbytes`: not part of this version, and refused.

    Args:
        mode: The kind of quantization.
        dtype: Type in which is computed.
        ignore_modules: Names of submodules that stay as they are.

    Raises:
        MisconfigurationException: Always.
    """

    dtype: torch.dtype
    ignore_modules: set[str]

    def __init__(
        self, mode: str, dtype: torch.dtype | None = None, ignore_modules: Iterable[str] | None = None
    ) -> None:
        raise MisconfigurationException(
            f"`BitsandbytesPrecision(mode={mode!r})` is not available: this version cannot quantize weights."
            " Choose `precision='bf16-true'` for small weights; '16-true', 'bf16-mixed', '16-mixed', '32-true' and"
            " '64-true' are possible too."
        )
