"""Number formats of weights, inputs and computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.precision.amp import MixedPrecision as MixedPrecision
    from fulmen.plugins.precision.bitsandbytes import BitsandbytesPrecision as BitsandbytesPrecision
    from fulmen.plugins.precision.deepspeed import DeepSpeedPrecision as DeepSpeedPrecision
    from fulmen.plugins.precision.double import DoublePrecision as DoublePrecision
    from fulmen.plugins.precision.float8 import Float8Precision as Float8Precision
    from fulmen.plugins.precision.fsdp import FSDPPrecision as FSDPPrecision
    from fulmen.plugins.precision.half import HalfPrecision as HalfPrecision
    from fulmen.plugins.precision.precision import Precision as Precision
    from fulmen.plugins.precision.transformer_engine import TransformerEnginePrecision as TransformerEnginePrecision
    from fulmen.plugins.precision.xla import XLAPrecision as XLAPrecision

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BitsandbytesPrecision": "fulmen.plugins.precision.bitsandbytes",
        "DeepSpeedPrecision": "fulmen.plugins.precision.deepspeed",
        "DoublePrecision": "fulmen.plugins.precision.double",
        "Float8Precision": "fulmen.plugins.precision.float8",
        "FSDPPrecision": "fulmen.plugins.precision.fsdp",
        "HalfPrecision": "fulmen.plugins.precision.half",
        "MixedPrecision": "fulmen.plugins.precision.amp",
        "Precision": "fulmen.plugins.precision.precision",
        "TransformerEnginePrecision": "fulmen.plugins.precision.transformer_engine",
        "XLAPrecision": "fulmen.plugins.precision.xla",
    },
)
