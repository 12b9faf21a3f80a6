"""One step of training on imagined ranks: set-up by the strategy itself, then the real optimization of the Trainer.

copy of the module, without memory -> environment: groups and meshes over the fake process group
setup hooks, configure_model -> strategy.setup: shard, wrap, optimizers
states of the optimizers and gradients, as they are there from the second step on; by a first step where needed
a window of batches -> forward, backward, exchange, optimizer step
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

import fulmen
from fulmen.planning.imagined import imagined_copy, imagined_tensors, imagined_world
from fulmen.planning.ledger import Holdings, Ledger, local_tensors

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["PlanError", "Rehearsal", "measure_steps", "rehearse"]

_LIBRARIES = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,)
_OWN = os.path.dirname(os.path.abspath(fulmen.__file__)) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_NEEDS_VALUES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)
_NO_ARRAYS = ".numpy() is not supported for tensor subclasses"


class PlanError(RuntimeError):
    """A step that cannot be traced, as the program needs values that only exist in a real run."""


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
    """Take two steps on rank 0 of an imagined world.

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
    with imagined_world(strategy.world_size, notes) as mode, _located():
        trainer.attach(imagined_copy(model, mode, memo))
        memo.clear()  # else the whole weights would stay, beside the shards
        strategy.setup_environment()
        trainer.events.build()
        mesh, names = _groups_of(strategy)
        with mode, Ledger(names, _reader(notes)) as ledger:
            trainer.events.setup(trainer.state.fn)
            trainer.events.refresh()
            configure_model(trainer)
            trainer.begin_metrics()
            strategy.setup(trainer)
            trainer.events.on_fit_start()
            is_begun = _begin_as_after_a_step(strategy)
            num_steps = 1 if is_begun else 2
            rehearsal = measure_steps(trainer, ledger, lambda: imagined_tensors(batch), num_steps)
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
    optimization = trainer.make_optimization()
    optimization.measure(_watching(ledger, trainer, phases))
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


_PHASES = {"training_step": "forward", "backward": "backward", "optimizer_step": "optimizer step"}


def _watching(ledger: Ledger, trainer: Trainer, phases: list[tuple[int, str]]) -> Callable[..., Callable[..., Any]]:
    """Return what wraps the verbs of a step, to learn what storage is for."""

    def watched(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            phases.append((ledger.moment(), _PHASES[verb]))
            if verb == "backward":
                ledger.assign_rest("activations")
            result = function(*args, **kwargs)
            gradients = [each.grad for each in trainer.lightning_module.parameters() if each.grad is not None]
            ledger.assign(local_tensors(gradients), "gradients")
            if verb == "optimizer_step":
                states = [optimizer.state for optimizer in trainer.strategy.optimizers]
                ledger.assign(local_tensors([list(state.values()) for state in states]), "optimizer state")
            return result

        return call

    return watched


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


# ---- values that are not there


def _reader(notes: list[str]) -> Callable[[Tensor], Any]:
    """Return what stands in for the value of an imagined tensor."""

    def read(tensor: Tensor) -> Any:
        frame: FrameType | None = sys._getframe()
        while frame is not None and _is_within(frame, (*_LIBRARIES, _HERE)):
            frame = frame.f_back
        is_ours = frame is None or frame.f_code.co_filename.startswith(_OWN)
        if tensor.dtype.is_floating_point:
            if not is_ours and (note := f"{_place(frame)} reads the value of a tensor; 1.0 is taken.") not in notes:
                notes.append(note)
            return 1.0
        if is_ours:
            return True if tensor.dtype == torch.bool else 1
        raise PlanError(_needs_value(_place(frame)))

    return read


def _is_within(frame: FrameType, folders: tuple[str, ...]) -> bool:
    return frame.f_code.co_filename.startswith(folders)


def _place(frame: FrameType | None, line: int | None = None) -> str:
    if frame is None:
        return "The step"
    line = line or frame.f_lineno
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}: `{source}`"


@contextmanager
def _located() -> Iterator[None]:
    """Say which line of the user's program needs a value."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _NEEDS_VALUES) and _NO_ARRAYS not in str(error):
            raise
        place, trace = "The step", error.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            if not _is_within(frame, (*_LIBRARIES, _OWN)) and not frame.f_code.co_filename.startswith("<"):
                place = _place(frame, trace.tb_lineno)
            trace = trace.tb_next
        raise PlanError(_needs_value(place)) from error


def _needs_value(place: str) -> str:
    return (
        f"{place} needs the value of a tensor, but a plan is made with shapes only: what a program does with numbers,"
        " masks or indices that are computed cannot be known. Use operations whose shapes do not depend on values, e.g."
        " `torch.where` in place of indexing by a mask; or put the line behind a setting of the module, and plan with"
        " it switched off."
    )
