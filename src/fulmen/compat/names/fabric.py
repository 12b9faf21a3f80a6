"""Parts of Fabric that the Trainer is made of too."""

from __future__ import annotations

__all__ = ["FABRIC"]

FABRIC: dict[str, dict[str, str]] = {
    "lightning.fabric": {
        "fulmen.utilities.seed": "seed_everything",
        "fulmen.utilities.warnings": "disable_possible_user_warnings",
    },
    "lightning.fabric.accelerators": {
        "fulmen.accelerators.accelerator": "Accelerator",
        "fulmen.accelerators.cpu": "CPUAccelerator",
        "fulmen.accelerators.cuda": "CUDAAccelerator find_usable_cuda_devices",
        "fulmen.accelerators.mps": "MPSAccelerator",
        "fulmen.accelerators.registry": "ACCELERATOR_REGISTRY",
    },
    "lightning.fabric.accelerators.accelerator": {"fulmen.accelerators.accelerator": "Accelerator"},
    "lightning.fabric.accelerators.cpu": {"fulmen.accelerators.cpu": "CPUAccelerator"},
    "lightning.fabric.accelerators.cuda": {
        "fulmen.accelerators.cuda": "CUDAAccelerator find_usable_cuda_devices is_cuda_available num_cuda_devices",
    },
    "lightning.fabric.accelerators.mps": {"fulmen.accelerators.mps": "MPSAccelerator"},
    "lightning.fabric.loggers": {
        "fulmen.loggers.csv_logs": "CSVLogger",
        "fulmen.loggers.logger": "Logger",
        "fulmen.loggers.tensorboard": "TensorBoardLogger",
    },
    "lightning.fabric.loggers.csv_logs": {"fulmen.loggers.csv_logs": "CSVLogger"},
    "lightning.fabric.loggers.logger": {"fulmen.loggers.logger": "Logger rank_zero_experiment"},
    "lightning.fabric.loggers.tensorboard": {"fulmen.loggers.tensorboard": "TensorBoardLogger"},
    "lightning.fabric.plugins": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
        "fulmen.plugins.precision.amp": "MixedPrecision",
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
        "fulmen.plugins.precision.double": "DoublePrecision",
        "fulmen.plugins.precision.half": "HalfPrecision",
        "fulmen.plugins.precision.precision": "Precision",
    },
    "lightning.fabric.plugins.environments": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.environments.local": "LightningEnvironment",
    },
    "lightning.fabric.plugins.environments.cluster_environment": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
    },
    "lightning.fabric.plugins.environments.lightning": {
        "fulmen.plugins.environments.local": "LightningEnvironment find_free_network_port",
    },
    "lightning.fabric.plugins.io": {
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
    },
    "lightning.fabric.plugins.io.checkpoint_io": {"fulmen.plugins.io.checkpoint_io": "CheckpointIO"},
    "lightning.fabric.plugins.io.torch_io": {"fulmen.plugins.io.torch_io": "TorchCheckpointIO"},
    "lightning.fabric.plugins.precision": {
        "fulmen.plugins.precision.amp": "MixedPrecision",
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
        "fulmen.plugins.precision.double": "DoublePrecision",
        "fulmen.plugins.precision.half": "HalfPrecision",
        "fulmen.plugins.precision.precision": "Precision",
    },
    "lightning.fabric.plugins.precision.amp": {"fulmen.plugins.precision.amp": "MixedPrecision"},
    "lightning.fabric.plugins.precision.bitsandbytes": {
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
    },
    "lightning.fabric.plugins.precision.double": {"fulmen.plugins.precision.double": "DoublePrecision"},
    "lightning.fabric.plugins.precision.half": {"fulmen.plugins.precision.half": "HalfPrecision"},
    "lightning.fabric.plugins.precision.precision": {"fulmen.plugins.precision.precision": "Precision"},
    "lightning.fabric.strategies": {
        "fulmen.strategies.registry": "STRATEGY_REGISTRY",
        "fulmen.strategies.single_device": "SingleDeviceStrategy",
        "fulmen.strategies.strategy": "Strategy",
    },
    "lightning.fabric.strategies.single_device": {"fulmen.strategies.single_device": "SingleDeviceStrategy"},
    "lightning.fabric.strategies.strategy": {"fulmen.strategies.strategy": "Strategy"},
    "lightning.fabric.utilities": {
        "fulmen.utilities.data": "suggested_max_num_workers",
        "fulmen.utilities.enums": "LightningEnum",
        "fulmen.utilities.files": "is_shared_filesystem",
        "fulmen.utilities.parsing": "AttributeDict",
        "fulmen.utilities.rank_zero": "rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
        "fulmen.utilities.throughput": "Throughput measure_flops",
        "fulmen.utilities.tree": "move_data_to_device",
        "fulmen.utilities.warnings": "disable_possible_user_warnings",
    },
    "lightning.fabric.utilities.apply_func": {
        "fulmen.utilities.tree": "convert_tensors_to_scalars convert_to_tensors move_data_to_device",
    },
    "lightning.fabric.utilities.cloud_io": {
        "fulmen.utilities.files": "_atomic_save=atomic_save _load=load_file get_filesystem",
    },
    "lightning.fabric.utilities.data": {
        "fulmen.utilities.data": "has_iterable_dataset has_len sized_len suggested_max_num_workers",
        "fulmen.utilities.parsing": "AttributeDict",
    },
    "lightning.fabric.utilities.device_dtype_mixin": {
        "fulmen.core.device": "_DeviceDtypeModuleMixin=DeviceDtypeModule",
    },
    "lightning.fabric.utilities.distributed": {"fulmen.utilities.files": "is_shared_filesystem"},
    "lightning.fabric.utilities.enums": {"fulmen.utilities.enums": "LightningEnum"},
    "lightning.fabric.utilities.exceptions": {"fulmen.utilities.exceptions": "MisconfigurationException"},
    "lightning.fabric.utilities.rank_zero": {
        "fulmen.utilities.rank_zero": (
            "LightningDeprecationWarning WarningCache rank_prefixed_message rank_zero_debug rank_zero_deprecation "
            "rank_zero_info rank_zero_only rank_zero_warn"
        ),
    },
    "lightning.fabric.utilities.seed": {
        "fulmen.utilities.seed": "max_seed_value min_seed_value pl_worker_init_function reset_seed seed_everything",
    },
    "lightning.fabric.utilities.throughput": {"fulmen.utilities.throughput": "Throughput measure_flops"},
    "lightning.fabric.utilities.types": {
        "fulmen.utilities.types": "CollectibleGroup Optimizable Steppable _DEVICE _MAP_LOCATION_TYPE _PATH _Stateful",
    },
    "lightning.fabric.utilities.warnings": {
        "fulmen.utilities.warnings": "PossibleUserWarning disable_possible_user_warnings",
    },
}
