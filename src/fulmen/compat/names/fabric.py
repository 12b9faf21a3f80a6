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
    "lightning.fabric.accelerators.registry": {"fulmen.accelerators.registry": "_AcceleratorRegistry=AcceleratorNames"},
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
    "lightning.fabric.plugins.precision.utils": {
        "fulmen.plugins.precision.contexts": "_DtypeContextManager=DefaultDtype _convert_fp_tensor=convert_floats",
    },
    "lightning.fabric.strategies": {
        "fulmen.strategies.registry": "STRATEGY_REGISTRY",
        "fulmen.strategies.single_device": "SingleDeviceStrategy",
        "fulmen.strategies.strategy": "Strategy",
    },
    "lightning.fabric.strategies.registry": {"fulmen.strategies.registry": "_StrategyRegistry=StrategyNames"},
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
    "lightning.fabric.utilities.imports": {
        "fulmen.compat.installed": (
            "_IS_INTERACTIVE=IS_INTERACTIVE _IS_WINDOWS=IS_WINDOWS "
            "_PYTHON_GREATER_EQUAL_3_10_0=PYTHON_GREATER_EQUAL_3_10_0 "
            "_TORCHMETRICS_GREATER_EQUAL_1_0_0=TORCHMETRICS_GREATER_EQUAL_1_0_0 _TORCH_EQUAL_2_4_0=TORCH_EQUAL_2_4_0 "
            "_TORCH_GREATER_EQUAL_2_2=TORCH_GREATER_EQUAL_2_2 _TORCH_GREATER_EQUAL_2_3=TORCH_GREATER_EQUAL_2_3 "
            "_TORCH_GREATER_EQUAL_2_4=TORCH_GREATER_EQUAL_2_4 _TORCH_GREATER_EQUAL_2_4_1=TORCH_GREATER_EQUAL_2_4_1 "
            "_TORCH_GREATER_EQUAL_2_5=TORCH_GREATER_EQUAL_2_5 _TORCH_GREATER_EQUAL_2_6=TORCH_GREATER_EQUAL_2_6 "
            "_TORCH_LESS_EQUAL_2_6=TORCH_LESS_EQUAL_2_6"
        ),
    },
    "lightning.fabric.utilities.logger": {
        "fulmen.loggers.params": (
            "_convert_params=convert_params _flatten_dict=flatten_dict _sanitize_params=sanitize_params"
        ),
    },
    "lightning.fabric.utilities.optimizer": {
        "fulmen.strategies.optimizer_state": "_optimizer_to_device=move_optimizer_state",
    },
    "lightning.fabric.utilities.rank_zero": {
        "fulmen.utilities.rank_zero": (
            "LightningDeprecationWarning WarningCache rank_prefixed_message rank_zero_debug rank_zero_deprecation "
            "rank_zero_info rank_zero_only rank_zero_warn"
        ),
    },
    "lightning.fabric.utilities.seed": {
        "fulmen.utilities.seed": "max_seed_value min_seed_value pl_worker_init_function reset_seed seed_everything",
    },
    "lightning.fabric.utilities.throughput": {
        "fulmen.utilities.available_flops": "get_available_flops",
        "fulmen.utilities.throughput": "Throughput measure_flops",
    },
    "lightning.fabric.utilities.types": {
        "fulmen.utilities.types": "CollectibleGroup Optimizable Steppable _DEVICE _MAP_LOCATION_TYPE _PATH _Stateful",
    },
    "lightning.fabric.utilities.warnings": {
        "fulmen.utilities.warnings": "PossibleUserWarning disable_possible_user_warnings",
    },
}
