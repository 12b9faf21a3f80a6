"""KnowledgeDistillation: a small model learns from the outputs of a large one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_function, check_number
from fulmen.utilities.step_outputs import loss_in

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["KnowledgeDistillation"]

_CONVERTING = ("16-true", "bf16-true", "64-true")  # precisions in which batches have another type, too


class KnowledgeDistillation(Callback):
    """Add the distance to a teacher's outputs to the loss (Hinton, Vinyals and Dean 2015).

    `loss = (1 - alpha) * loss of training_step + alpha * temperature**2 * KL(teacher || student)`, with both outputs
    as logits divided by the temperature. The module stays as it is: in each `training_step`, the teacher gets what the
    student's forward pass gets, `self(x)` or that of the submodule `student`, and its output is compared with the
    student's. Of several forward passes in a step, the distances are averaged.

    The teacher is in evaluation mode, computes no gradients, and is neither in the checkpoint nor in an optimizer. A
    resumed run is given the teacher again. `distillation_loss` is logged, before it is weighted.

    Args:
        teacher: The trained model; its forward pass takes the arguments of the student's.
        temperature: Above 1, small probabilities count more.
        alpha: Share of the teacher in the loss, from 0 to 1.
        student: Name of the submodule whose output is compared; default is the module itself.
        logits: Takes an output (of student or teacher) and returns the logits, of shape (batch, classes, ...); for
            models that return more than that.
        distance: Takes the student's and the teacher's logits, and returns the scalar that replaces
            `temperature**2 * KL`; e.g. `torch.nn.functional.mse_loss` for regression.

    Raises:
        ValueError: `temperature` or `alpha` is out of range.

    Example::

        teacher = Large.load_from_checkpoint("large.ckpt")
        Trainer(callbacks=KnowledgeDistillation(teacher, temperature=4.0, alpha=0.7)).fit(Small(), loader)
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float = 0.5,
        student: str = "",
        logits: Callable[[Any], Tensor] | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise TypeError(
                f"`KnowledgeDistillation(teacher=...)` got a {type(teacher).__name__}, but needs a trained"
                " `torch.nn.Module`. Load it first: `Model.load_from_checkpoint(path)`."
            )
        name = "KnowledgeDistillation"
        check_number(name, "temperature", temperature, "it divides the logits. Common are 2 to 10.", above=0)
        check_number(name, "alpha", alpha, "the share of the teacher in the loss.", least=0, most=1)
        if not isinstance(student, str):
            raise TypeError(
                f"`KnowledgeDistillation(student={student!r})` must be the name of a submodule, e.g. 'net', or '' for"
                " the module itself: it is looked up when training begins."
            )
        check_function(name, "logits", logits, "it takes an output and returns its logits.", optional=True)
        why = "it takes the logits of student and teacher and returns a scalar, e.g. `torch.nn.functional.mse_loss`."
        check_function(name, "distance", distance, why, optional=True)
        # ---- settings
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha
        self.student = student
        self.logits = logits
        self.distance = distance
        # ---- state
        self._running = teacher  # or a copy in the precision of the run
        self._handle: RemovableHandle | None = None
        self._teacher_before: tuple[list[bool], list[bool]] | None = None  # which modules and parameters trained

    # ---- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a loss to add to, and the part of the student that is to be compared."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "`KnowledgeDistillation` adds to the loss that `training_step` returns, but with manual optimization"
                " that is differentiated before. Use `automatic_optimization = True`."
            )
        if self.student not in (known := dict(pl_module.named_modules())):
            raise MisconfigurationException(
                f"`KnowledgeDistillation(student={self.student!r})` is no submodule of `{type(pl_module).__name__}`."
                f" It has {[name for name in known if name]}."
            )
        shared = {*self.teacher.parameters()} & {*pl_module.parameters()}
        if shared:
            raise MisconfigurationException(
                f"`KnowledgeDistillation`: teacher and student share {len(shared)} parameters, but the teacher must not"
                " change. Give it a copy: `copy.deepcopy(teacher)`, and don't assign it to an attribute of the module."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the teacher, bring it to the device, and have it listen."""
        self._teacher_before = (
            [each.training for each in self.teacher.modules()],
            [each.requires_grad for each in self.teacher.parameters()],
        )
        self.teacher.eval().requires_grad_(False)
        self._running = self.teacher
        if trainer.precision in _CONVERTING:  # a copy, as rounding can't be undone
            self._running = trainer.strategy.precision_plugin.convert_module(copy.deepcopy(self.teacher))
        self._running.to(pl_module.device)
        self._attach(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own `training_step` back, and the teacher its modes."""
        if self._handle is None or self._teacher_before is None:
            return
        self._handle.remove()
        del pl_module.__dict__["training_step"]
        modes, trained = self._teacher_before
        for module, mode in zip(self.teacher.modules(), modes, strict=True):
            module.training = mode
        for parameter, trains in zip(self.teacher.parameters(), trained, strict=True):
            parameter.requires_grad = trains
        self.teacher.cpu()
        self._running = self.teacher
        self._handle = self._teacher_before = None

    def _attach(self, pl_module: LightningModule) -> None:
        """Wrap `training_step` of this one object; it is called by name wherever a strategy runs it."""
        distances: list[Tensor] = []
        own_step = pl_module.training_step
        is_inside = False

        # plain functions, as a copy of the module would copy the object, with the teacher, that a method belongs to
        def compare(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if is_inside:  # not around the step: DistributedDataParallel runs it as the module's forward
                distances.append(self._distance(args, kwargs, output))

        @functools.wraps(own_step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_inside
            is_inside = True
            try:
                output = own_step(*args, **kwargs)
                if output is None:
                    return None
                if not distances:
                    raise _never_called(self.student)
                return self._with_teacher(pl_module, output, torch.stack(distances).mean())
            finally:
                is_inside = False
                distances.clear()

        student = pl_module.get_submodule(self.student)
        self._handle = student.register_forward_hook(compare, with_kwargs=True)
        pl_module.__dict__["training_step"] = training_step

    # ---- one step
    def _distance(self, args: Any, kwargs: Any, output: Any) -> Tensor:
        with torch.no_grad():
            target = self._running(*args, **kwargs)
        student, teacher = (output, target) if self.logits is None else (self.logits(output), self.logits(target))
        if self.distance is not None:
            return self.distance(student, teacher)
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor) or student.shape != teacher.shape:
            raise MisconfigurationException(
                f"`KnowledgeDistillation` compares logits of one shape, but the student gave {_shape(student)} and the"
                f" teacher {_shape(teacher)}. Pass `logits=` to take them out of an output, `student=` to compare the"
                " output of a submodule, or `distance=` to compare in another way."
            )
        ours, theirs = (F.log_softmax(each / self.temperature, dim=1) for each in (student, teacher))
        # "batchmean" would not divide by the positions of e.g. a segmentation
        divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True) * student.shape[1] / student.numel()
        return divergence * self.temperature**2

    def _with_teacher(self, pl_module: LightningModule, output: Any, distance: Tensor) -> Any:
        pl_module.log("distillation_loss", distance.detach(), on_step=False, on_epoch=True)
        mixed = (1 - self.alpha) * loss_in(output) + self.alpha * distance
        return {**output, "loss": mixed} if isinstance(output, Mapping) else mixed


def _never_called(student: str) -> RuntimeError:
    name = f"`self.{student}(...)`" if student else "`self(...)`"
    return RuntimeError(
        f"`KnowledgeDistillation` compares what {name} returns with the teacher, but `training_step` did not call it."
        " Call it there (not its `forward`), or name the submodule that computes the logits: `student='net'`."
    )


def _shape(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
