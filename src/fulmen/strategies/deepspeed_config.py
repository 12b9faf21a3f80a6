"""The configuration that DeepSpeed gets: from arguments, a dict or a file, completed by what the run says.

Keys are those of https://www.deepspeed.ai/docs/config-json.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fulmen.utilities.command_line import nearest
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = [
    "ARGUMENTS",
    "NAMES",
    "check_config",
    "checked_remote_device",
    "complete_config",
    "config_from_arguments",
    "explain_refusal",
    "read_config",
    "stage_of",
]

_ACCUMULATION = "gradient_accumulation_steps"
_CLIPPING = "gradient_clipping"
_MICRO_BATCH = "train_micro_batch_size_per_gpu"
_BATCH = "train_batch_size"
_OWN_BOUNDARIES = "managed_gradient_accumulation"
_FROM_THE_RUN = (_MICRO_BATCH, _BATCH, _ACCUMULATION, _CLIPPING)
_STAGES = (0, 1, 2, 3)
# DeepSpeed has no list of the names at the top, and passes over those that it does not know
_TOP_NAMES = frozenset(
    [
        *_FROM_THE_RUN,
        *("optimizer", "scheduler", "zero_optimization", "zero_allow_untested_optimizer"),
        *("zero_force_ds_cpu_optimizer", "fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types"),
        *("communication_data_type", "seq_parallel_communication_data_type", "prescale_gradients"),
        *("gradient_predivide_factor", "gradient_allreduce_op", "sparse_gradients", "disable_allgather"),
        *("disable_python_gc", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state"),
        *("log_level", "timers", "flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet"),
        *("activation_checkpointing", "aio", "checkpoint", "nebula", "datastates_ckpt", "load_universal_checkpoint"),
        *("compile", "compression_training", "quantize_training", "weight_quantization", "sparse_attention"),
        *("data_efficiency", "curriculum_learning", "dataloader_drop_last", "progressive_layer_drop", "eigenvalue"),
        *("autotuning", "elasticity", "hybrid_engine", "pipeline", "tensor_parallel", "sequence_parallel_size"),
        *("expert_parallel", "use_data_before_expert_parallelism", "vocabulary_size", "graph_harvesting", "zenflow"),
        "allgather_size",
        _OWN_BOUNDARIES,
    ]
)
_KNOWN_UP_TO = (0, 19)
_OF_COMMENTS = ("_", "$", "#", "/")
_DEVICES = ("cpu", "nvme")

# arguments that keep their names, by the section that they go into
_SAME_NAMES = {
    "activation_checkpointing": (
        "partition_activations",
        "cpu_checkpointing",
        "contiguous_memory_optimization",
        "synchronize_checkpoint_boundary",
    ),
    "aio": ("block_size", "queue_depth", "single_submit", "overlap_events", "thread_count"),
}
_OF_ZERO = (
    *("stage", "contiguous_gradients", "overlap_comm", "allgather_partitions", "reduce_scatter"),
    *("allgather_bucket_size", "reduce_bucket_size", "sub_group_size"),
)
ARGUMENTS = (
    *("zero_optimization", "offload_optimizer", "offload_parameters", "offload_params_device", "nvme_path"),
    *("params_buffer_count", "params_buffer_size", "max_in_cpu", "offload_optimizer_device", "optimizer_buffer_count"),
    *("pin_memory", "zero_allow_untested_optimizer"),
    *_OF_ZERO,
    *(name for names in _SAME_NAMES.values() for name in names),
)
"""The arguments of `DeepSpeedStrategy` that a configuration is made of."""
NAMES: dict[str, dict[str, Any]] = {
    "deepspeed": {},
    "deepspeed_stage_1": {"stage": 1},
    "deepspeed_stage_1_offload": {"stage": 1, "offload_optimizer": True},
    "deepspeed_stage_2": {"stage": 2},
    "deepspeed_stage_2_offload": {"stage": 2, "offload_optimizer": True},
    "deepspeed_stage_3": {"stage": 3},
    "deepspeed_stage_3_offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "deepspeed_stage_3_offload_nvme": {
        "stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
        "remote_device": "nvme",
        "offload_params_device": "nvme",
        "offload_optimizer_device": "nvme",
    },
}
"""The registered names, with the arguments that they stand for."""
_OF_SCALER = ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")


def config_from_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Put the arguments of `DeepSpeedStrategy` where DeepSpeed looks for them.

    Args:
        given: The arguments by name.

    Returns:
        A configuration without precision, batch size and clipping, which a run adds.

    Raises:
        ValueError: A value is not possible, or two exclude each other.
    """
    _check_arguments(given)
    config: dict[str, Any] = {section: {name: given[name] for name in names} for section, names in _SAME_NAMES.items()}
    config["zero_allow_untested_optimizer"] = given["zero_allow_untested_optimizer"]
    # DeepSpeed would insist on its own Adam, which is compiled; any optimizer of torch does, only slower
    config["zero_force_ds_cpu_optimizer"] = False
    zero = {name: given[name] for name in _OF_ZERO}
    if not given["zero_optimization"]:
        zero["stage"] = 0
    if given["offload_parameters"]:
        zero["offload_param"] = {
            "device": given["offload_params_device"],
            "nvme_path": given["nvme_path"],
            "buffer_count": given["params_buffer_count"],
            "buffer_size": given["params_buffer_size"],
            "max_in_cpu": given["max_in_cpu"],
            "pin_memory": given["pin_memory"],
        }
    if given["offload_optimizer"]:
        zero["offload_optimizer"] = {
            "device": given["offload_optimizer_device"],
            "nvme_path": given["nvme_path"],
            "buffer_count": given["optimizer_buffer_count"],
            "pin_memory": given["pin_memory"],
        }
    config["zero_optimization"] = zero
    return config


def _check_arguments(given: Mapping[str, Any]) -> None:
    stage = given["stage"]
    if isinstance(stage, bool) or stage not in _STAGES:
        raise ValueError(
            f"`DeepSpeedStrategy(stage={stage!r})` is not a stage of ZeRO. Choose 1 (divides optimizer states), 2"
            " (gradients too), 3 (parameters too), or 0 (nothing)."
        )
    stage = stage if given["zero_optimization"] else 0
    for switch, device, least in (
        ("offload_optimizer", "offload_optimizer_device", 1),
        ("offload_parameters", "offload_params_device", 3),
    ):
        if given[device] not in _DEVICES:
            raise ValueError(
                f"`DeepSpeedStrategy({device}={given[device]!r})` is no place to offload to. Choose 'cpu' or 'nvme'."
            )
        needed = 3 if given[device] == "nvme" else least
        if given[switch] and stage < needed:
            raise ValueError(
                f"`DeepSpeedStrategy({switch}=True, {device}={given[device]!r})` needs stage {needed} of ZeRO, but the"
                f" stage is {stage}: below, there is nothing divided that could be offloaded. Pass `stage={needed}`, or"
                " leave it out."
            )


def checked_remote_device(remote_device: str | None) -> str | None:
    """Check where parameters are to be made.

    Args:
        remote_device: "cpu", "nvme", or `None` (or "none") for the device.

    Returns:
        The same, without "none".

    Raises:
        ValueError: It is something else.
    """
    if remote_device in (None, "none", "cpu", "nvme"):
        return None if remote_device == "none" else remote_device
    raise ValueError(
        f"`DeepSpeedStrategy(remote_device={remote_device!r})` is no place where parameters can be made. Choose None"
        " (the device), 'cpu' or 'nvme'."
    )


def read_config(config: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Read a configuration.

    Args:
        config: A dict, or the path of a JSON file.

    Returns:
        A copy, to be completed.

    Raises:
        MisconfigurationException: There is no such file.
        TypeError: It is neither.
        ValueError: The file is no JSON with an object at its top.
    """
    if isinstance(config, Mapping):
        return copy.deepcopy(dict(config))
    if not isinstance(config, (str, os.PathLike)):
        raise TypeError(
            f"`DeepSpeedStrategy(config={config!r})` is a `{type(config).__name__}`. Pass a dict, or the path of a"
            " JSON file."
        )
    if not os.path.isfile(config):
        raise MisconfigurationException(
            f"`DeepSpeedStrategy(config={os.fspath(config)!r})` is the path of a file that does not exist. Check the"
            " path, or pass the configuration itself as a dict."
        )
    with open(config, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`DeepSpeedStrategy(config={os.fspath(config)!r})`: the file is no JSON: {error}. Correct it."
            ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"`DeepSpeedStrategy(config={os.fspath(config)!r})`: the file holds a {type(content).__name__}, but a"
            " configuration is an object. Write `{...}`."
        )
    return content


def check_config(config: Mapping[str, Any], version: str) -> None:
    """Refuse what no run could use.

    Args:
        config: The user's configuration.
        version: That of the package.

    Raises:
        ValueError: A name at the top is unknown, the stage is none, or a value is "auto" that nothing can be taken for.
    """
    _check_names(config, version)
    if stage_of(config) not in _STAGES:
        raise ValueError(
            f"The DeepSpeed config has `zero_optimization.stage` {stage_of(config)!r}. Choose one of {_STAGES}."
        )
    known = {*_FROM_THE_RUN, "fp16.enabled", "bf16.enabled"}
    if unknown := [path for path in _auto_values(config) if path not in known]:
        raise ValueError(
            f"The DeepSpeed config has the value 'auto' for {unknown}, and nothing says what it is to be: 'auto' is"
            f" known for {sorted(known)}. Write the value."
        )


def _check_names(config: Mapping[str, Any], version: str) -> None:
    unknown = [name for name in config if name not in _TOP_NAMES and not name.startswith(_OF_COMMENTS)]
    for name in unknown:
        hint = nearest(name, _TOP_NAMES)
        text = f"The DeepSpeed config has the name {name!r}, which DeepSpeed does not know and would pass over.{hint}"
        if hint or tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) <= _KNOWN_UP_TO:
            raise ValueError(
                f"{text} Correct it, move it into the section that it belongs to, or remove it; names of comments begin"
                f" with one of {_OF_COMMENTS}."
            )
        rank_zero_warn(f"{text} It is passed on, as DeepSpeed {version} is newer than the names that are known here.")


def explain_refusal(error: ValueError, config: Mapping[str, Any], fields: Mapping[str, Iterable[str]]) -> ValueError:
    """Return an error that says what of a configuration DeepSpeed has refused, and what to do.

    Args:
        error: What the library raised that DeepSpeed checks its sections with.
        config: The configuration.
        fields: Names in a section, by the name of its class.
    """
    known = sorted(fields.get(getattr(error, "title", ""), ()))
    lines = []
    for each in error.errors():  # type: ignore[attr-defined]  # of pydantic, as the caller has seen
        name = ".".join(map(str, each["loc"]))
        section = next((f" in `{key}`" for key, value in config.items() if _holds(value, each["loc"])), "")
        if each["type"] == "extra_forbidden":
            lines.append(f"it has {name!r}{section}, which DeepSpeed does not know.{nearest(name, known)}")
        else:
            lines.append(f"{name!r}{section} is {each['input']!r}: {each['msg']}.")
    return ValueError(
        f"DeepSpeed refuses its config: {' '.join(lines)} Correct it; the names are those of"
        " https://www.deepspeed.ai/docs/config-json."
    )


def _holds(section: Any, path: Sequence[Any]) -> bool:
    for name in path:
        if not isinstance(section, Mapping) or name not in section:
            return False
        section = section[name]
    return bool(path)


def _auto_values(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in config.items():
        if value == "auto":
            yield f"{path}{name}"
        elif isinstance(value, Mapping):
            yield from _auto_values(value, f"{path}{name}.")


def stage_of(config: Mapping[str, Any]) -> int:
    """Return the stage of ZeRO that a configuration chooses.

    Args:
        config: The configuration.
    """
    zero = config.get("zero_optimization")
    if isinstance(zero, bool):  # an old form
        return int(zero)
    return (zero or {}).get("stage", 0)  # type: ignore[no-any-return]  # checked by `check_config`


def complete_config(
    given: Mapping[str, Any],
    *,
    precision: str,
    scaler: Mapping[str, Any],
    micro_batch_size: int,
    clip_val: float | None,
    for_trainer: bool,
    loader_batch_size: int | None = None,
    num_micro_batches: int = 1,
) -> dict[str, Any]:
    """Return a configuration with what the run says.

    Args:
        given: The user's configuration, or what was made of arguments.
        precision: Name of the number format.
        scaler: Arguments of `DeepSpeedStrategy` about the scale of the loss.
        micro_batch_size: Samples in the batch of a process, for DeepSpeed's logs.
        clip_val: `Trainer(gradient_clip_val=...)`.
        for_trainer: Whether a Trainer runs it, which says when to step and how to clip.
        loader_batch_size: Samples in the batch of a process, if the Trainer knows it.
        num_micro_batches: Such batches in one step of the optimizer, on all processes together.

    Raises:
        MisconfigurationException: The configuration says something else than the run.
    """
    config = copy.deepcopy(dict(given))
    for name in _FROM_THE_RUN:
        if config.get(name) == "auto":
            del config[name]
    if for_trainer:
        _check_for_trainer(config, clip_val)
        config[_CLIPPING] = float(clip_val or config.get(_CLIPPING) or 0.0)
        if loader_batch_size is not None:
            _check_batch_sizes(config, loader_batch_size, num_micro_batches)
    if _BATCH not in config:
        config.setdefault(_MICRO_BATCH, micro_batch_size)
    _complete_precision(config, precision, scaler)
    if config.get(_ACCUMULATION, 1) == 1:  # else the user leaves the windows to DeepSpeed
        config[_ACCUMULATION] = 1
        config[_OWN_BOUNDARIES] = False  # gradients add up until someone steps
        zero = config.get("zero_optimization")
        if isinstance(zero, dict) and zero.get("stage", 0) < 2:  # which exchanges gradients when it steps
            zero["overlap_comm"] = False
    return config


def _check_for_trainer(config: Mapping[str, Any], clip_val: float | None) -> None:
    if _ACCUMULATION in config:
        raise MisconfigurationException(
            f"The DeepSpeed config has `{_ACCUMULATION}={config[_ACCUMULATION]!r}`, but the Trainer decides when the"
            f" optimizer steps. Remove it, and pass `Trainer(accumulate_grad_batches={config[_ACCUMULATION]!r})`."
        )
    own = config.get(_CLIPPING)
    if own and clip_val and own != clip_val:
        raise MisconfigurationException(
            f"The DeepSpeed config has `{_CLIPPING}={own!r}`, and the Trainer `gradient_clip_val={clip_val!r}`, but"
            " gradients are clipped once. Remove one of them."
        )


def _check_batch_sizes(config: dict[str, Any], micro_batch_size: int, num_micro_batches: int) -> None:
    expected = {_MICRO_BATCH: micro_batch_size, _BATCH: micro_batch_size * num_micro_batches}
    for name, size in expected.items():
        if config.get(name, size) != size:
            raise MisconfigurationException(
                f"The DeepSpeed config has `{name}={config[name]!r}`, but the Trainer trains with {size}: its loader"
                f" has `batch_size={micro_batch_size}`, and one step takes {num_micro_batches} such batch(es) from all"
                f" processes together. Remove it, write 'auto', or change the loader."
            )
    config.pop(_BATCH, None)  # DeepSpeed would multiply without the windows of the Trainer


def _complete_precision(config: dict[str, Any], precision: str, scaler: Mapping[str, Any]) -> None:
    wanted = {"16": "fp16", "bf": "bf16"}.get(precision[:2])
    for name in ("fp16", "bf16"):
        section = config.get(name)
        enabled = isinstance(section, Mapping) and section.get("enabled")
        if enabled == "auto":
            config[name] = {**section, "enabled": name == wanted}  # type: ignore[dict-item]  # a mapping, as tested
        elif enabled and name != wanted:
            fitting = "16-mixed" if name == "fp16" else "bf16-mixed"
            raise MisconfigurationException(
                f"The DeepSpeed config enables `{name}`, but the precision of the run is {precision!r}, in which"
                f" batches would arrive. Pass `precision={fitting!r}`, or remove the section."
            )
    if wanted == "fp16":
        section = {"enabled": True, **{name: scaler[name] for name in _OF_SCALER}}
        config["fp16"] = {**section, **config.get("fp16", {})}
    elif wanted == "bf16":
        config["bf16"] = {"enabled": True, **config.get("bf16", {})}
