"""What a model consists of: layers, parameters, sizes, FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.utilities.model_summary.model_summary import LayerSummary as LayerSummary
    from fulmen.utilities.model_summary.model_summary import ModelSummary as ModelSummary
    from fulmen.utilities.model_summary.model_summary import get_formatted_model_size as get_formatted_model_size
    from fulmen.utilities.model_summary.model_summary import get_human_readable_count as get_human_readable_count
    from fulmen.utilities.model_summary.model_summary import parse_batch_shape as parse_batch_shape
    from fulmen.utilities.model_summary.model_summary import summarize as summarize
    from fulmen.utilities.model_summary.model_summary_deepspeed import DeepSpeedSummary as DeepSpeedSummary

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DeepSpeedSummary": "fulmen.utilities.model_summary.model_summary_deepspeed",
        "LayerSummary": "fulmen.utilities.model_summary.model_summary",
        "ModelSummary": "fulmen.utilities.model_summary.model_summary",
        "get_formatted_model_size": "fulmen.utilities.model_summary.model_summary",
        "get_human_readable_count": "fulmen.utilities.model_summary.model_summary",
        "parse_batch_shape": "fulmen.utilities.model_summary.model_summary",
        "summarize": "fulmen.utilities.model_summary.model_summary",
    },
)
