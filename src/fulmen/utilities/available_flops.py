"""What a chip could compute in a second at most, by its name.

The numbers are theoretical peaks, entered by hand from what the maker publishes for the whole chip. Nobody measured
them here, and boards with other clocks or power limits differ: where a share of the peak matters, compare with the data
sheet of the very board, or pass a number of your own.
"""

from __future__ import annotations

import re

import torch

from fulmen.utilities.rank_zero import rank_zero_warn

__all__ = ["get_available_flops"]

_TF32 = "tf32"  # float32 matrix products on Tensor Cores, which round their inputs
_AS_WORD = r"(?<![a-z0-9]){}(?![a-z0-9]| (?:ti|super|d|laptop)\b)"  # variants have other numbers
_COLUMNS = (torch.float64, torch.float32, _TF32, torch.bfloat16, torch.float16, torch.int8)
# In 1e12 operations a second. float64 and float32: the units for single operations, without Tensor Cores; the others:
# matrix products on Tensor Cores without sparsity, with sums in 32 bit. 0: the chip has no fast unit for the type.
_PEAKS: dict[str, tuple[float, ...]] = {
    "gb200": (40, 80, 1250, 2500, 2500, 5000),
    "b200": (37, 75, 1125, 2250, 2250, 4500),
    "h200": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h200 nvl": (30, 60, 417.5, 835.5, 835.5, 1671),
    "gh200": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h20": (1, 44, 74, 148, 148, 296),
    "h800": (1, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h100": (33.5, 66.9, 494.7, 989.4, 989.4, 1978.9),
    "h100 nvl": (30, 60, 417.5, 835.5, 835.5, 1671),
    "h100 pcie": (25.6, 51.2, 378, 756, 756, 1513),
    "a100": (9.7, 19.5, 156, 312, 312, 624),
    "a800": (9.7, 19.5, 156, 312, 312, 624),
    "a10": (0, 31.2, 62.5, 125, 125, 250),
    "a10g": (0, 35, 35, 70, 70, 140),
    "a30": (5.2, 10.3, 82, 165, 165, 330),
    "a40": (0, 37.4, 74.8, 149.7, 149.7, 299.3),
    "rtx a6000": (0, 38.7, 77.4, 154.8, 154.8, 309.7),
    "rtx 6000 ada": (0, 91.1, 182.1, 364.2, 364.2, 728.5),
    "l4": (0, 30.3, 60, 121, 121, 242),
    "l40": (0, 90.5, 90.5, 181, 181, 362),
    "l40s": (0, 91.6, 183, 362, 362, 733),
    "rtx 3080": (0, 29.8, 29.8, 59.5, 59.5, 238),
    "rtx 3090": (0, 35.6, 35.6, 71, 71, 284),
    "rtx 4080": (0, 48.7, 48.7, 97.5, 97.5, 390),
    "rtx 4090": (0, 82.6, 82.6, 165.2, 165.2, 660.6),
    "rtx 5080": (0, 56.3, 56.3, 112.6, 112.6, 450.2),
    "rtx 5090": (0, 104.8, 104.8, 209.5, 209.5, 838),
    "t4": (0, 8.1, 0, 0, 65, 130),
    "v100-pcie": (7, 14, 0, 0, 112, 0),
    "v100-sxm2": (7.8, 15.7, 0, 0, 125, 0),
    "mi300x": (81.7, 163.4, 653.7, 1307.4, 1307.4, 2614.9),
    "mi325x": (81.7, 163.4, 653.7, 1307.4, 1307.4, 2614.9),
}


def get_available_flops(device: torch.device, dtype: torch.dtype | str) -> int | None:
    """Look up how many operations a second a GPU can do at most, for `Throughput(available_flops=...)`.

    Args:
        device: The GPU.
        dtype: Type of the factors of matrix products; for `torch.float64` Tensor Cores are not counted.
            `torch.float32` means TF32 where `torch.set_float32_matmul_precision` allows it.

    Returns:
        The theoretical peak in operations a second, by what the maker publishes, not measured; `None` for a CPU, and
        with a warning for a chip or type that is not in our table, or a part of a chip (MIG).

    Example::

        Throughput(available_flops=get_available_flops(torch.device("cuda"), torch.bfloat16))
    """
    if device.type != "cuda":
        return None
    chip = torch.cuda.get_device_name(device)
    is_part = re.search(r"\bmig\b", chip.lower()) is not None
    matches = [] if is_part else [name for name in _PEAKS if re.search(_AS_WORD.format(name), chip.lower())]
    if not matches:
        rank_zero_warn(
            f"How fast {chip!r} can be is not known here, so no share of it can be given. Pass"
            " `Throughput(available_flops=...)` with the number of its data sheet."
        )
        return None
    peaks = dict(zip(_COLUMNS, _PEAKS[max(matches, key=len)], strict=True))
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    peak = peaks.get(wanted, 0)
    if wanted is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        peak = peaks[_TF32] or peak
    if not peak:
        rank_zero_warn(
            f"How fast {chip!r} can be with {wanted} is not known here: it has no unit made for it. Pass"
            " `Throughput(available_flops=...)` with a number of your own, or choose another type."
        )
        return None
    return int(peak * 1e12)
