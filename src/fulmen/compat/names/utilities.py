"""Utilities."""

from __future__ import annotations

__all__ = ["UTILITIES"]

UTILITIES: dict[str, dict[str, str]] = {
    "lightning.pytorch.overrides": {},
    "lightning.pytorch.overrides.distributed": {
        "fulmen.data.sampler": "UnrepeatedDistributedSampler UnrepeatedDistributedSamplerWrapper",
        "fulmen.strategies.manual_step": "prepare_for_backward",
    },
    "lightning.pytorch.utilities": {
        "fulmen.data.combined_loader": "CombinedLoader",
        "fulmen.utilities.data": "suggested_max_num_workers",
        "fulmen.utilities.enums": "GradClipAlgorithmType LightningEnum",
        "fulmen.utilities.files": "is_shared_filesystem",
        "fulmen.utilities.grads": "grad_norm",
        "fulmen.utilities.parameter_tying": "find_shared_parameters set_shared_parameters",
        "fulmen.utilities.parsing": "AttributeDict is_picklable",
        "fulmen.utilities.rank_zero": "rank_zero_deprecation rank_zero_info rank_zero_only rank_zero_warn",
        "fulmen.utilities.throughput": "measure_flops",
        "fulmen.utilities.tree": "move_data_to_device",
        "fulmen.utilities.types": "FLOAT16_EPSILON FLOAT32_EPSILON FLOAT64_EPSILON",
        "fulmen.utilities.warnings": "disable_possible_user_warnings",
    },
    "lightning.pytorch.utilities.argparse": {},
    "lightning.pytorch.utilities.combined_loader": {"fulmen.data.combined_loader": "CombinedLoader"},
    "lightning.pytorch.utilities.compile": {"fulmen.utilities.compile": "from_compiled to_uncompiled"},
    "lightning.pytorch.utilities.consolidate_checkpoint": {"fulmen.checkpoint.consolidate": "consolidate"},
    "lightning.pytorch.utilities.data": {
        "fulmen.utilities.data": "has_len_all_ranks",
        "fulmen.utilities.tree": "BType extract_batch_size",
    },
    "lightning.pytorch.utilities.deepspeed": {
        "fulmen.utilities.deepspeed": "CPU_DEVICE convert_zero_checkpoint_to_fp32_state_dict ds_checkpoint_dir",
    },
    "lightning.pytorch.utilities.enums": {"fulmen.utilities.enums": "GradClipAlgorithmType"},
    "lightning.pytorch.utilities.exceptions": {
        "fulmen.utilities.exceptions": "MisconfigurationException SIGTERMException",
    },
    "lightning.pytorch.utilities.grads": {"fulmen.utilities.grads": "grad_norm"},
    "lightning.pytorch.utilities.imports": {
        "fulmen.compat.installed": (
            "_OMEGACONF_AVAILABLE=OMEGACONF_AVAILABLE _PYTHON_GREATER_EQUAL_3_11_0=PYTHON_GREATER_EQUAL_3_11_0 "
            "_TORCH_GREATER_EQUAL_2_6=TORCH_GREATER_EQUAL_2_6 _TORCH_GREATER_EQUAL_2_8=TORCH_GREATER_EQUAL_2_8"
        ),
    },
    "lightning.pytorch.utilities.memory": {
        "fulmen.utilities.memory": (
            "garbage_collection_cuda is_cuda_out_of_memory is_cudnn_snafu is_oom_error is_out_of_cpu_memory "
            "recursive_detach"
        ),
    },
    "lightning.pytorch.utilities.migration": {"fulmen.utilities.migration": "migrate_checkpoint pl_legacy_patch"},
    "lightning.pytorch.utilities.migration.migration": {},
    "lightning.pytorch.utilities.migration.utils": {"fulmen.utilities.migration": "migrate_checkpoint pl_legacy_patch"},
    "lightning.pytorch.utilities.model_helpers": {
        "fulmen.utilities.model_helpers": "get_torchvision_model is_overridden",
    },
    "lightning.pytorch.utilities.model_registry": {
        "fulmen.utilities.model_registry": "download_model_from_registry find_model_local_ckpt_path",
    },
    "lightning.pytorch.utilities.model_summary": {
        "fulmen.utilities.model_summary.model_summary": (
            "LayerSummary ModelSummary get_formatted_model_size get_human_readable_count parse_batch_shape summarize"
        ),
        "fulmen.utilities.model_summary.model_summary_deepspeed": "DeepSpeedSummary",
    },
    "lightning.pytorch.utilities.model_summary.model_summary": {
        "fulmen.utilities.model_summary.model_summary": (
            "LEFTOVER_PARAMS_NAME LayerSummary ModelSummary NOT_APPLICABLE PARAMETER_NUM_UNITS UNKNOWN_SIZE "
            "get_formatted_model_size get_human_readable_count parse_batch_shape summarize"
        ),
    },
    "lightning.pytorch.utilities.model_summary.model_summary_deepspeed": {
        "fulmen.utilities.model_summary.model_summary_deepspeed": (
            "DeepSpeedLayerSummary DeepSpeedSummary deepspeed_param_size"
        ),
    },
    "lightning.pytorch.utilities.parameter_tying": {
        "fulmen.utilities.parameter_tying": "find_shared_parameters set_shared_parameters",
    },
    "lightning.pytorch.utilities.parsing": {
        "fulmen.utilities.parsing": (
            "AttributeDict clean_namespace collect_init_args get_init_args is_picklable lightning_getattr "
            "lightning_hasattr lightning_setattr parse_class_init_keys save_hyperparameters"
        ),
    },
    "lightning.pytorch.utilities.rank_zero": {
        "fulmen.utilities.rank_zero": (
            "LightningDeprecationWarning WarningCache rank_prefixed_message rank_zero_debug rank_zero_deprecation "
            "rank_zero_info rank_zero_only rank_zero_warn"
        ),
    },
    "lightning.pytorch.utilities.seed": {"fulmen.utilities.seed": "isolate_rng"},
    "lightning.pytorch.utilities.signature_utils": {"fulmen.utilities.signature_utils": "is_param_in_hook_signature"},
    "lightning.pytorch.utilities.types": {
        "fulmen.utilities.types": (
            "DistributedDataParallel EVAL_DATALOADERS LRSchedulerConfig LRSchedulerConfigType LRSchedulerPLType "
            "LRSchedulerType LRSchedulerTypeTuple LRSchedulerTypeUnion OptimizerConfig OptimizerLRScheduler "
            "OptimizerLRSchedulerConfig STEP_OUTPUT TRAIN_DATALOADERS _EVALUATE_OUTPUT _METRIC _PREDICT_OUTPUT"
        ),
    },
    "lightning.pytorch.utilities.upgrade_checkpoint": {"fulmen.utilities.upgrade_checkpoint": "main"},
    "lightning.pytorch.utilities.warnings": {"fulmen.utilities.warnings": "PossibleUserWarning"},
}
