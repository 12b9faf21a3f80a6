"""Whether weights are finite, at the cost of one pass over them and one wait for each device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["first_non_finite"]


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity.

    Args:
        named: Names and tensors, e.g. `module.named_parameters()`. Integers, tensors without content and those that are
            not made yet (lazy or on the meta device) count as finite. Of a sharded tensor this process's part is read.

    Returns:
        The name; `None` if all is finite.

    Example::

        assert first_non_finite(torch.nn.Linear(2, 2).named_parameters()) is None
    """
    names, extremes = [], []
    with torch.no_grad():
        for name, tensor in named:
            if torch.nn.parameter.is_lazy(tensor):
                continue
            values: Tensor = getattr(tensor, "_local_tensor", tensor)
            if values.is_meta or not values.numel() or not (values.is_floating_point() or values.is_complex()):
                continue
            names.append(name)
            extremes.append(_extremes(values.detach()))
        by_device: dict[torch.device, list[int]] = {}
        for number, pair in enumerate(extremes):
            by_device.setdefault(pair.device, []).append(number)
        bad: list[int] = []
        for numbers in by_device.values():
            finite = torch.stack([extremes[number] for number in numbers]).isfinite().all(dim=1)
            bad += [number for number, good in zip(numbers, finite.tolist(), strict=True) if not good]  # sync: a save
    return names[min(bad)] if bad else None


def _extremes(values: Tensor) -> Tensor:
    """Return the least and greatest value, which are not finite if any value is not; a sum could overflow."""
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.element_size() < 2:
        values = values.float()  # no arithmetic with 8 bits
    return torch.stack(torch.aminmax(values)).to(torch.float64 if values.dtype == torch.float64 else torch.float32)
