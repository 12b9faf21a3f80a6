"""The package DeepSpeed: how it is loaded, and what is in the folders that it saves.

A folder holds `latest`, the name of a subfolder, the tag, and there `*_model_states.pt` (weights, and what a program
added) and `*_optim_states.pt` (each rank's part of the optimizer state and of the weights in 32 bit).
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.utilities.files import atomic_save
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.variables import variables_set

if TYPE_CHECKING:
    from fulmen.utilities.types import _PATH

__all__ = [
    "CHECKPOINT_TAG",
    "CPU_DEVICE",
    "DeepSpeedFolder",
    "check_installed",
    "convert_zero_checkpoint_to_fp32_state_dict",
    "ds_checkpoint_dir",
    "is_deepspeed_folder",
    "load_package",
    "reading",
]

CPU_DEVICE = torch.device("cpu")
CHECKPOINT_TAG = "checkpoint"
"""The tag that Lightning and fulmen save under."""

_EXTRA = "deepspeed"
_FEATURE = "managed_gradient_accumulation"
_ACCELERATOR_VARIABLE = "DS_ACCELERATOR"
_PLAIN_ONLY_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# what DeepSpeed writes beside the program's values
_OWN_KEYS = frozenset(
    [
        *("module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "shared_params"),
        *("frozen_param_fragments", "lr_scheduler", "data_sampler", "random_ltd", "sparse_tensor_module_names"),
        *("skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size", "parallel_dims"),
        *("ds_config", "ds_version", "num_experts", "universal_checkpoint_info"),
        "checkpoint_parallel_dimensions",
    ]
)


# ---- the package


def check_installed(for_: str) -> None:
    """Make sure that DeepSpeed can be imported, without doing so: it looks for its hardware when it is.

    Args:
        for_: What needs it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if not is_installed("deepspeed"):
        require("deepspeed", extra=_EXTRA, for_=for_)


def load_package(device: torch.device | None = None, *, logging_level: int = logging.WARN) -> ModuleType:
    """Import DeepSpeed.

    Args:
        device: What is computed on; the CPU by default. It counts for the first import only.
        logging_level: Of its logger.

    Raises:
        ModuleNotFoundError: It is not installed.
        RuntimeError: It is too old, or was imported before for other hardware.
    """
    kind = (device or CPU_DEVICE).type
    is_first = not os.environ.get(_ACCELERATOR_VARIABLE)
    if kind == "cpu" and is_first:
        os.environ[_ACCELERATOR_VARIABLE] = "cpu"
    try:
        package = require("deepspeed", extra=_EXTRA, for_="DeepSpeedStrategy")
    finally:
        if kind == "cpu" and is_first:
            del os.environ[_ACCELERATOR_VARIABLE]
    logging.getLogger("DeepSpeed").setLevel(logging_level)
    if not hasattr(package.DeepSpeedEngine, _FEATURE):
        raise RuntimeError(
            f"DeepSpeed {package.__version__} is too old: it does not let the training loop say when to step"
            f" (`{_FEATURE}`). Upgrade it: pip install -U 'fulmen[{_EXTRA}]'"
        )
    if device is not None:
        _check_hardware(package, kind)
    if kind == "cpu":  # its shared memory exchange would be compiled at start, for minutes; gloo does as well
        package.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return package


def _check_hardware(package: ModuleType, kind: str) -> None:
    found = str(package.accelerator.get_accelerator().device_name())
    if found.split(":")[0] != kind:
        raise RuntimeError(
            f"DeepSpeed is set up for {found!r} in this process, but the run computes on {kind!r}. It looks for its"
            f" hardware when it is imported first: do not import it before, and leave the variable"
            f" `{_ACCELERATOR_VARIABLE}` unset or set it to {kind!r}."
        )


@contextmanager
def reading(*, trust: bool = False) -> Iterator[None]:
    """Context in which DeepSpeed reads only tensors and plain data from files; by itself it would run their code.

    Args:
        trust: Let it run that code.
    """
    if trust:
        yield
        return
    with variables_set({_PLAIN_ONLY_VARIABLE: "1"}), torch.serialization.safe_globals(_classes_in_files()):
        yield


def _classes_in_files() -> list[Any]:
    """The classes of which DeepSpeed pickles objects; they only hold numbers."""
    scalers = require("deepspeed.runtime.fp16.loss_scaler", extra=_EXTRA, for_="reading its checkpoints")
    zero = require("deepspeed.runtime.zero.config", extra=_EXTRA, for_="reading its checkpoints")
    fragments = require("deepspeed.utils.tensor_fragment", extra=_EXTRA, for_="reading its checkpoints")
    return [
        scalers.LossScaler,
        scalers.DynamicLossScaler,
        zero.ZeroStageEnum,
        fragments.fragment_address,
    ]


# ---- folders


def is_deepspeed_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a local folder that DeepSpeed saved.

    Args:
        path: The path.
    """
    folder = Path(path)
    return folder.is_dir() and next(folder.glob("*/*_model_states.pt"), None) is not None


def ds_checkpoint_dir(checkpoint_dir: str | os.PathLike[str], tag: str | None = None) -> str:
    """Return the subfolder that holds the files of a checkpoint.

    Args:
        checkpoint_dir: The checkpoint's folder.
        tag: Which; that in the file `latest` by default.

    Raises:
        ValueError: There is no file `latest`.
        FileNotFoundError: There is no such subfolder.
    """
    folder = Path(checkpoint_dir)
    if tag is None:
        latest = folder / "latest"
        if not latest.is_file():
            raise ValueError(
                f"`{folder}` has no file `latest`, so it is unknown which checkpoint in it is meant. Pass its `tag`,"
                " the name of a subfolder."
            )
        tag = latest.read_text().strip()
    if not (folder / tag).is_dir():
        raise FileNotFoundError(f"Directory `{folder / tag}` doesn't exist: there is no checkpoint of that tag.")
    return os.fspath(folder / tag)


class DeepSpeedFolder:
    """What DeepSpeed saved in a folder.

    Args:
        folder: The folder.
        tag: Which of the checkpoints in it; the latest by default.
        trust: Also make objects that are no plain data, which runs code of the files.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, folder: str | os.PathLike[str], *, tag: str | None = None, trust: bool = False) -> None:
        if tag is None and not (Path(folder) / "latest").is_file() and (Path(folder) / CHECKPOINT_TAG).is_dir():
            tag = CHECKPOINT_TAG
        self.folder = Path(folder)
        self.files = Path(ds_checkpoint_dir(folder, tag))
        self.tag = self.files.name
        self.trust = trust
        self._states: dict[str, Any] | None = None

    @property
    def states(self) -> dict[str, Any]:
        """The file of the first rank; its tensors stay on the disk until they are read."""
        if self._states is None:
            found = sorted(self.files.glob("*mp_rank_00_model_states.pt"))
            if not found:
                raise ValueError(
                    f"`{self.files}` has no file `*mp_rank_00_model_states.pt`, as DeepSpeed saves them. Check whether"
                    " the folder was copied whole."
                )
            check_installed("reading a checkpoint of DeepSpeed")
            load_package()
            with reading(trust=self.trust):
                self._states = torch.load(found[0], map_location="cpu", mmap=True, weights_only=not self.trust)
        return self._states

    @property
    def client_state(self) -> dict[str, Any]:
        """What the program added."""
        return {name: value for name, value in self.states.items() if name not in _OWN_KEYS}

    @property
    def world_size(self) -> int:
        """Number of processes that saved it."""
        return int(self.states["dp_world_size"])

    @property
    def stage(self) -> int:
        """The stage of ZeRO."""
        zero = self.states["ds_config"].get("zero_optimization") or {}
        return int(zero.get("stage", 0)) if isinstance(zero, dict) else int(zero)

    def read_weights(self) -> dict[str, Tensor]:
        """Read the weights whole, those that were trained in 32 bit, in the memory of this process."""
        if self.stage == 0:
            return {name: value.float() if value.is_floating_point() else value.clone()
                    for name, value in self.states["module"].items()}  # fmt: skip
        for_ = "reading a checkpoint of DeepSpeed"
        converter = require("deepspeed.utils.zero_to_fp32", extra=_EXTRA, for_=for_)
        _ = self.states  # loads the package with care
        with reading(trust=self.trust), _quiet():
            weights: dict[str, Tensor] = converter.get_fp32_state_dict_from_zero_checkpoint(
                os.fspath(self.folder), tag=self.tag
            )
        return dict(weights)

    def read_whole(self) -> dict[str, Any]:
        """Return what the program added, with the weights as `"state_dict"`, as a file has it."""
        return {**self.client_state, "state_dict": self.read_weights()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines and bars that DeepSpeed's script shows to its user."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: _PATH, output_file: _PATH, tag: str | None = None
) -> dict[str, Any]:
    """Write one file with the weights of a folder that DeepSpeed saved, in 32 bit; it loads without DeepSpeed.

    Args:
        checkpoint_dir: The folder.
        output_file: The file.
        tag: Which of the checkpoints in the folder; the latest by default.

    Returns:
        What was written: the weights under `"state_dict"`, and the rest of the checkpoint.

    Example::

        convert_zero_checkpoint_to_fp32_state_dict("checkpoints/epoch=0.ckpt", "weights.ckpt")
        model = MyModule.load_from_checkpoint("weights.ckpt")
    """
    checkpoint = DeepSpeedFolder(checkpoint_dir, tag=tag).read_whole()
    atomic_save(checkpoint, output_file)
    return checkpoint
