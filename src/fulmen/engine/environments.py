"""What started the processes of this job, how it laid them out, and whether that fits what the user asks for."""

from __future__ import annotations

import os
import re
import sys

import torch.distributed

from fulmen.engine.request import Layout, Request
from fulmen.plugins.environments.cluster_environment import ClusterEnvironment, ExternalEnvironment
from fulmen.plugins.environments.kubeflow import KubeflowEnvironment
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.environments.lsf import LSFEnvironment
from fulmen.plugins.environments.mpi import MPIEnvironment
from fulmen.plugins.environments.ray import RayEnvironment
from fulmen.plugins.environments.slurm import SLURMEnvironment
from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment

__all__ = ["check_layout", "is_interactive", "layout_of"]

# variables that say how many processes were started on this machine; the first one that is set counts
_PER_NODE: dict[type[ClusterEnvironment], tuple[str, ...]] = {
    TorchElasticEnvironment: ("LOCAL_WORLD_SIZE",),
    LSFEnvironment: ("JSM_NAMESPACE_LOCAL_SIZE",),
    MPIEnvironment: ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE"),
}


def is_interactive() -> bool:
    """Tell whether somebody types the program line by line: in Python's console, IPython or a notebook."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def layout_of(environment: ClusterEnvironment) -> Layout | None:
    """Return how the processes of this job are laid out.

    Args:
        environment: What started them.

    Returns:
        The layout; `None` if the framework has to start the processes.
    """
    if not environment.creates_processes_externally:
        return None
    knows_size = type(environment).world_size is not LightningEnvironment.world_size  # e.g. `RayLightningEnvironment`
    if isinstance(environment, LightningEnvironment) and not knows_size:
        return Layout()  # started by hand or by our own launcher: only ranks are known
    if isinstance(environment, LightningEnvironment):
        return _layout_of_size(environment.world_size(), _first_number(("LOCAL_WORLD_SIZE",)))
    if not isinstance(environment, ExternalEnvironment):  # of a user: it may learn the size from us, and checks itself
        return Layout()
    world_size = environment.world_size()
    if isinstance(environment, SLURMEnvironment):
        return _slurm_layout(world_size)
    if isinstance(environment, RayEnvironment):
        return _layout_of_size(world_size, environment.workers_of_machine)
    if isinstance(environment, KubeflowEnvironment):
        return Layout(world_size, per_node=1, num_nodes=world_size)
    kind = next((kind for kind in _PER_NODE if isinstance(environment, kind)), None)
    return _layout_of_size(world_size, None if kind is None else _first_number(_PER_NODE[kind]))


def _layout_of_size(world_size: int, per_node: int | None) -> Layout:
    if per_node is None:
        return Layout(world_size)
    return Layout(world_size, per_node, num_nodes=-(-world_size // per_node))


def _slurm_layout(world_size: int) -> Layout:
    """Variables of the step (one `srun`) go before those of the job, of which a step may use a part."""
    num_nodes = _first_number(("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"))
    here = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    per_node = int(here[0]) if here else _first_number(("SLURM_NTASKS_PER_NODE",))
    if per_node is None:
        per_node = -(-world_size // (num_nodes or 1))
    per_node = min(per_node, world_size)
    return Layout(world_size, per_node, num_nodes or -(-world_size // per_node))


def _first_number(variables: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdecimal()), None)


# ---- does it fit?


def check_layout(request: Request) -> None:
    """Compare devices and nodes with the processes that exist: with too few the others would be waited for forever.

    Args:
        request: With everything decided but the strategy.

    Raises:
        ValueError: They differ.
    """
    environment, layout = request.environment, request.layout
    if layout is None:
        return
    if request.wants_one_process or _trains_alone_after_all(request):
        _remark_on_copies(request)
        return
    started, devices = f"{_launcher(environment)} started", len(request.parallel_devices)
    asked = f"`devices={request.devices!r}` asks for {_count(devices, 'process')} on each machine"
    if (layout.num_nodes or request.nodes) != request.nodes:
        raise ValueError(
            f"`num_nodes={request.nodes}` does not fit: {started} processes on {_count(layout.num_nodes, 'machine')}."
            f" Pass `num_nodes={layout.num_nodes}`, or {_how_to_start(request)}."
        )
    if (layout.per_node or devices) != devices:
        raise ValueError(
            f"{asked}, but {started} {layout.per_node}. Pass `devices={layout.per_node}` (or 'auto'), or"
            f" {_how_to_start(request)}.{_alone(request)}"
        )
    if (layout.world_size or request.world_size) != request.world_size:
        raise ValueError(
            f"`devices={request.devices!r}` and `num_nodes={request.nodes}` ask for {devices} x {request.nodes} ="
            f" {_count(request.world_size, 'process')}, but {started} {layout.world_size}. Let the product of the two"
            f" be {layout.world_size}, or {_how_to_start(request)}.{_alone(request)}"
        )
    if environment.local_rank() >= devices:
        raise ValueError(
            f"{asked}, but this one is number {environment.local_rank()} of its machine, counted from 0 (says"
            f" {_launcher(environment)}). Pass more devices, or start fewer processes."
        )


def _count(number: int | None, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


def _launcher(environment: ClusterEnvironment) -> str:
    if isinstance(environment, ExternalEnvironment):
        return environment.launcher_name
    return f"`{type(environment).__name__}`"


def _how_to_start(request: Request) -> str:
    environment = request.environment
    remedy = environment.remedy if isinstance(environment, ExternalEnvironment) else "start {devices} on each machine"
    return remedy.format(devices=len(request.parallel_devices), nodes=request.nodes)


def _alone(request: Request) -> str:
    """What to do if the processes are meant to have nothing to do with each other."""
    if request.world_size > 1 or request.strategy_name != "auto":
        return ""
    return " If each process is to train a model of its own, say `strategy='single_device'`."


def _trains_alone_after_all(request: Request) -> bool:
    """After a run on all processes a program may go on with a Trainer on one device, e.g. to test."""
    is_one = request.strategy_name == "auto" and request.world_size == 1
    if not is_one:
        return False
    return isinstance(request.environment, LightningEnvironment) or (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )


def _remark_on_copies(request: Request) -> None:
    copies = request.layout.world_size if request.layout else None
    if copies and copies > 1:
        request.remarks.append(
            f"One device in a job of {copies} processes: each of them does all the work by itself, and writes to the"
            " same places unless `default_root_dir` differs."
        )
