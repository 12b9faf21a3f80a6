"""Which GPUs an argument selects, as a function."""

from __future__ import annotations

from collections.abc import Sequence

from fulmen.accelerators.cuda import CUDAAccelerator
from fulmen.accelerators.mps import MPSAccelerator

__all__ = ["first_gpu", "parse_gpu_ids"]


def parse_gpu_ids(
    gpus: int | str | Sequence[int] | None, include_cuda: bool = False, include_mps: bool = False
) -> list[int] | None:
    """Return the indices of the GPUs that an argument selects.

    Args:
        gpus: How many, or which; as `devices=`.
        include_cuda: Select from the CUDA devices.
        include_mps: Select from the Apple GPU.

    Returns:
        The indices; `None` for 0, "0" and empty lists.

    Raises:
        TypeError: The argument is of another type.
        ValueError: Neither kind is included.
        MisconfigurationException: The devices do not exist.
    """
    if gpus in (0, "0", [], ()):
        return None
    if gpus is None:
        raise TypeError("`gpus=None` selects no devices. Pass how many or which: an int, a list of ints or a string.")
    if not (include_cuda or include_mps):
        raise ValueError(
            f"`gpus={gpus!r}` selects from nothing: no kind of GPU is included. Pass `include_cuda=True` or"
            " `include_mps=True`."
        )
    parse = CUDAAccelerator.parse_devices if include_cuda else MPSAccelerator.parse_devices
    return parse(gpus)


def first_gpu(gpus: list[int] | None) -> int | None:
    """Return the first index of a selection; `None` if there is none.

    Args:
        gpus: The indices.
    """
    return None if not gpus else gpus[0]
