"""One step of training on imagined ranks: set-up by the strategy itself, then the real optimization of the Trainer.

copy of the module, without memory -> environment: groups and meshes over the fake process group
setup hooks, configure_model -> strategy.setup: shard, wrap, optimizers
states of the optimizers and gradients, as they are there from the second step on; by a first step where needed
a window of batches -> forward, backward, exchange, optimizer step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

from fulmen.planning.imagined import RealNumbers, imagined_copy, imagined_tensors, imagined_world
from fulmen.planning.ledger import Holdings, Ledger, local_tensors
from fulmen.planning.metrics import skip_metrics
from fulmen.planning.values import located, reader

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["Rehearsal", "measure_steps", "rehearse"]


@dataclass(slots=True)
class Rehearsal:
    """What a step does on rank 0."""

    ledger: Ledger
    peak: Holdings
    most: dict[str, int]
    """The most of each role, at whatever time, in bytes."""
    phase: str
    """When the peak is."""
    num_parameters: int
    num_trainable: int
    mesh: dict[str, int]


def rehearse(
    trainer: Trainer,
    model: LightningModule,
    batch: Any,
    *,
    configure_model: Callable[[Trainer], None],
    notes: list[str],
) -> Rehearsal:
    """Take the steps on rank 0 of an imagined world that it takes to see one from the middle of a run.

    Args:
        trainer: A Trainer made for this, whose strategy is on the CPU and knows how many ranks there are.
        model: The module, which is not changed.
        batch: A batch of one rank, real or on "meta".
        configure_model: Calls the hooks by which a module makes its layers.
        notes: Takes what the plan assumes, and what it leaves out.

    Raises:
        PlanError: The step needs the values of tensors.
        RuntimeError: This process is in a process group already.
    """
    strategy = trainer.strategy
    memo: dict[int, Any] = {} if model._trainer is None else {id(model._trainer): None}
    package = type(model).__module__.partition(".")[0]
    with imagined_world(strategy.world_size, notes) as mode, located(package):
        trainer.attach(imagined_copy(model, mode, memo))
        memo.clear()  # else the whole weights would stay, beside the shards
        strategy.setup_environment()
        trainer.events.build()
        mesh, names = _groups_of(strategy)
        with mode, Ledger(names, reader(notes, package)) as ledger:
            trainer.events.setup(trainer.state.fn)
            trainer.events.refresh()
            configure_model(trainer)
            trainer.begin_metrics()
            strategy.setup(trainer)
            trainer.events.on_fit_start()
            skip_metrics(trainer.lightning_module, notes)
            num_steps = 1 if _begin_as_after_a_step(strategy) else _steps_of_ddp(strategy.model)
            rehearsal = measure_steps(trainer, ledger, lambda: imagined_tensors(batch), num_steps)
            notes.extend(_note_of_manual(trainer))
        rehearsal.mesh = mesh
        strategy.teardown()
    return rehearsal


def _begin_as_after_a_step(strategy: Any) -> bool:
    """Give the parameters gradients and the optimizers states without a first step; tell whether that was possible."""
    if isinstance(strategy.model, DistributedDataParallel):  # whose gradients can be parts of its buckets
        return False
    if any(isinstance(optimizer, LBFGS) for optimizer in strategy.optimizers):  # computes as it steps
        return False
    for optimizer in strategy.optimizers:
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return True


def _steps_of_ddp(model: Any) -> int:
    """Return the first step that is like all later ones: one finds the order of gradients, one makes their buckets."""
    return 4 if getattr(model, "static_graph", False) else 3


def measure_steps(trainer: Trainer, ledger: Ledger, next_batch: Callable[[], Any], num_steps: int) -> Rehearsal:
    """Take optimizer steps with a Trainer that is set up, and report the last.

    Args:
        trainer: Its strategy has set up module and optimizers.
        ledger: Open.
        next_batch: Returns a batch of this rank.
        num_steps: How many steps.
    """
    module, strategy, fit_loop = trainer.lightning_module, trainer.strategy, trainer.fit_loop
    ledger.assign(local_tensors([*module.parameters(), *module.buffers()]), "weights")
    ledger.assign(local_tensors([each.grad for each in module.parameters() if each.grad is not None]), "gradients")
    states = [optimizer.state for optimizer in strategy.optimizers]
    ledger.assign(local_tensors([list(state.values()) for state in states]), "optimizer state")
    ledger.assign_rest("temporaries")
    phases: list[tuple[int, str]] = []
    optimization = fit_loop.optimization = trainer.make_optimization()
    optimization.measure(_watching(ledger, trainer, phases))
    _watch_optimizers(ledger, trainer, phases)
    trainer.metrics.activate(fit_loop.metrics)
    window, begin = trainer.accumulate_grad_batches, ledger.moment()
    trainer.events.on_train_start()
    trainer.events.on_train_epoch_start()
    fit_loop.metrics.in_batch = True
    for step in range(num_steps):
        if step == num_steps - 1:
            ledger.forget_work()
            begin = ledger.moment()
        for number in range(window):
            ledger.assign_rest("gradients" if number else "temporaries")  # FSDP keeps whole ones in a window
            batch_idx = step * window + number
            batch = next_batch()
            ledger.assign(local_tensors(batch), "batch")
            batch = strategy.batch_to_device(batch)
            ledger.assign(local_tensors(batch), "batch")
            trainer.events.on_train_batch_start(batch, batch_idx)
            optimization.step(batch, batch_idx, due=number == window - 1, divisor=window)
    peak, when = ledger.peak(begin)
    parameters = list(module.parameters())
    return Rehearsal(
        ledger,
        peak,
        {role: ledger.most_of(role, begin) for role in peak.by_role},
        next((phase for moment, phase in reversed(phases) if moment < when), "forward"),
        sum(each.numel() for each in parameters),
        sum(each.numel() for each in parameters if each.requires_grad),
        {},
    )


_PHASES = {"training_step": "forward", "backward": "backward"}


def _watching(ledger: Ledger, trainer: Trainer, phases: list[tuple[int, str]]) -> Callable[..., Callable[..., Any]]:
    """Return what wraps the verbs of a step, to learn what storage is for."""
    model = trainer.strategy.model
    finds_unused = isinstance(model, DistributedDataParallel) and model.find_unused_parameters
    numbers: Any = RealNumbers if finds_unused else nullcontext

    def watched(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            phases.append((ledger.moment(), _PHASES[verb]))
            if verb == "backward":
                ledger.assign_rest("activations")
            with numbers() if verb == "backward" else nullcontext():
                result = function(*args, **kwargs)
            _assign_gradients(ledger, trainer)
            if verb == "backward" and trainer.lightning_module.automatic_optimization:
                phases.append((ledger.moment(), "optimizer step"))  # also where a closure ends, inside of it
            return result

        return call if verb in _PHASES else function

    return watched


def _watch_optimizers(ledger: Ledger, trainer: Trainer, phases: list[tuple[int, str]]) -> None:
    """Learn from each step of an optimizer, whoever calls it, what storage is for."""

    def before(*_: Any) -> None:
        phases.append((ledger.moment(), "optimizer step"))
        _assign_gradients(ledger, trainer)

    def after(optimizer: Any, *_: Any) -> None:
        ledger.assign(local_tensors(list(optimizer.state.values())), "optimizer state")
        phases.append((ledger.moment(), "forward"))  # another can follow, in manual optimization

    for optimizer in trainer.strategy.optimizers:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def _assign_gradients(ledger: Ledger, trainer: Trainer) -> None:
    gradients = [each.grad for each in trainer.lightning_module.parameters() if each.grad is not None]
    ledger.assign(local_tensors(gradients), "gradients")


def _note_of_manual(trainer: Trainer) -> Iterator[str]:
    if trainer.lightning_module.automatic_optimization:
        return
    count = trainer.fit_loop.progress.manual_steps.total.completed
    yield (
        "Optimization is manual: what is planned is one call of `training_step`, as it is early in a run."
        + (" No optimizer steps in it." if not count else "")
    )


def _groups_of(strategy: Any) -> tuple[dict[str, int], dict[str, str]]:
    """Return the dimensions of the mesh with their sizes, and names for the process groups."""
    mesh = getattr(strategy, "device_mesh", None)
    names = {dist.group.WORLD.group_name: "all ranks"}  # type: ignore[union-attr]  # there is one
    if mesh is None:
        return {"data": strategy.world_size}, names
    sizes = {}
    for dim, name in enumerate(mesh.mesh_dim_names or range(mesh.ndim)):
        sizes[str(name)] = mesh.size(dim)
        names[mesh.get_group(dim).group_name] = str(name)
    return sizes, names
