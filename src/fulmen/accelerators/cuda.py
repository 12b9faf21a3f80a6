"""NVIDIA GPUs (and AMD's under ROCm, which torch calls by the same name)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.devices import parse_gpu_devices
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.rank_zero import rank_zero_info

__all__ = [
    "CUDAAccelerator",
    "find_usable_cuda_devices",
    "get_nvidia_gpu_stats",
    "is_cuda_available",
    "num_cuda_devices",
]

_NVIDIA_SMI_UNITS = {
    "utilization.gpu": "%",
    "memory.used": "MB",
    "memory.free": "MB",
    "utilization.memory": "%",
    "fan.speed": "%",
    "temperature.gpu": "\N{DEGREE SIGN}C",
    "temperature.memory": "\N{DEGREE SIGN}C",
}


class CUDAAccelerator(Accelerator):
    """Compute on NVIDIA GPUs."""

    def setup_device(self, device: torch.device) -> None:
        """Make the GPU the current one of this process.

        Args:
            device: The GPU; without an index it is the current one already.

        Raises:
            MisconfigurationException: The device is not a CUDA device.
        """
        if device.type != "cuda":
            raise MisconfigurationException(
                f"`CUDAAccelerator` was given the device `{device}`, on which it cannot compute."
                " Pass `accelerator='auto'`, or a strategy whose device is a CUDA device."
            )
        if device.index is not None:
            torch.cuda.set_device(device)
        _advise_on_tensor_cores(device)

    def setup(self, trainer: Any) -> None:
        """Log which GPUs are visible and free cached memory.

        Args:
            trainer: The running Trainer.
        """
        self.set_nvidia_flags(trainer.local_rank)
        torch.cuda.empty_cache()

    @staticmethod
    def set_nvidia_flags(local_rank: int) -> None:
        """Number GPUs as `nvidia-smi` does unless the user chose otherwise, and log what is visible.

        Args:
            local_rank: Number of this process on its machine.
        """
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        visible = os.getenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_cuda_devices()))))
        rank_zero_info(f"LOCAL_RANK: {local_rank} - CUDA_VISIBLE_DEVICES: [{visible}]")

    def teardown(self) -> None:
        """Give cached memory back to the driver."""
        torch.cuda.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return the figures of torch's memory allocator.

        Args:
            device: The GPU.

        Returns:
            The entries of `torch.cuda.memory_stats`; sizes in bytes.
        """
        return torch.cuda.memory_stats(device)

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """Return the indices of the chosen GPUs; see `parse_gpu_devices`."""
        return parse_gpu_devices(devices, range(num_cuda_devices()), kind="CUDA")

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """Return one device per index."""
        return [torch.device("cuda", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return the number of visible GPUs."""
        return num_cuda_devices()

    @staticmethod
    def is_available() -> bool:
        """Tell whether there is a GPU."""
        return is_cuda_available()

    @staticmethod
    def name() -> str:
        """Return "cuda"."""
        return "cuda"


def num_cuda_devices() -> int:
    """Return the number of visible GPUs, without starting CUDA in this process (it could not be forked then)."""
    return torch.cuda.device_count()


def is_cuda_available() -> bool:
    """Tell whether a GPU is visible, without starting CUDA in this process."""
    return num_cuda_devices() > 0


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Find GPUs on which memory can be allocated, i.e. that no other process holds exclusively.

    Args:
        num_devices: How many; -1 for all that are free.

    Returns:
        Their indices, lowest first.

    Raises:
        ValueError: More are asked for than this machine has.
        RuntimeError: Too few of them are free.

    Example::

        Trainer(accelerator="cuda", devices=find_usable_cuda_devices(1))
    """
    if num_devices == 0:
        return []
    visible = num_cuda_devices()
    if visible == 0 or num_devices > visible:
        raise ValueError(
            f"`find_usable_cuda_devices({num_devices})` asks for more GPUs than the {visible} that are visible."
            " Ask for fewer, or check `CUDA_VISIBLE_DEVICES`."
        )
    usable: list[int] = []
    for index in range(visible):
        if len(usable) == num_devices:
            break
        if _can_allocate(index):
            usable.append(index)
    if len(usable) < num_devices:
        raise RuntimeError(
            f"`find_usable_cuda_devices({num_devices})` found only {usable} of {visible} GPUs to be free; other"
            " processes hold the rest. Ask for fewer, or wait."
        )
    return usable


def get_nvidia_gpu_stats(device: torch.device | str | int) -> dict[str, float]:
    """Ask `nvidia-smi` how busy, full and hot a GPU is; the figures cover all processes that use it.

    Args:
        device: The GPU, numbered as in this process; without an index the current one.

    Returns:
        `utilization.gpu (%)`, `memory.used (MB)`, `memory.free (MB)`, `utilization.memory (%)`, `fan.speed (%)`, and
        `temperature.gpu` and `temperature.memory` in degrees Celsius; 0 for what the GPU does not measure.

    Raises:
        FileNotFoundError: There is no program `nvidia-smi`.
        RuntimeError: It fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError(
            f"`get_nvidia_gpu_stats({device!r})` reads the GPU's figures by the program `nvidia-smi`, which is not on"
            " the search path. Install the tools of the NVIDIA driver; what torch itself knows of the memory gives"
            " `torch.cuda.memory_stats()`."
        )
    result = subprocess.run(
        [
            program,
            f"--query-gpu={','.join(_NVIDIA_SMI_UNITS)}",
            "--format=csv,nounits,noheader",
            f"--id={_driver_id(device)}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(
            f"`nvidia-smi` cannot report on {device!r}: {(result.stderr or result.stdout).strip()!r}."
            " Check that the device exists: `nvidia-smi --list-gpus`."
        )
    values = map(_number_or_zero, result.stdout.strip().split(","))
    return {f"{name} ({unit})": value for (name, unit), value in zip(_NVIDIA_SMI_UNITS.items(), values, strict=True)}


def _driver_id(device: torch.device | str | int) -> str:
    """Name of a GPU outside of this process, where `CUDA_VISIBLE_DEVICES` may hide and reorder them."""
    index = device if isinstance(device, int) else torch.device(device).index
    if index is None:
        index = torch.cuda.current_device()
    visible = [name.strip() for name in os.getenv("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[index] if index < len(visible) else str(index)


def _number_or_zero(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]": there is no fan, no sensor
        return 0.0


def _can_allocate(index: int) -> bool:
    try:
        torch.zeros(1, device=torch.device("cuda", index))
    except RuntimeError:
        return False
    return True


def _advise_on_tensor_cores(device: torch.device) -> None:
    """Tensor cores are used for float32 products only if the user accepts their lower precision."""
    if torch.get_float32_matmul_precision() != "highest" or torch.cuda.get_device_capability(device) < (8, 0):
        return
    rank_zero_info(
        f"{torch.cuda.get_device_name(device)!r} has Tensor Cores, which float32 matrix products do not use at their"
        " present precision, 'highest'. To trade precision for speed call"
        " `torch.set_float32_matmul_precision('high')` (or 'medium')."
    )
