"""GradientMonitor: norms of gradients and the relative size of updates, by layer, as logged curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.callbacks.sharding import check_takes_parts
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_number
from fulmen.utilities.sharded_gradients import has_shards, total_norm

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["GradientMonitor", "check_interval", "norm_of"]

_By = Literal["layer", "parameter", "total"]


class GradientMonitor(Callback):
    """Log the Euclidean norm of the gradients, and how much a step changes the weights relative to their size.

    `grad_norm/<name>` and `grad_norm_total` are of the gradients that the optimizer gets, over all micro-batches and
    ranks, before they are clipped. `update_ratio/<name>` and `update_ratio_total` are the norm of the change of the
    weights in this step over that of the weights before it; for many networks about 1e-3 is healthy.

    Where parameters are divided among ranks, numbers are of whole parameters.

    It measures only in the steps that it logs: then it takes one pass over the gradients, one wait for the device, and
    for `update_ratio` a copy of the weights until the step is done. Other steps cost two looks at a counter.

    Args:
        every_n_steps: Steps between two rows; `None` for the Trainer's `log_every_n_steps`.
        by: One number for each "layer" that has parameters of its own, each "parameter", or only the "total".
        update_ratio: Whether to measure the change of the weights.

    Attributes:
        last: The latest row.

    Raises:
        MisconfigurationException: An argument has no accepted value, or the strategy keeps weights in its own form.

    Example::

        Trainer(callbacks=GradientMonitor(every_n_steps=100), logger=True)
    """

    def __init__(self, every_n_steps: int | None = None, *, by: _By = "layer", update_ratio: bool = True) -> None:
        check_interval(type(self).__name__, every_n_steps)
        if by not in get_args(_By):
            raise MisconfigurationException(
                f"`GradientMonitor(by={by!r})` is not known. Choose one of {', '.join(map(repr, get_args(_By)))}."
            )
        # settings
        self.every_n_steps = every_n_steps
        self.by = by
        self.update_ratio = update_ratio
        # of this run
        self.last: dict[str, float] = {}
        self._groups: dict[str, list[nn.Parameter]] = {}
        self._every = 0
        self._norms: dict[str, Tensor] = {}  # of the step that is measured
        self._before: list[tuple[str, list[nn.Parameter], list[Tensor]]] = []  # weights before it

    @property
    def state_key(self) -> str:
        """Key of this callback, so that several can be used at once."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, by=self.by)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies whose gradients cannot be read."""
        check_takes_parts(trainer, type(self).__name__, "reads gradients and weights")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers."""
        self._every = trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps
        self._groups = self._grouped(pl_module)
        self._norms, self._before = {}, []

    def _grouped(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            layer = name.rpartition(".")[0] or name  # a parameter of the module itself stands for itself
            groups.setdefault({"layer": layer, "parameter": name, "total": ""}[self.by], []).append(parameter)
        return groups

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients of an optimizer, if the step is one that is logged."""
        if not self._every or (trainer.fit_loop.batches_that_stepped + 1) % self._every:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameters in self._groups.items():
            stepped = [each for each in parameters if each.grad is not None and id(each) in own]
            if stepped:
                self._norms[name] = norm_of([each.grad for each in stepped])  # type: ignore[misc]  # it has one
                if self.update_ratio:
                    self._before.append((name, stepped, [each.detach().clone() for each in stepped]))

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Log what was measured."""
        if not self._norms:
            return
        columns = {"grad_norm": self._norms}
        if self.update_ratio:
            columns["update"], columns["weight"] = self._changes()
        self._norms, self._before = {}, []
        flat = torch.stack([norm for column in columns.values() for norm in column.values()]).tolist()  # sync: a row
        numbers = iter(flat)
        norms = {title: {name: next(numbers) for name in column} for title, column in columns.items()}
        self.last = _row(norms)
        trainer.metrics.send(self.last, trainer.fit_loop.batches_that_stepped, trainer.current_epoch)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.last.items()})

    def _changes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        updates, weights = {}, {}
        for name, parameters, before in self._before:
            updates[name] = norm_of([after.detach() - old for after, old in zip(parameters, before, strict=True)])
            weights[name] = norm_of(before)
        return updates, weights

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the parameters."""
        self._groups, self._norms, self._before = {}, {}, []


def check_interval(name: str, every_n_steps: Any) -> None:
    """Refuse what is no number of steps."""
    check_number(
        name, "every_n_steps", every_n_steps, "the steps between two rows. Leave it out for those of the Trainer.",
        least=1, whole=True, optional=True, error=MisconfigurationException,
    )  # fmt: skip


def norm_of(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all entries of all tensors, in single precision at least.

    Of tensors that are divided among ranks it is that of the whole ones; all ranks must call.
    """
    dense = [each.coalesce().values() if each.is_sparse else each for each in tensors]
    if has_shards(dense):
        return total_norm(dense)
    norm = torch.nn.utils.get_total_norm([each.detach() for each in dense if each.numel()])
    return norm.to(torch.promote_types(norm.dtype, torch.float32))


def _row(norms: dict[str, dict[str, float]]) -> dict[str, float]:
    row = {f"grad_norm/{name}": value for name, value in norms["grad_norm"].items() if name}
    row["grad_norm_total"] = _total(norms["grad_norm"])
    if "update" in norms:
        updates, weights = norms["update"], norms["weight"]
        row |= {f"update_ratio/{name}": updates[name] / weights[name] for name in updates if name and weights[name]}
        if total := _total(weights):
            row["update_ratio_total"] = _total(updates) / total
    return row


def _total(norms: dict[str, float]) -> float:
    return float(sum(norm * norm for norm in norms.values()) ** 0.5)
