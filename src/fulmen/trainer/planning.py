"""`Trainer.plan`: a second Trainer that rehearses a step on ranks that are not there."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import CPUOffloadPolicy

from fulmen.core.module import LightningModule
from fulmen.loggers.logger import DummyLogger
from fulmen.planning.advice import advice_for
from fulmen.planning.data import PlannedData, UsersData
from fulmen.planning.imagined import ImaginedCluster
from fulmen.planning.plan import Exchange, Memory, Plan
from fulmen.planning.rehearsal import Rehearsal, rehearse
from fulmen.planning.sizes import parse_memory
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.deepspeed import DeepSpeedStrategy
from fulmen.strategies.parallel import ParallelStrategy
from fulmen.strategies.sharded import ShardedStrategy
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.trainer.checks import check_module
from fulmen.trainer.run import configure_model
from fulmen.trainer.states import RunningStage, TrainerFn, TrainerStatus
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import is_overridden
from fulmen.utilities.seed import isolate_rng
from fulmen.utilities.tree import extract_batch_size

if TYPE_CHECKING:
    from fulmen.core.datamodule import LightningDataModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["WITHOUT_LAYER_SYNC", "plan_fit", "planned_precision", "without_news"]

WITHOUT_LAYER_SYNC = "Batch norm layers are planned without the exchange of `sync_batchnorm=True`."
# 16 bit on a CPU is bfloat16 only; the sizes are the same
_SAME_SIZE = {"16-mixed": "bf16-mixed", "16-true": "bf16-true"}
_NAMED = ("32-true", "64-true", "bf16-true", "bf16-mixed", *_SAME_SIZE)


def plan_fit(
    trainer: Trainer,
    model: LightningModule,
    batch: Any,
    *,
    datamodule: LightningDataModule | None,
    num_nodes: int | None,
    devices: int | None,
    memory: str | float | None,
) -> Plan:
    """Rehearse a step of `Trainer.fit`; see `Trainer.plan`."""
    check_module(model, "plan")
    for method in ("training_step", "configure_optimizers"):
        if not is_overridden(method, model, LightningModule):
            raise MisconfigurationException(
                f"`Trainer.plan()` traces a step of training, but `{type(model).__name__}.{method}` is not defined."
                " Define it as for `Trainer.fit`."
            )
    num_nodes = _count("num_nodes", trainer.num_nodes if num_nodes is None else num_nodes)
    devices = _count("devices", trainer.num_devices if devices is None else devices)
    device_bytes = None if memory is None else parse_memory(memory)
    notes: list[str] = []
    with without_news(), warnings.catch_warnings(), isolate_rng():
        warnings.simplefilter("ignore")
        data = UsersData(model, datamodule)
        batch = data.example(batch)
        rehearsing = _second_trainer(trainer, num_nodes=num_nodes, devices=devices, notes=notes)
        strategy = rehearsing.strategy
        planned = PlannedData(data, rehearsing, notes)
        rehearsing.sources.attach(datamodule=None, train=planned.dataloader())
        rehearsal = rehearse(rehearsing, model, batch, configure_model=configure_model, notes=notes)
    held = {role: Memory(size, rehearsal.most[role]) for role, size in rehearsal.peak.by_role.items()}
    peak = rehearsal.peak.total
    size = _batch_size(batch)
    advice: list[str] = []
    if device_bytes is not None and peak > device_bytes:
        advice = advice_for(
            held, too_much=peak - device_bytes, batch_size=size, num_ranks=num_nodes * devices,
            is_sharded=hasattr(strategy, "device_mesh"), phase=rehearsal.phase,
        )  # fmt: skip
    return Plan(
        module=type(model).__name__,
        strategy=type(strategy).__name__,
        precision=trainer.precision,
        num_nodes=num_nodes,
        devices_per_node=devices,
        mesh=rehearsal.mesh,
        data_parallel_size=strategy.data_parallel_size,
        accumulate_grad_batches=rehearsing.accumulate_grad_batches,
        batch_size=size,
        num_parameters=rehearsal.num_parameters,
        num_trainable=rehearsal.num_trainable,
        memory=held,
        peak_bytes=peak,
        peak_phase=rehearsal.phase,
        exchanges=list(_exchanges(rehearsal)),
        flops=rehearsal.ledger.flops,
        device_bytes=device_bytes,
        notes=[*_left_out(trainer, model), *notes],
        advice=advice,
    )


def planned_precision(name: str, notes: list[str]) -> str:
    """Return a number format of the same size that a CPU can have.

    Args:
        name: The number format of the run.
        notes: Takes a remark if it is another.
    """
    if name in _SAME_SIZE:
        notes.append(f"{name!r} is planned as {_SAME_SIZE[name]!r}, which takes as much memory.")
    return _SAME_SIZE.get(name, name)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MisconfigurationException(
            f"`Trainer.plan({name}={value!r})` must be an int of at least 1: the plan is for `num_nodes` machines with"
            " `devices` devices each."
        )
    return value


# ---- the Trainer that rehearses


def _second_trainer(trainer: Trainer, *, num_nodes: int, devices: int, notes: list[str]) -> Trainer:
    from fulmen.trainer.trainer import Trainer

    plugin = trainer.precision_plugin
    is_named = str(plugin.precision) in _NAMED and "precision_plugin" not in trainer.strategy.chosen_parts
    plugins: list[Any] = [ImaginedCluster(num_nodes * devices)]
    if not is_named and "precision_plugin" not in trainer.strategy.chosen_parts:
        plugins.append(copy.deepcopy(plugin))
    second = Trainer(
        accelerator="cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=_strategy_for(trainer, num_nodes * devices, notes),
        precision=planned_precision(trainer.precision, notes) if is_named else None,
        plugins=plugins,
        logger=DummyLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        limit_train_batches=trainer.limit_train_batches,
        use_distributed_sampler=trainer.use_distributed_sampler,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        default_root_dir=trainer.default_root_dir,
    )
    second.state.fn = TrainerFn.FITTING
    second.state.stage, second.state.status = RunningStage.TRAINING, TrainerStatus.RUNNING
    return second


def _strategy_for(trainer: Trainer, num_ranks: int, notes: list[str]) -> Any:
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        if num_ranks == 1:
            return "auto"
        notes.append(f"The Trainer is for one device; on {num_ranks:,} ranks it is planned with `strategy='ddp'`.")
        return "ddp"
    _refuse_unknown(strategy)
    forgotten: dict[int, Any] = {
        id(part): None for part in (strategy.lightning_module, strategy.model, strategy.launcher) if part is not None
    }
    planned = copy.deepcopy(strategy, forgotten)
    if isinstance(planned, ParallelStrategy):
        planned.parallel_devices = []  # not those of this machine
    return planned


def _refuse_unknown(strategy: Any) -> None:
    if not isinstance(strategy, (DDPStrategy, ShardedStrategy)) or isinstance(strategy, DeepSpeedStrategy):
        raise MisconfigurationException(
            f"`{type(strategy).__name__}` cannot be planned: its package sets up the module by itself, on real devices."
            " Plan with `DDPStrategy`, `FSDPStrategy` or `ModelParallelStrategy`; FSDP with `FULL_SHARD` holds about"
            " what stage 3 of DeepSpeed holds, and `SHARD_GRAD_OP` a little more than stage 2."
        )
    if isinstance(getattr(strategy, "cpu_offload", None), CPUOffloadPolicy):
        raise MisconfigurationException(
            f"`{type(strategy).__name__}(cpu_offload=...)` cannot be planned: a plan does not tell the memory of the"
            " device from that of its host. Plan without it: weights, gradients and optimizer state are what moves."
        )


def _left_out(trainer: Trainer, model: LightningModule) -> Iterator[str]:
    holders = [type(each).__name__ for each in trainer.callbacks if type(each).__name__ in _HOLDERS]
    if holders:
        yield f"Callbacks are left out, also what these hold: {', '.join(holders)}."
    if trainer.strategy.layer_sync is not None:
        yield WITHOUT_LAYER_SYNC
    if _is_compiled(model):
        yield "`torch.compile` is left out: fused operations keep fewer temporaries, and often fewer activations."
    yield "Not counted: what driver, libraries and communication take for themselves, and fragmentation."


def _is_compiled(model: LightningModule) -> bool:
    """Tell whether the module, or a part of it, goes through `torch.compile`."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled before somebody loaded it
    return dynamo is not None and any(
        isinstance(each, dynamo.OptimizedModule) or each._compiled_call_impl is not None for each in model.modules()
    )


_HOLDERS = ("WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging", "KnowledgeDistillation")


def _batch_size(batch: Any) -> int | None:
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        return None


# ---- the result


def _exchanges(rehearsal: Rehearsal) -> Iterator[Exchange]:
    ledger = rehearsal.ledger
    for kind, count in sorted(ledger.calls.items(), key=lambda item: -ledger.payload[item[0]]):
        if kind.num_ranks > 1:
            yield Exchange(kind.kind, kind.group, kind.num_ranks, count, ledger.payload[kind], ledger.sent[kind])


@contextmanager
def without_news() -> Iterator[None]:
    """Keep back what a run says of itself and its machine: this is none."""
    logger = logging.getLogger("fulmen")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
