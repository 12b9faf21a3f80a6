"""Exchangeable parts: precision, checkpoint files, cluster environments, layer synchronization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.plugins.environments.cluster_environment import ClusterEnvironment as ClusterEnvironment
    from fulmen.plugins.io.async_io import AsyncCheckpointIO as AsyncCheckpointIO
    from fulmen.plugins.io.checkpoint_io import CheckpointIO as CheckpointIO
    from fulmen.plugins.io.torch_io import TorchCheckpointIO as TorchCheckpointIO
    from fulmen.plugins.io.xla import XLACheckpointIO as XLACheckpointIO
    from fulmen.plugins.layer_sync import LayerSync as LayerSync
    from fulmen.plugins.layer_sync import TorchSyncBatchNorm as TorchSyncBatchNorm
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
        "AsyncCheckpointIO": "fulmen.plugins.io.async_io",
        "BitsandbytesPrecision": "fulmen.plugins.precision.bitsandbytes",
        "CheckpointIO": "fulmen.plugins.io.checkpoint_io",
        "ClusterEnvironment": "fulmen.plugins.environments.cluster_environment",
        "DeepSpeedPrecision": "fulmen.plugins.precision.deepspeed",
        "DoublePrecision": "fulmen.plugins.precision.double",
        "Float8Precision": "fulmen.plugins.precision.float8",
        "FSDPPrecision": "fulmen.plugins.precision.fsdp",
        "HalfPrecision": "fulmen.plugins.precision.half",
        "LayerSync": "fulmen.plugins.layer_sync",
        "MixedPrecision": "fulmen.plugins.precision.amp",
        "Precision": "fulmen.plugins.precision.precision",
        "TorchCheckpointIO": "fulmen.plugins.io.torch_io",
        "TorchSyncBatchNorm": "fulmen.plugins.layer_sync",
        "TransformerEnginePrecision": "fulmen.plugins.precision.transformer_engine",
        "XLACheckpointIO": "fulmen.plugins.io.xla",
        "XLAPrecision": "fulmen.plugins.precision.xla",
    },
)
