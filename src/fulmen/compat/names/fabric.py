"""The names of `lightning.fabric`: Fabric, and the parts that the Trainer is made of too."""

from __future__ import annotations

__all__ = ["FABRIC"]

FABRIC: dict[str, dict[str, str]] = {
    "lightning.fabric": {
        "fulmen.fabric.fabric": "Fabric",
        "fulmen.fabric.wrappers": "is_wrapped",
        "fulmen.utilities.seed": "seed_everything",
        "fulmen.utilities.warnings": "disable_possible_user_warnings",
    },
    "lightning.fabric.accelerators": {
        "fulmen.accelerators.accelerator": "Accelerator",
        "fulmen.accelerators.cpu": "CPUAccelerator",
        "fulmen.accelerators.cuda": "CUDAAccelerator find_usable_cuda_devices",
        "fulmen.accelerators.mps": "MPSAccelerator",
        "fulmen.accelerators.registry": "ACCELERATOR_REGISTRY",
        "fulmen.accelerators.xla": "XLAAccelerator",
    },
    "lightning.fabric.accelerators.accelerator": {"fulmen.accelerators.accelerator": "Accelerator"},
    "lightning.fabric.accelerators.cpu": {"fulmen.accelerators.cpu": "CPUAccelerator"},
    "lightning.fabric.accelerators.cuda": {
        "fulmen.accelerators.cuda": "CUDAAccelerator find_usable_cuda_devices is_cuda_available num_cuda_devices",
    },
    "lightning.fabric.accelerators.mps": {"fulmen.accelerators.mps": "MPSAccelerator"},
    "lightning.fabric.accelerators.registry": {
        "fulmen.accelerators.registry": "_AcceleratorRegistry=AcceleratorNames",
        "fulmen.compat.registration": "call_register_accelerators",
    },
    "lightning.fabric.accelerators.xla": {"fulmen.accelerators.xla": "XLAAccelerator"},
    "lightning.fabric.cli": {"fulmen.compat.fabric_cli": "_main main"},
    "lightning.fabric.connector": {
        "fulmen.compat.argument_types": (
            "_PLUGIN_INPUT=PLUGIN_INPUT _PRECISION_INPUT=PRECISION_INPUT _PRECISION_INPUT_INT=PRECISION_INPUT_INT "
            "_PRECISION_INPUT_STR=PRECISION_INPUT_STR _PRECISION_INPUT_STR_ALIAS=PRECISION_INPUT_STR_ALIAS "
            "_PRECISION_INPUT_STR_ALIAS_CONVERSION=PRECISION_ALIASES"
        ),
    },
    "lightning.fabric.fabric": {"fulmen.fabric.fabric": "Fabric"},
    "lightning.fabric.loggers": {
        "fulmen.compat._fabric_loggers": "CSVLogger TensorBoardLogger",
        "fulmen.loggers.logger": "Logger",
    },
    "lightning.fabric.loggers.csv_logs": {"fulmen.compat._fabric_loggers": "CSVLogger"},
    "lightning.fabric.loggers.logger": {"fulmen.loggers.logger": "Logger rank_zero_experiment"},
    "lightning.fabric.loggers.tensorboard": {"fulmen.compat._fabric_loggers": "TensorBoardLogger"},
    "lightning.fabric.plugins": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
        "fulmen.plugins.io.xla": "XLACheckpointIO",
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
    "lightning.fabric.plugins.collectives": {
        "fulmen.plugins.collectives.collective": "Collective",
        "fulmen.plugins.collectives.single_device": "SingleDeviceCollective",
        "fulmen.plugins.collectives.torch_collective": "TorchCollective",
    },
    "lightning.fabric.plugins.collectives.collective": {"fulmen.plugins.collectives.collective": "Collective"},
    "lightning.fabric.plugins.collectives.single_device": {
        "fulmen.plugins.collectives.single_device": "SingleDeviceCollective",
    },
    "lightning.fabric.plugins.collectives.torch_collective": {
        "fulmen.plugins.collectives.torch_collective": "TorchCollective",
        "fulmen.strategies.process_group": "default_pg_timeout=DEFAULT_TIMEOUT",
    },
    "lightning.fabric.plugins.environments": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
        "fulmen.plugins.environments.kubeflow": "KubeflowEnvironment",
        "fulmen.plugins.environments.local": "LightningEnvironment",
        "fulmen.plugins.environments.lsf": "LSFEnvironment",
        "fulmen.plugins.environments.mpi": "MPIEnvironment",
        "fulmen.plugins.environments.slurm": "SLURMEnvironment",
        "fulmen.plugins.environments.torchelastic": "TorchElasticEnvironment",
        "fulmen.plugins.environments.xla": "XLAEnvironment",
    },
    "lightning.fabric.plugins.environments.cluster_environment": {
        "fulmen.plugins.environments.cluster_environment": "ClusterEnvironment",
    },
    "lightning.fabric.plugins.environments.kubeflow": {"fulmen.plugins.environments.kubeflow": "KubeflowEnvironment"},
    "lightning.fabric.plugins.environments.lightning": {
        "fulmen.plugins.environments.local": "LightningEnvironment find_free_network_port",
    },
    "lightning.fabric.plugins.environments.lsf": {"fulmen.plugins.environments.lsf": "LSFEnvironment"},
    "lightning.fabric.plugins.environments.mpi": {"fulmen.plugins.environments.mpi": "MPIEnvironment"},
    "lightning.fabric.plugins.environments.slurm": {"fulmen.plugins.environments.slurm": "SLURMEnvironment"},
    "lightning.fabric.plugins.environments.torchelastic": {
        "fulmen.plugins.environments.torchelastic": "TorchElasticEnvironment",
    },
    "lightning.fabric.plugins.environments.xla": {"fulmen.plugins.environments.xla": "XLAEnvironment"},
    "lightning.fabric.plugins.io": {
        "fulmen.plugins.io.checkpoint_io": "CheckpointIO",
        "fulmen.plugins.io.torch_io": "TorchCheckpointIO",
        "fulmen.plugins.io.xla": "XLACheckpointIO",
    },
    "lightning.fabric.plugins.io.checkpoint_io": {"fulmen.plugins.io.checkpoint_io": "CheckpointIO"},
    "lightning.fabric.plugins.io.torch_io": {"fulmen.plugins.io.torch_io": "TorchCheckpointIO"},
    "lightning.fabric.plugins.io.xla": {"fulmen.plugins.io.xla": "XLACheckpointIO"},
    "lightning.fabric.plugins.precision": {
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
    "lightning.fabric.plugins.precision.amp": {"fulmen.plugins.precision.amp": "MixedPrecision"},
    "lightning.fabric.plugins.precision.bitsandbytes": {
        "fulmen.plugins.precision.bitsandbytes": "BitsandbytesPrecision",
    },
    "lightning.fabric.plugins.precision.deepspeed": {"fulmen.plugins.precision.deepspeed": "DeepSpeedPrecision"},
    "lightning.fabric.plugins.precision.double": {"fulmen.plugins.precision.double": "DoublePrecision"},
    "lightning.fabric.plugins.precision.fsdp": {"fulmen.plugins.precision.fsdp": "FSDPPrecision"},
    "lightning.fabric.plugins.precision.half": {"fulmen.plugins.precision.half": "HalfPrecision"},
    "lightning.fabric.plugins.precision.precision": {
        "fulmen.compat.argument_types": (
            "_PRECISION_INPUT=PRECISION_INPUT _PRECISION_INPUT_INT=PRECISION_INPUT_INT "
            "_PRECISION_INPUT_STR=PRECISION_INPUT_STR _PRECISION_INPUT_STR_ALIAS=PRECISION_INPUT_STR_ALIAS "
            "_PRECISION_INPUT_STR_ALIAS_CONVERSION=PRECISION_ALIASES"
        ),
        "fulmen.plugins.precision.precision": "Precision",
    },
    "lightning.fabric.plugins.precision.transformer_engine": {
        "fulmen.plugins.precision.transformer_engine": "TransformerEnginePrecision",
    },
    "lightning.fabric.plugins.precision.utils": {
        "fulmen.plugins.precision.contexts": "_DtypeContextManager=DefaultDtype _convert_fp_tensor=convert_floats",
    },
    "lightning.fabric.plugins.precision.xla": {"fulmen.plugins.precision.xla": "XLAPrecision"},
    "lightning.fabric.strategies": {
        "fulmen.compat._fabric_deepspeed": "DeepSpeedStrategy",
        "fulmen.compat._fabric_fsdp": "FSDPStrategy",
        "fulmen.compat._fabric_strategies": (
            "DDPStrategy DataParallelStrategy ParallelStrategy SingleDeviceStrategy SingleDeviceXLAStrategy "
            "Strategy XLAStrategy"
        ),
        "fulmen.compat._model_parallel": "ModelParallelStrategy",
        "fulmen.strategies.registry": "STRATEGY_REGISTRY",
    },
    "lightning.fabric.strategies.ddp": {"fulmen.compat._fabric_strategies": "DDPStrategy"},
    "lightning.fabric.strategies.deepspeed": {"fulmen.compat._fabric_deepspeed": "DeepSpeedStrategy"},
    "lightning.fabric.strategies.dp": {"fulmen.compat._fabric_strategies": "DataParallelStrategy"},
    "lightning.fabric.strategies.fsdp": {"fulmen.compat._fabric_fsdp": "FSDPStrategy"},
    "lightning.fabric.strategies.launchers": {
        "fulmen.compat.launchers": (
            "_MultiProcessingLauncher=MultiProcessingLauncher _SubprocessScriptLauncher=SubprocessScriptLauncher "
            "_XLALauncher=XLALauncher"
        ),
        "fulmen.strategies.launchers.launcher": "_Launcher=Launcher",
    },
    "lightning.fabric.strategies.launchers.launcher": {"fulmen.strategies.launchers.launcher": "_Launcher=Launcher"},
    "lightning.fabric.strategies.launchers.multiprocessing": {
        "fulmen.compat.launchers": "_MultiProcessingLauncher=MultiProcessingLauncher",
    },
    "lightning.fabric.strategies.launchers.subprocess_script": {
        "fulmen.compat.launchers": "_SubprocessScriptLauncher=SubprocessScriptLauncher",
    },
    "lightning.fabric.strategies.launchers.xla": {"fulmen.compat.launchers": "_XLALauncher=XLALauncher"},
    "lightning.fabric.strategies.model_parallel": {"fulmen.compat._model_parallel": "ModelParallelStrategy"},
    "lightning.fabric.strategies.parallel": {"fulmen.compat._fabric_strategies": "ParallelStrategy"},
    "lightning.fabric.strategies.registry": {"fulmen.strategies.registry": "_StrategyRegistry=StrategyNames"},
    "lightning.fabric.strategies.single_device": {"fulmen.compat._fabric_strategies": "SingleDeviceStrategy"},
    "lightning.fabric.strategies.single_xla": {"fulmen.compat._fabric_strategies": "SingleDeviceXLAStrategy"},
    "lightning.fabric.strategies.strategy": {"fulmen.compat._fabric_strategies": "Strategy"},
    "lightning.fabric.strategies.xla": {"fulmen.compat._fabric_strategies": "XLAStrategy"},
    "lightning.fabric.utilities": {
        "fulmen.fabric.throughput": "ThroughputMonitor",
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
        "fulmen.compat.conversions": "CONVERSION_DTYPES",
        "fulmen.utilities.tree": "convert_tensors_to_scalars convert_to_tensors move_data_to_device",
    },
    "lightning.fabric.utilities.cloud_io": {
        "fulmen.utilities.files": "_atomic_save=atomic_save _load=load_file get_filesystem",
    },
    "lightning.fabric.utilities.consolidate_checkpoint": {"fulmen.checkpoint.consolidate": "consolidate"},
    "lightning.fabric.utilities.data": {
        "fulmen.utilities.data": "has_iterable_dataset has_len sized_len suggested_max_num_workers",
        "fulmen.utilities.parsing": "AttributeDict",
    },
    "lightning.fabric.utilities.device_dtype_mixin": {
        "fulmen.core.device": "_DeviceDtypeModuleMixin=DeviceDtypeModule",
    },
    "lightning.fabric.utilities.device_parser": {
        "fulmen.compat.gpu_ids": "_determine_root_gpu_device=first_gpu _parse_gpu_ids=parse_gpu_ids",
    },
    "lightning.fabric.utilities.distributed": {
        "fulmen.data.sampler": "DistributedSamplerWrapper",
        "fulmen.utilities.distributed": "_distributed_is_initialized=is_group_initialized",
        "fulmen.utilities.files": "is_shared_filesystem",
    },
    "lightning.fabric.utilities.enums": {"fulmen.utilities.enums": "LightningEnum"},
    "lightning.fabric.utilities.exceptions": {"fulmen.utilities.exceptions": "MisconfigurationException"},
    "lightning.fabric.utilities.imports": {
        "fulmen.compat.installed": (
            "_IS_INTERACTIVE=IS_INTERACTIVE _IS_WINDOWS=IS_WINDOWS "
            "_PYTHON_GREATER_EQUAL_3_10_0=PYTHON_GREATER_EQUAL_3_10_0 "
            "_TORCHMETRICS_GREATER_EQUAL_1_0_0=TORCHMETRICS_GREATER_EQUAL_1_0_0 "
            "_TORCH_EQUAL_2_4_0=TORCH_EQUAL_2_4_0 _TORCH_GREATER_EQUAL_2_2=TORCH_GREATER_EQUAL_2_2 "
            "_TORCH_GREATER_EQUAL_2_3=TORCH_GREATER_EQUAL_2_3 _TORCH_GREATER_EQUAL_2_4=TORCH_GREATER_EQUAL_2_4 "
            "_TORCH_GREATER_EQUAL_2_4_1=TORCH_GREATER_EQUAL_2_4_1 "
            "_TORCH_GREATER_EQUAL_2_5=TORCH_GREATER_EQUAL_2_5 _TORCH_GREATER_EQUAL_2_6=TORCH_GREATER_EQUAL_2_6 "
            "_TORCH_LESS_EQUAL_2_6=TORCH_LESS_EQUAL_2_6"
        ),
    },
    "lightning.fabric.utilities.init": {
        "fulmen.compat.lazy_load": "_materialize_meta_tensors=materialize_meta",
        "fulmen.strategies.empty_init": "_EmptyInit=EmptyInit",
    },
    "lightning.fabric.utilities.load": {
        "fulmen.compat.lazy_load": (
            "_NotYetLoadedTensor=NotYetLoadedTensor _lazy_load=lazy_load _materialize_tensors=materialize"
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
    "lightning.fabric.utilities.registry": {
        "fulmen.compat.registration": (
            "_load_external_callbacks=load_external_callbacks _register_classes=register_classes"
        ),
    },
    "lightning.fabric.utilities.seed": {
        "fulmen.utilities.seed": "max_seed_value min_seed_value pl_worker_init_function reset_seed seed_everything",
    },
    "lightning.fabric.utilities.spike": {"fulmen.fabric.spike": "SpikeDetection TrainingSpikeException"},
    "lightning.fabric.utilities.throughput": {
        "fulmen.fabric.throughput": "ThroughputMonitor",
        "fulmen.utilities.available_flops": "get_available_flops",
        "fulmen.utilities.throughput": "Throughput measure_flops",
    },
    "lightning.fabric.utilities.types": {
        "fulmen.utilities.types": "CollectibleGroup Optimizable Steppable _DEVICE _MAP_LOCATION_TYPE _PATH _Stateful",
    },
    "lightning.fabric.utilities.warnings": {
        "fulmen.utilities.warnings": "PossibleUserWarning disable_possible_user_warnings",
    },
    "lightning.fabric.wrappers": {
        "fulmen.fabric.loaders": "_FabricDataLoader",
        "fulmen.fabric.wrappers": "_FabricModule _FabricOptimizer is_wrapped",
    },
}
