"""Iteration over the user's loaders: combining, limits, positions, rebuilding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.data.combined_loader import CombinedLoader as CombinedLoader
    from fulmen.data.position import LoaderPosition as LoaderPosition
    from fulmen.data.prefetch import EvalBatches as EvalBatches
    from fulmen.data.prefetch import TrainBatches as TrainBatches
    from fulmen.data.rebuild import rebuild as rebuild
    from fulmen.data.rebuild import recording_dataloader_arguments as recording_dataloader_arguments
    from fulmen.data.resumable import ResumableLoader as ResumableLoader
    from fulmen.data.sampler import DistributedSamplerWrapper as DistributedSamplerWrapper
    from fulmen.data.sampler import IndexRecordingBatchSampler as IndexRecordingBatchSampler
    from fulmen.data.sampler import UnrepeatedDistributedSampler as UnrepeatedDistributedSampler
    from fulmen.data.sampler import UnrepeatedDistributedSamplerWrapper as UnrepeatedDistributedSamplerWrapper
    from fulmen.data.sampler import set_sampler_epoch as set_sampler_epoch
    from fulmen.data.shard import Ranks as Ranks
    from fulmen.data.shard import Shard as Shard

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CombinedLoader": "fulmen.data.combined_loader",
        "DistributedSamplerWrapper": "fulmen.data.sampler",
        "EvalBatches": "fulmen.data.prefetch",
        "IndexRecordingBatchSampler": "fulmen.data.sampler",
        "LoaderPosition": "fulmen.data.position",
        "Ranks": "fulmen.data.shard",
        "ResumableLoader": "fulmen.data.resumable",
        "Shard": "fulmen.data.shard",
        "TrainBatches": "fulmen.data.prefetch",
        "UnrepeatedDistributedSampler": "fulmen.data.sampler",
        "UnrepeatedDistributedSamplerWrapper": "fulmen.data.sampler",
        "rebuild": "fulmen.data.rebuild",
        "recording_dataloader_arguments": "fulmen.data.rebuild",
        "set_sampler_epoch": "fulmen.data.sampler",
    },
)
