"""Environment variables as launchers set them, for tests that look at one process of many."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

__all__ = ["LAUNCHERS", "set_environment", "slurm", "torchrun"]

_PREFIXES = ("SLURM_", "TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "MV2_", "LSB_", "JSM_", "PL_", "LT_")
_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "ENVIRONMENT"),
)


def torchrun(rank: int = 1, per_node: int = 2, nodes: int = 1) -> dict[str, str]:
    """A process started by torchrun."""
    return {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % per_node),
        "GROUP_RANK": str(rank // per_node),
        "GROUP_WORLD_SIZE": str(nodes),
        "WORLD_SIZE": str(per_node * nodes),
        "LOCAL_WORLD_SIZE": str(per_node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def slurm(rank: int = 1, per_node: int = 2, nodes: int = 1, name: str = "train") -> dict[str, str]:
    """A task started by `srun`."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": name,
        "SLURM_NTASKS": str(per_node * nodes),
        "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
        "SLURM_STEP_ID": "0",
    }


LAUNCHERS = {"torchrun": torchrun, "srun": slurm}


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Let the environment have these variables of launchers and no others."""
    for name in present:
        if name in _NAMES or name.startswith(_PREFIXES):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
