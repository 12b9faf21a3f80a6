"""What `convert_to_tensors` makes of numbers and arrays, as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["CONVERSION_DTYPES"]

# bool before int, of which it is a kind
CONVERSION_DTYPES: list[tuple[type, Callable[[Any], torch.Tensor]]] = [
    (bool, partial(torch.tensor, dtype=torch.uint8)),
    (int, partial(torch.tensor, dtype=torch.int32)),
    (float, partial(torch.tensor, dtype=torch.float32)),
]
if "numpy" in sys.modules:  # torch has imported it if it is installed
    CONVERSION_DTYPES.append((sys.modules["numpy"].ndarray, torch.from_numpy))
