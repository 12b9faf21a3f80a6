"""Ground layer: tools that know nothing of trainers, modules or hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.utilities.data import suggested_max_num_workers as suggested_max_num_workers
    from fulmen.utilities.enums import GradClipAlgorithmType as GradClipAlgorithmType
    from fulmen.utilities.enums import LightningEnum as LightningEnum
    from fulmen.utilities.files import is_shared_filesystem as is_shared_filesystem
    from fulmen.utilities.grads import grad_norm as grad_norm
    from fulmen.utilities.parameter_tying import find_shared_parameters as find_shared_parameters
    from fulmen.utilities.parameter_tying import set_shared_parameters as set_shared_parameters
    from fulmen.utilities.parsing import AttributeDict as AttributeDict
    from fulmen.utilities.parsing import is_picklable as is_picklable
    from fulmen.utilities.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from fulmen.utilities.rank_zero import rank_zero_info as rank_zero_info
    from fulmen.utilities.rank_zero import rank_zero_only as rank_zero_only
    from fulmen.utilities.rank_zero import rank_zero_warn as rank_zero_warn
    from fulmen.utilities.throughput import Throughput as Throughput
    from fulmen.utilities.throughput import measure_flops as measure_flops
    from fulmen.utilities.tree import move_data_to_device as move_data_to_device
    from fulmen.utilities.types import FLOAT16_EPSILON as FLOAT16_EPSILON
    from fulmen.utilities.types import FLOAT32_EPSILON as FLOAT32_EPSILON
    from fulmen.utilities.types import FLOAT64_EPSILON as FLOAT64_EPSILON
    from fulmen.utilities.warnings import disable_possible_user_warnings as disable_possible_user_warnings

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AttributeDict": "fulmen.utilities.parsing",
        "FLOAT16_EPSILON": "fulmen.utilities.types",
        "FLOAT32_EPSILON": "fulmen.utilities.types",
        "FLOAT64_EPSILON": "fulmen.utilities.types",
        "GradClipAlgorithmType": "fulmen.utilities.enums",
        "LightningEnum": "fulmen.utilities.enums",
        "Throughput": "fulmen.utilities.throughput",
        "disable_possible_user_warnings": "fulmen.utilities.warnings",
        "find_shared_parameters": "fulmen.utilities.parameter_tying",
        "grad_norm": "fulmen.utilities.grads",
        "is_picklable": "fulmen.utilities.parsing",
        "is_shared_filesystem": "fulmen.utilities.files",
        "measure_flops": "fulmen.utilities.throughput",
        "move_data_to_device": "fulmen.utilities.tree",
        "rank_zero_deprecation": "fulmen.utilities.rank_zero",
        "rank_zero_info": "fulmen.utilities.rank_zero",
        "rank_zero_only": "fulmen.utilities.rank_zero",
        "rank_zero_warn": "fulmen.utilities.rank_zero",
        "set_shared_parameters": "fulmen.utilities.parameter_tying",
        "suggested_max_num_workers": "fulmen.utilities.data",
    },
)
