"""Which hardware, processes, number format and strategy a run gets: tables, read from the top, that can be printed.

The tables are asked in the order in which they stand here; a rule may look at everything that was decided before.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from fulmen.accelerators.accelerator import Accelerator
from fulmen.accelerators.cuda import CUDAAccelerator
from fulmen.accelerators.mps import MPSAccelerator
from fulmen.accelerators.registry import ACCELERATOR_REGISTRY
from fulmen.engine.devices import all_devices, as_many_as_started, devices_asked_for, one_device
from fulmen.engine.request import Request, Rule
from fulmen.plugins.environments.local import LightningEnvironment
from fulmen.plugins.environments.lsf import LSFEnvironment
from fulmen.plugins.environments.mpi import MPIEnvironment
from fulmen.plugins.environments.ray import RayEnvironment
from fulmen.plugins.environments.slurm import SLURMEnvironment
from fulmen.plugins.environments.torchelastic import TorchElasticEnvironment
from fulmen.plugins.environments.xla import XLAEnvironment
from fulmen.plugins.precision.amp import MixedPrecision
from fulmen.plugins.precision.deepspeed import DeepSpeedPrecision
from fulmen.plugins.precision.double import DoublePrecision
from fulmen.plugins.precision.float8 import Float8Precision
from fulmen.plugins.precision.fsdp import FSDPPrecision
from fulmen.plugins.precision.half import HalfPrecision
from fulmen.plugins.precision.precision import Precision
from fulmen.plugins.precision.transformer_engine import TransformerEnginePrecision
from fulmen.plugins.precision.xla import XLAPrecision
from fulmen.strategies.deepspeed import DeepSpeedStrategy
from fulmen.strategies.registry import STRATEGY_REGISTRY
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.strategies.strategy import Strategy

__all__ = ["RULES"]

_FSDP_PRECISIONS = (None, "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
_TRANSFORMER_ENGINE = {"transformer-engine": torch.bfloat16, "transformer-engine-float16": torch.float16}


def _is(**settings: Any) -> Callable[[Request], bool]:
    """A test for one setting: equal to a value, or one of several in a tuple."""
    ((name, expected),) = settings.items()
    values = expected if isinstance(expected, tuple) else (expected,)

    def applies(request: Request) -> bool:
        return any(getattr(request, name) is value or getattr(request, name) == value for value in values)

    return applies


def _named(request: Request, name: str) -> bool:
    return isinstance(request.strategy, str) and request.strategy.lower() == name


def _by_fsdp(request: Request) -> bool:
    defining = sys.modules.get("fulmen.strategies.fsdp")  # not loaded: there is no object of it
    if defining is not None and isinstance(request.strategy, defining.FSDPStrategy):
        return True
    return _named(request, "fsdp") or _named(request, "fsdp_cpu_offload")


def _tpu_is_there(request: Request) -> bool:
    return "tpu" in ACCELERATOR_REGISTRY and ACCELERATOR_REGISTRY.is_available("tpu")


def _runs_deepspeed(request: Request) -> bool:
    if request.strategy_name is None or request.strategy_name not in STRATEGY_REGISTRY:
        return isinstance(request.strategy, DeepSpeedStrategy)
    factory = STRATEGY_REGISTRY.entry(str(request.strategy_name)).factory
    return isinstance(factory, type) and issubclass(factory, DeepSpeedStrategy)


def _strategy(name: str) -> Callable[[Request], Strategy]:
    return functools.partial(_make_strategy, name)


def _make_strategy(name: str, request: Request) -> Strategy:
    entry = STRATEGY_REGISTRY.entry(name)
    params = dict(entry.init_params)
    if isinstance(entry.factory, type) and issubclass(entry.factory, SingleDeviceStrategy):
        params.setdefault("device", request.device)
    if request.face == "fabric" and name in ("fsdp", "fsdp_cpu_offload"):  # programs that use it expect a folder
        params.setdefault("state_dict_type", "sharded")
    return entry.factory(**params)


_ACCELERATOR = (
    Rule(
        when="the strategy is an object that carries an accelerator",
        applies=lambda request: request.brings("accelerator"),
        then="that one",
        make=lambda request: request.given.accelerator,
        why="it was chosen with the strategy",
    ),
    Rule(
        when="`accelerator` is an object",
        applies=lambda request: isinstance(request.accelerator, Accelerator),
        then="that one",
        make=lambda request: request.accelerator,
        why="you passed it",
    ),
    Rule(
        when="`accelerator='auto'` and the strategy is an object with devices",
        applies=lambda request: request.accelerator == "auto" and request.brings_devices,
        then="the accelerator of its devices",
        make=lambda request: ACCELERATOR_REGISTRY.for_device(request.given.parallel_devices[0]),
        why="the devices were chosen with the strategy",
    ),
    Rule(
        when="`accelerator='auto'` and there is a TPU",
        applies=lambda request: request.accelerator == "auto" and _tpu_is_there(request),
        then="tpu",
        make=lambda request: ACCELERATOR_REGISTRY.get("tpu"),
        why="a TPU is attached",
    ),
    Rule(
        when="`accelerator` is 'auto' or 'gpu' and MPS is available",
        applies=lambda request: request.accelerator in ("auto", "gpu") and MPSAccelerator.is_available(),
        then="mps",
        make=lambda request: MPSAccelerator(),
        why="the GPU of this Mac",
    ),
    Rule(
        when="`accelerator` is 'auto' or 'gpu' and CUDA is available",
        applies=lambda request: request.accelerator in ("auto", "gpu") and CUDAAccelerator.is_available(),
        then="cuda",
        make=lambda request: CUDAAccelerator(),
        why="a GPU is visible",
    ),
    Rule(
        when="`accelerator='auto'`",
        applies=_is(accelerator="auto"),
        then="cpu",
        make=lambda request: ACCELERATOR_REGISTRY.get("cpu"),
        why="no other hardware is available",
    ),
    Rule(
        when="`accelerator` is a registered name",
        applies=lambda request: request.accelerator in ACCELERATOR_REGISTRY,
        then="that one",
        make=lambda request: ACCELERATOR_REGISTRY.get(str(request.accelerator)),
        why="you named it",
    ),
)

_ENVIRONMENT = (
    Rule(
        when="`plugins` has a cluster environment",
        applies=lambda request: request.cluster_environment is not None,
        then="that one",
        make=lambda request: request.cluster_environment,
        why="you passed it",
    ),
    Rule(
        when="the strategy is an object that carries a cluster environment",
        applies=lambda request: request.brings("cluster_environment"),
        then="that one",
        make=lambda request: request.given.cluster_environment,
        why="it was chosen with the strategy",
    ),
    Rule(
        when="the device is a TPU",
        applies=lambda request: request.hardware is not None and request.hardware.name() == "tpu",
        then="XLA",
        make=lambda request: XLAEnvironment(),
        why="torch_xla knows the processes of a TPU",
    ),
    Rule(
        when="the variables of torchrun are set",
        applies=lambda request: TorchElasticEnvironment.detect(),
        then="torchrun",
        make=lambda request: TorchElasticEnvironment(),
        why="torchrun started this process",
    ),
    Rule(
        when="this is a worker of Ray Train",
        applies=lambda request: RayEnvironment.detect(),
        then="Ray",
        make=lambda request: RayEnvironment(),
        why="Ray Train started this process",
    ),
    Rule(
        when="this is a task of a Slurm job, and not its interactive shell",
        applies=lambda request: SLURMEnvironment.detect(),
        then="Slurm",
        make=lambda request: SLURMEnvironment(),
        why="Slurm started this process",
    ),
    Rule(
        when="the variables of LSF's `jsrun` are set",
        applies=lambda request: LSFEnvironment.detect(),
        then="LSF",
        make=lambda request: LSFEnvironment(),
        why="LSF started this process",
    ),
    Rule(
        when="this is one of several processes of MPI",
        applies=lambda request: MPIEnvironment.detect(),
        then="MPI",
        make=lambda request: MPIEnvironment(),
        why="`mpirun` started this process",
    ),
    Rule(
        when="nothing else claims this process",
        applies=lambda request: True,
        then="local",
        make=lambda request: LightningEnvironment(),
        why="you started it, and it starts others if it needs them",
    ),
)

_NUM_NODES = (
    Rule(
        when="`num_nodes` is 1 and the processes were started on several machines",
        applies=lambda request: (
            request.num_nodes == 1
            and not request.wants_one_process
            and request.layout is not None
            and (request.layout.num_nodes or 1) > 1
        ),
        then="as many as were started",
        make=lambda request: request.layout.num_nodes,  # type: ignore[union-attr]  # tested by the rule
        why="1 is the default, and all processes must take part",
    ),
    Rule(
        when="`num_nodes` says so",
        applies=lambda request: True,
        then="that many",
        make=lambda request: request.num_nodes,
        why="1 unless you say otherwise",
    ),
)

_DEVICES = (
    Rule(
        when="the strategy is an object with devices",
        applies=lambda request: request.brings_devices,
        then="those",
        make=lambda request: list(request.given.parallel_devices),
        why="they were chosen with the strategy",
    ),
    Rule(
        when="`devices` says so",
        applies=lambda request: request.devices != "auto",
        then="that number, or those",
        make=devices_asked_for,
        why="you chose them",
    ),
    Rule(
        when="`devices='auto'` and the strategy uses one device",
        applies=lambda request: request.wants_one_process,
        then="the first",
        make=one_device,
        why="it cannot use more",
    ),
    Rule(
        when="`devices='auto'` and the processes were started already",
        applies=lambda request: request.layout is not None and request.layout.world_size is not None,
        then="one per process on this machine",
        make=as_many_as_started,
        why="each process computes on one device",
    ),
    Rule(
        when="`devices='auto'` in an interactive session",
        applies=_is(interactive=True),
        then="the first",
        make=one_device,
        why="several would need processes, which only start if asked for there",
    ),
    Rule(
        when="`devices='auto'`",
        applies=lambda request: True,
        then="all that there are; one process on the CPU",
        make=all_devices,
        why="the machine is yours",
    ),
)

_PRECISION = (
    Rule(
        when="the strategy is an object that carries a precision",
        applies=lambda request: request.brings("precision_plugin"),
        then="that one",
        make=lambda request: request.given.precision_plugin,
        why="it was chosen with the strategy",
    ),
    Rule(
        when="`plugins` has a precision",
        applies=lambda request: request.precision_plugin is not None,
        then="that one",
        make=lambda request: request.precision_plugin,
        why="you passed it",
    ),
    Rule(
        when="the device is a TPU",
        applies=lambda request: request.device.type == "xla",
        then="`precision`, as XLA computes it",
        make=lambda request: XLAPrecision(request.precision or "32-true"),
        why="XLA synchronizes gradients in its own way",
    ),
    Rule(
        when="the strategy is DeepSpeed's, `precision='16-mixed'` and the device is the CPU",
        applies=lambda request: (
            _runs_deepspeed(request) and request.precision == "16-mixed" and request.device.type == "cpu"
        ),
        then="bf16-mixed, as DeepSpeed computes it",
        make=lambda request: DeepSpeedPrecision("bf16-mixed"),
        why="CPUs compute bfloat16 faster than float16, and without scaled gradients",
    ),
    Rule(
        when="the strategy is DeepSpeed's",
        applies=_runs_deepspeed,
        then="`precision`, as DeepSpeed computes it",
        make=lambda request: DeepSpeedPrecision(request.precision or "32-true"),
        why="DeepSpeed converts weights and scales the loss itself",
    ),
    Rule(
        when="the strategy is FSDP, `precision='16-mixed'` and the device is the CPU",
        applies=lambda request: _by_fsdp(request) and request.precision == "16-mixed" and request.device.type == "cpu",
        then="bf16-mixed, as FSDP computes it",
        make=lambda request: FSDPPrecision("bf16-mixed"),
        why="CPUs compute bfloat16 faster than float16, and without scaled gradients",
    ),
    Rule(
        when="the strategy is FSDP and `precision` is None, 32 bit, or one of those with 16 bit",
        applies=lambda request: _by_fsdp(request) and request.precision in _FSDP_PRECISIONS,
        then="that one, as FSDP computes it",
        make=lambda request: FSDPPrecision(request.precision or "32-true"),
        why="weights are gathered and gradients reduced in types of their own",
    ),
    Rule(
        when="`precision` is None or '32-true'",
        applies=_is(precision=(None, "32-true")),
        then="32-true",
        make=lambda request: Precision(),
        why="torch's default",
    ),
    Rule(
        when="`precision='16-mixed'` and the device is the CPU",
        applies=lambda request: request.precision == "16-mixed" and request.device.type == "cpu",
        then="bf16-mixed",
        make=lambda request: MixedPrecision("bf16-mixed", "cpu"),
        why="CPUs compute bfloat16 faster than float16, and without scaled gradients",
    ),
    Rule(
        when="`precision` is '16-mixed' or 'bf16-mixed'",
        applies=_is(precision=("16-mixed", "bf16-mixed")),
        then="that one",
        make=lambda request: MixedPrecision(request.precision, request.device.type),
        why="you named it",
    ),
    Rule(
        when="`precision` is '16-true' or 'bf16-true'",
        applies=_is(precision=("16-true", "bf16-true")),
        then="that one",
        make=lambda request: HalfPrecision(request.precision),
        why="you named it",
    ),
    Rule(
        when="`precision='64-true'`",
        applies=_is(precision="64-true"),
        then="that one",
        make=lambda request: DoublePrecision(),
        why="you named it",
    ),
    Rule(
        when="`precision` is 'transformer-engine' or 'transformer-engine-float16'",
        applies=_is(precision=("transformer-engine", "transformer-engine-float16")),
        then="8 bit by NVIDIA's Transformer Engine, over bfloat16 or float16",
        make=lambda request: TransformerEnginePrecision(weights_dtype=_TRANSFORMER_ENGINE[request.precision]),
        why="you named it",
    ),
    Rule(
        when="`precision='fp8-mixed'`",
        applies=_is(precision="fp8-mixed"),
        then="8 bit by torchao, over bfloat16",
        make=lambda request: Float8Precision(),
        why="you named it",
    ),
)

_STRATEGY = (
    Rule(
        when="`strategy` is an object",
        applies=lambda request: isinstance(request.strategy, Strategy),
        then="that one",
        make=lambda request: request.strategy,
        why="you passed it",
    ),
    Rule(
        when="`strategy='dp'` and the device is the CPU",
        applies=lambda request: _named(request, "dp") and request.device.type == "cpu",
        then="ddp",
        make=_strategy("ddp"),
        why="threads would only wait for each other there",
    ),
    Rule(
        when="`strategy='auto'` and there are several TPU cores",
        applies=lambda request: _named(request, "auto") and request.device.type == "xla" and request.world_size > 1,
        then="xla",
        make=_strategy("xla"),
        why="TPU cores talk through torch_xla",
    ),
    Rule(
        when="`strategy='auto'` and there is one TPU core",
        applies=lambda request: _named(request, "auto") and request.device.type == "xla",
        then="single_xla",
        make=_strategy("single_xla"),
        why="one process is enough",
    ),
    Rule(
        when="`strategy='auto'` and there is one device",
        applies=lambda request: _named(request, "auto") and request.world_size == 1,
        then="single_device",
        make=_strategy("single_device"),
        why="one process is enough",
    ),
    Rule(
        when="`strategy='auto'` and there are several devices of this machine in an interactive session",
        applies=lambda request: (
            _named(request, "auto") and request.interactive and request.nodes == 1 and request.layout is None
        ),
        then="ddp_fork",
        make=_strategy("ddp_fork"),
        why="only a fork can run what was typed in",
    ),
    Rule(
        when="`strategy='auto'` and there are several devices",
        applies=lambda request: _named(request, "auto"),
        then="ddp",
        make=_strategy("ddp"),
        why="each device gets a process with a copy of the module",
    ),
    Rule(
        when="`strategy` is a registered name",
        applies=lambda request: request.strategy_name is not None,
        then="that one",
        make=lambda request: _make_strategy(str(request.strategy_name), request),
        why="you named it",
    ),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "accelerator": _ACCELERATOR,
    "environment": _ENVIRONMENT,
    "nodes": _NUM_NODES,
    "devices": _DEVICES,
    "precision": _PRECISION,
    "strategy": _STRATEGY,
}
