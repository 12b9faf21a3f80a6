"""Plugins and accelerators."""

from __future__ import annotations

__all__ = ["PLUGINS"]

PLUGINS: dict[str, dict[str, str]] = {
    "lightning.pytorch.accelerators": {
        "fulmen.accelerators.accelerator": "Accelerator",
        "fulmen.accelerators.cpu": "CPUAccelerator",
        "fulmen.accelerators.cuda": "CUDAAccelerator find_usable_cuda_devices",
        "fulmen.accelerators.mps": "MPSAccelerator",
        "fulmen.accelerators.registry": "AcceleratorRegistry",
        "fulmen.accelerators.xla": "XLAAccelerator",
    },
    "lightning.pytorch.accelerators.accelerator": {"fulmen.accelerators.accelerator": "Accelerator"},
    "lightning.pytorch.accelerators.cpu": {"fulmen.accelerators.cpu": "CPUAccelerator get_cpu_stats"},
    "lightning.pytorch.accelerators.cuda": {"fulmen.accelerators.cuda": "CUDAAccelerator get_nvidia_gpu_stats"},
    "lightning.pytorch.accelerators.mps": {"fulmen.accelerators.mps": "MPSAccelerator get_device_stats"},
    "lightning.pytorch.accelerators.xla": {"fulmen.accelerators.xla": "XLAAccelerator"},
    "lightning.pytorch.plugins": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.io.async_io": "AsyncCheckpointIO",
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
        "fulmen.plugins.io.xla": "XLACheckpointIO",
        "fulmen.plugins.layer_sync": "LayerSync TorchSyncBatchNorm",
        "fulmen.plugins.precision.amp": "MixedPrecision",
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
        "fulmen.plugins.precision.deepspeed": "DeepSpeedPrecision",
        "fulmen.plugins.precision.double": "DoublePrecision",
        "fulmen.plugins.precision.fsdp": "FSDPPrecision",
        "fulmen.plugins.precision.half": "HalfPrecision",
        "fulmen.plugins.precision.precision": "Precision",
        "fulmen.plugins.precision.transformer_engine": "TransformerEnginePrecision",
        "fulmen.plugins.precision.xla": "XLAPrecision",
    },
    "lightning.pytorch.plugins.environments": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.environments.kubeflow": "KubeflowEnvironment",
        "fulmen.plugins.environments.local": "LightningEnvironment",
        "fulmen.plugins.environments.lsf": "LSFEnvironment",
        "fulmen.plugins.environments.mpi": "MPIEnvironment",
        "fulmen.plugins.environments.slurm": "SLURMEnvironment",
        "fulmen.plugins.environments.torchelastic": "TorchElasticEnvironment",
        "fulmen.plugins.environments.xla": "XLAEnvironment",
    },
    "lightning.pytorch.plugins.io": {
        "fulmen.plugins.io.async_io": "AsyncCheckpointIO",
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
        "fulmen.plugins.io.xla": "XLACheckpointIO",
    },
    "lightning.pytorch.plugins.io.async_plugin": {"fulmen.plugins.io.async_io": "AsyncCheckpointIO"},
    "lightning.pytorch.plugins.io.checkpoint_plugin": {"fulmen.plugins.io.checkpoint_io": "CheckpointIO"},
    "lightning.pytorch.plugins.io.torch_plugin": {"fulmen.plugins.io.torch_io": "TorchCheckpointIO"},
    "lightning.pytorch.plugins.io.wrapper": {
        "fulmen.compat.wrapping_io": "_WrappingCheckpointIO=WrappingCheckpointIO",
    },
    "lightning.pytorch.plugins.io.xla_plugin": {"fulmen.plugins.io.xla": "XLACheckpointIO"},
    "lightning.pytorch.plugins.layer_sync": {"fulmen.plugins.layer_sync": "LayerSync TorchSyncBatchNorm"},
    "lightning.pytorch.plugins.precision": {
        "fulmen.plugins.precision.amp": "MixedPrecision",
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
        "fulmen.plugins.precision.deepspeed": "DeepSpeedPrecision",
        "fulmen.plugins.precision.double": "DoublePrecision",
        "fulmen.plugins.precision.fsdp": "FSDPPrecision",
        "fulmen.plugins.precision.half": "HalfPrecision",
        "fulmen.plugins.precision.precision": "Precision",
        "fulmen.plugins.precision.transformer_engine": "TransformerEnginePrecision",
        "fulmen.plugins.precision.xla": "XLAPrecision",
    },
    "lightning.pytorch.plugins.precision.amp": {"fulmen.plugins.precision.amp": "MixedPrecision"},
    "lightning.pytorch.plugins.precision.bitsandbytes": {
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
    },
    "lightning.pytorch.plugins.precision.deepspeed": {"fulmen.plugins.precision.deepspeed": "DeepSpeedPrecision"},
    "lightning.pytorch.plugins.precision.double": {
        "fulmen.compat.double_precision": "LightningDoublePrecisionModule",
        "fulmen.plugins.precision.double": "DoublePrecision",
    },
    "lightning.pytorch.plugins.precision.fsdp": {"fulmen.plugins.precision.fsdp": "FSDPPrecision"},
    "lightning.pytorch.plugins.precision.half": {"fulmen.plugins.precision.half": "HalfPrecision"},
    "lightning.pytorch.plugins.precision.precision": {"fulmen.plugins.precision.precision": "Precision"},
    "lightning.pytorch.plugins.precision.transformer_engine": {
        "fulmen.plugins.precision.transformer_engine": "TransformerEnginePrecision",
    },
    "lightning.pytorch.plugins.precision.xla": {"fulmen.plugins.precision.xla": "XLAPrecision"},
}
