"""The package DeepSpeed: how it is loaded, and what is in the folders that it saves.

A folder holds `latest`, the name of a subfolder, the tag, and there `*_model_states.pt` (weights, and what a program
added) and `*_optim_states.pt` (each rank's part of the optimizer state and of the weights in 32 bit).
"""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import atomic_save, is_sharded_folder, local_path, verify_file
from fulmen.utilities.lazy import is_installed, require
from fulmen.utilities.plain_data import explain_refusal
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
    "installed_version",
    "is_deepspeed_folder",
    "load_package",
    "reading",
]

CPU_DEVICE = torch.device("cpu")
CHECKPOINT_TAG = "checkpoint"
"""The tag that Lightning and fulmen save under."""

_BYTES_OF_32_BIT = 4
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


def installed_version() -> str:
    """Return the version of DeepSpeed; `"0"` if it is not installed."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return "0"


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
    """Tell whether a path is a local folder that DeepSpeed saved, whole or not.

    Args:
        path: The path.
    """
    folder = Path(local_path(path))
    if not folder.is_dir() or is_sharded_folder(folder):
        return False
    patterns = ("latest", "*/*_model_states.pt", "*/*_optim_states.pt")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


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
        trust: Also make objects that are no plain data, which runs code of the file.

    Raises:
        ValueError: There is none.
        FileNotFoundError: There is none of that tag.
    """

    def __init__(self, folder: str | os.PathLike[str], *, tag: str | None = None, trust: bool = False) -> None:
        self.folder = Path(local_path(folder))
        if tag is None and not (self.folder / "latest").is_file() and (self.folder / CHECKPOINT_TAG).is_dir():
            tag = CHECKPOINT_TAG
        self.files = Path(ds_checkpoint_dir(self.folder, tag))
        self.tag = self.files.name
        self.trust = trust
        self._states: dict[str, Any] | None = None

    @property
    def states(self) -> dict[str, Any]:
        """The file of the first rank; its tensors stay on the disk until they are read.

        Raises:
            DamagedFileError: It is missing, or not whole.
            ModuleNotFoundError: DeepSpeed is not installed.
            UnpicklingError: It holds more than tensors and plain data.
        """
        if self._states is None:
            found = sorted(self.files.glob("*mp_rank_00_model_states.pt"))
            if not found:
                raise self._damaged(f"it has no file `{self.files.name}/*mp_rank_00_model_states.pt`")
            check_installed("reading a checkpoint of DeepSpeed")
            load_package()
            verify_file(found[0])
            try:
                with reading(trust=self.trust):
                    self._states = torch.load(found[0], map_location="cpu", mmap=True, weights_only=not self.trust)
            except pickle.UnpicklingError as error:
                raise explain_refusal(error, found[0]) from error
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

    @property
    def conditions(self) -> str:
        """With what a run goes on from it, as a phrase: DeepSpeed does not divide optimizer states anew."""
        return f"with DeepSpeed, on {self.world_size} process(es) at stage {self.stage} of ZeRO"

    def check_files(self, *, rank: int | None = None) -> None:
        """Check that each process' files are there, and compare them with their checksums.

        Args:
            rank: Compare only those of this process; all by default.

        Raises:
            DamagedFileError: One is missing, truncated or changed.
        """
        missing: list[str] = []
        for each in range(self.world_size):
            for kind in self._kinds_of_files():
                name = f"zero_pp_rank_{each}_mp_rank_00_{kind}_states.pt"
                found = next(self.files.glob(f"*{name}"), None)  # in bfloat16 with a prefix
                if found is None:
                    missing.append(f"`{self.files.name}/{name}`")
                elif rank in (None, each):
                    verify_file(found)
        if missing:
            raise self._damaged(f"of the files of its {self.world_size} process(es), {', '.join(missing)} is missing")

    def _kinds_of_files(self) -> tuple[str, ...]:
        """What each process wrote; the file that all share is in `states`."""
        if self.stage == 3:
            return "model", "optim"
        return ("optim",) if self.stage or next(self.files.glob("*_optim_states.pt"), None) else ()

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(
            f"The checkpoint of DeepSpeed `{self.folder}` is damaged: {reason}. Use another checkpoint, or copy the"
            " folder again from its source, with the files of all machines."
        )

    def read_weights(self) -> dict[str, Tensor]:
        """Read the weights whole, in 32 bit, in the memory of this process; frozen ones, too.

        Raises:
            DamagedFileError: A file is missing, truncated or changed.
            ValueError: DeepSpeed cannot put them together.
        """
        self.check_files()
        weights = self.states["module"] if self.stage == 0 else self._put_together()
        return {name: _in_32_bit(value) for name, value in weights.items()}

    def _put_together(self) -> dict[str, Tensor]:
        for_ = "reading a checkpoint of DeepSpeed"
        converter = require("deepspeed.utils.zero_to_fp32", extra=_EXTRA, for_=for_)
        try:
            with reading(trust=self.trust), _quiet():
                return dict(converter.get_fp32_state_dict_from_zero_checkpoint(os.fspath(self.folder), tag=self.tag))
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"DeepSpeed cannot put the weights of `{self.folder}` together: {error} Resume"
                f" {self.conditions}, and save the weights alone: `trainer.save_checkpoint(path, weights_only=True)`."
            ) from error
        except pickle.UnpicklingError as error:
            raise explain_refusal(error, self.files) from error

    def read_whole(self) -> dict[str, Any]:
        """Return what the program added, with the weights as `"state_dict"`, as a file has it."""
        return {**self.client_state, "state_dict": self.read_weights()}


def _in_32_bit(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.is_floating_point() and value.element_size() < _BYTES_OF_32_BIT
    return value.float() if is_narrow else value


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
