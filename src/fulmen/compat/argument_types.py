"""Types of arguments that programs use in their own signatures."""

from __future__ import annotations

from typing import Literal, TypeAlias, Union

from torch import Tensor

from fulmen.plugins.environments.cluster_environment import ClusterEnvironment
from fulmen.plugins.io.checkpoint_io import CheckpointIO
from fulmen.plugins.layer_sync import LayerSync
from fulmen.plugins.precision.precision import Precision

__all__ = [
    "LITERAL_WARN",
    "OUT_DICT",
    "PLUGIN_INPUT",
    "PRECISION_ALIASES",
    "PRECISION_INPUT",
    "PRECISION_INPUT_INT",
    "PRECISION_INPUT_STR",
    "PRECISION_INPUT_STR_ALIAS",
    "TRAINER_PLUGIN_INPUT",
]

# `Union` and not `|`: programs ask `typing.get_args` and give them to parsers of command lines
PRECISION_INPUT_INT: TypeAlias = Literal[64, 32, 16]
PRECISION_INPUT_STR_ALIAS: TypeAlias = Literal["64", "32", "16", "bf16"]
PRECISION_INPUT_STR: TypeAlias = Literal[
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
    "fp8-mixed",
]
PRECISION_INPUT: TypeAlias = Union[PRECISION_INPUT_INT, PRECISION_INPUT_STR, PRECISION_INPUT_STR_ALIAS]  # noqa: UP007 - see above
PRECISION_ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
PLUGIN_INPUT: TypeAlias = Union[Precision, ClusterEnvironment, CheckpointIO]  # noqa: UP007 - see above
TRAINER_PLUGIN_INPUT: TypeAlias = Union[Precision, ClusterEnvironment, CheckpointIO, LayerSync]  # noqa: UP007 - see above
LITERAL_WARN: TypeAlias = Literal["warn"]
OUT_DICT: TypeAlias = dict[str, Tensor]
