"""Facts about this installation and machine, and what is wrong with them: for `fulmen doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulmen.cli.text import count_text, size_text

__all__ = ["NOTE", "PROBLEM", "Finding", "devices", "findings", "packages", "versions"]

NOTE, PROBLEM = "note", "problem"
_AGGREGATES = ("all", "dev", "docs", "demo", "trackers")  # extras that name others, or are for developers
_LITTLE_SHARED_MEMORY = 512 * 10**6  # containers get 64 MB unless told otherwise
_FEW_FILES = 1024
_LITTLE_DISK = 10**9
_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = "/dev/shm"
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "LSB_JOBID", "FULMEN_PARENT")
_SETTINGS = ("PL_TRAINER_", "PL_GLOBAL_SEED", "LT_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_", "GLOO_")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that stops programs (`PROBLEM`), or that one should know (`NOTE`)."""

    level: str
    what: str
    remedy: str


# ---- facts


def versions() -> dict[str, str]:
    """Return the versions of what a run stands on."""
    import torch

    import fulmen

    found = {
        "fulmen": f"{fulmen.__version__} in {Path(fulmen.__file__).parent}",
        "torch": torch.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    settings = [name for name in sorted(os.environ) if name.startswith(_SETTINGS)]
    if settings:
        found["variables"] = ", ".join(f"{name}={os.environ[name]}" for name in settings)
    return found


def devices() -> dict[str, str]:
    """Return what there is to compute on, by accelerator; the one that `accelerator="auto"` takes comes first."""
    import torch

    from fulmen.accelerators.registry import ACCELERATOR_REGISTRY

    found: dict[str, str] = {}
    for name in sorted(ACCELERATOR_REGISTRY, key="cpu".__eq__):  # the CPU last: any other goes before it
        if name == "cpu":
            found[name] = _cpu()
        elif ACCELERATOR_REGISTRY.is_available(name):
            count = ACCELERATOR_REGISTRY.get(name).auto_device_count()
            kind = f": {torch.cuda.get_device_name()}" if name == "cuda" else ""
            found[name] = f"{count_text(count, 'device')}{kind}"
    return found


def packages() -> list[dict[str, Any]]:
    """Return the optional packages: name, what is installed, what is asked for, by which extras."""
    from packaging.requirements import Requirement

    found: dict[str, dict[str, Any]] = {}
    for text in importlib.metadata.requires("fulmen") or []:
        requirement = Requirement(text)
        extra = str(requirement.marker).rpartition("extra ==")[2].strip(" \"'") if requirement.marker else ""
        if not extra or extra in _AGGREGATES or requirement.name == "fulmen":
            continue
        entry = found.setdefault(requirement.name, {"package": requirement.name, "extras": []})
        entry["extras"].append(extra)
        entry["asked"] = str(requirement.specifier)
        entry["installed"] = _installed(requirement.name)
        fits = entry["installed"] is None or requirement.specifier.contains(entry["installed"], prereleases=True)
        entry["fits"] = entry.get("fits", True) and fits
    return sorted(found.values(), key=lambda entry: (entry["installed"] is None, entry["package"].lower()))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    cores, limit, memory = _cores(), _cpu_limit(), _memory_limit()
    text = count_text(cores, "core")
    text += "" if limit is None or limit >= cores else f", of which the container may use {limit:g}"
    return text + ("" if memory is None else f", {size_text(memory)} of memory")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_limit() -> float | None:
    """Cores that the container may use, by Linux's control groups."""
    quota, _, period = _first_line(_CGROUP / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_limit() -> int | None:
    limits = []
    text = _first_line(_CGROUP / "memory.max")
    if text.isdecimal():
        limits.append(int(text))
    names: Any = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""


# ---- what is wrong


def findings() -> list[Finding]:
    """Return what is wrong, or should be known, the worst first."""
    found = [finding for check in _CHECKS for finding in check()]
    return sorted(found, key=lambda finding: finding.level != PROBLEM)


def _torch_build() -> Iterator[Finding]:
    import torch

    has_driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if has_driver and torch.version.cuda is None:
        yield Finding(
            PROBLEM,
            f"torch {torch.__version__} is a build for CPUs, and this machine has an NVIDIA driver",
            "Install a CUDA build of torch: https://pytorch.org/get-started/locally",
        )
    elif has_driver and not torch.cuda.is_available():
        yield Finding(
            PROBLEM,
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU, though there is an NVIDIA driver",
            "Look at `nvidia-smi`: the driver must be as new as torch's CUDA. CUDA_VISIBLE_DEVICES may hide GPUs.",
        )
    elif torch.cuda.is_available():
        yield from _unsupported_gpus()
    if not torch.distributed.is_available():
        yield Finding(
            PROBLEM,
            "this build of torch has no torch.distributed, so there is no training on several devices",
            "Install a build from pytorch.org.",
        )


def _unsupported_gpus() -> Iterator[Finding]:
    import torch

    built_for = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if built_for and not any(each.startswith((f"sm_{major}", f"compute_{major}")) for each in built_for):
            yield Finding(
                PROBLEM,
                f"GPU {index} ({torch.cuda.get_device_name(index)}, sm_{major}{minor}) is not among those that torch is"
                f" built for ({', '.join(built_for)})",
                "Install a build of torch for it.",
            )


def _numpy() -> Iterator[Finding]:
    if _installed("numpy") is None:
        return
    import torch

    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield Finding(
            PROBLEM,
            f"torch {torch.__version__} cannot use numpy {_installed('numpy')}: {str(error).splitlines()[0]}",
            "Install versions that fit: torch of before 2.3 needs 'numpy<2'.",
        )


def _shared_memory() -> Iterator[Finding]:
    import torch

    if os.path.isdir(_SHARED_MEMORY):
        size = shutil.disk_usage(_SHARED_MEMORY)
        if size.total < _LITTLE_SHARED_MEMORY or size.free < size.total // 10:
            yield Finding(
                NOTE,
                f"shared memory ({_SHARED_MEMORY}) has {size_text(size.total)}, {size_text(size.free)} free: data"
                " loader workers pass batches through it, and die when it is full",
                "Give the container more: `docker run --shm-size=8g` (or `--ipc=host`); or use fewer `num_workers`.",
            )
    try:
        torch.zeros(1000).share_memory_()  # type: ignore[no-untyped-call]  # in torch
    except (RuntimeError, OSError) as error:
        yield Finding(
            PROBLEM,
            f"no tensor can be put into shared memory: {str(error).splitlines()[0]}",
            f"Make {_SHARED_MEMORY} writable and large enough; without it use `num_workers=0`.",
        )


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > _FEW_FILES:
        return
    highest = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding(
        PROBLEM if soft < _FEW_FILES // 4 else NOTE,
        f"a process may open {soft} files: with many data loader workers that ends in 'Too many open files'",
        f"Raise it before training: `ulimit -n {highest if soft < hard or hard < 0 else 65536}`.",
    )


def _host_name() -> Iterator[Finding]:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        yield Finding(
            NOTE,
            f"the name of this machine, {name!r}, has no address: processes of a run may not find each other",
            "Add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to a network interface.",
        )


def _disk() -> Iterator[Finding]:
    for what, folder in (("this folder", os.getcwd()), ("the folder for temporary files", tempfile.gettempdir())):
        if not os.access(folder, os.W_OK):
            yield Finding(
                NOTE, f"{what}, {folder}, cannot be written to", "Set `Trainer(default_root_dir=...)`, or TMPDIR."
            )
        elif shutil.disk_usage(folder).free < _LITTLE_DISK:
            free = size_text(shutil.disk_usage(folder).free)
            yield Finding(NOTE, f"{what}, {folder}, has {free} left", "Free some space before you save checkpoints.")


def _threads() -> Iterator[Finding]:
    import torch

    limit = _cpu_limit()
    if limit is not None and torch.get_num_threads() > max(1.0, limit) * 1.5 and "OMP_NUM_THREADS" not in os.environ:
        yield Finding(
            NOTE,
            f"torch computes with {torch.get_num_threads()} threads, and the container may use {limit:g} cores",
            f"Set OMP_NUM_THREADS={max(1, int(limit))}: too many threads wait for each other.",
        )


def _leftovers() -> Iterator[Finding]:
    found = [name for name in _LAUNCHED if name in os.environ]
    if found and not any(name in os.environ for name in _LAUNCHERS):
        yield Finding(
            NOTE,
            f"the variables {', '.join(found)} are set, as in a process of a run: programs started here take part in"
            " it, and wait for others",
            f"If no launcher set them: unset {' '.join(found)}",
        )


def _old_packages() -> Iterator[Finding]:
    for entry in packages():
        if not entry["fits"]:
            extra = entry["extras"][0]
            yield Finding(
                NOTE,
                f"{entry['package']} {entry['installed']} is here, and `fulmen[{extra}]` asks for {entry['asked']}",
                f"pip install 'fulmen[{extra}]'",
            )


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_torch_build, _numpy, _shared_memory, _open_files, _host_name, _disk, _threads, _leftovers, _old_packages),
)
