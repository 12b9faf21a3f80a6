"""What `torch_xla` answers on a machine with TPUs, for tests on machines without."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["install"]


def install(monkeypatch: Any, *, chips: int = 4) -> list[str]:
    """Make `import torch_xla` find the stand-in; return the list in which it notes calls of `sync`."""
    calls: list[str] = []
    memory = {"bytes_used": 3 * 2**20, "bytes_limit": 10 * 2**20, "peak_bytes_used": 5 * 2**20}
    contents: dict[str, dict[str, Any]] = {
        "torch_xla": {"sync": lambda: calls.append("sync")},
        "torch_xla.core": {},
        "torch_xla.core.xla_model": {"get_memory_info": lambda device: {**memory, "device": str(device)}},
        "torch_xla.runtime": {
            "world_size": lambda: 8,
            "global_ordinal": lambda: 5,
            "local_ordinal": lambda: 1,
            "host_index": lambda: 1,
        },
        "torch_xla._internal": {},
        "torch_xla._internal.tpu": {
            "num_available_chips": lambda: chips,
            "num_available_devices": lambda: chips if chips else 1 / 0,  # the metadata server does not answer
        },
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls
