"""NonFiniteGuard: what happens when a loss or a gradient is NaN, infinite, or far too large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from fulmen.callbacks.learning_snapshot import LearningSnapshot
from fulmen.callbacks.sharding import check_takes_parts
from fulmen.core.callback import Callback
from fulmen.strategies.optimizer_state import is_sharded
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.optimizer_step import clear_gradients
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.spikes import SpikeRule

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["NonFiniteError", "NonFiniteGuard"]

_Action = Literal["stop", "skip", "rollback"]
_Check = Literal["loss", "gradients", "both"]
_MOST_NAMES = 5  # of parameters in a message


class NonFiniteError(RuntimeError):
    """Training was ended because of bad numbers.

    Args:
        message: What was found, where, and what to do.
        epoch: The epoch, from 0.
        batch_idx: The batch of that epoch in which it was found; the last of an accumulation window.
        ranks: The ranks whose own loss was bad; empty if only gradients were, which ranks share.
    """

    def __init__(self, message: str, *, epoch: int, batch_idx: int, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch_idx = batch_idx
        self.ranks = ranks


@dataclass(slots=True)
class _Finding:
    """What one rank knows of a bad step; plain data, as it goes to the other ranks."""

    losses: dict[int, float]  # those that are not finite, by batch index
    gradients: list[str]  # names of parameters whose gradients are not finite
    weights: list[str]  # names of parameters that are not finite themselves


class NonFiniteGuard(Callback):
    """Look at loss and gradients before each optimizer step; stop, leave the step out, or go back if they are bad.

    Bad is what is NaN or infinite, and with `spike_factor` also a loss that jumps. The look comes before clipping, with
    gradients as they are (not scaled). All ranks decide together, so that they always do the same. It costs a pass over
    the gradients, one wait for the device and, on several ranks, one exchange of two numbers in each optimizer step.

    * `"stop"` raises `NonFiniteError`, which names epoch, batch, rank and the parameters concerned. Weights are still
      those of before.
    * `"skip"` drops the gradients of the accumulation window, on all ranks, so that the optimizer changes nothing.
      As with a step that a gradient scaler leaves out, everything else counts on: `global_step`, schedulers, logs.
    * `"rollback"` puts weights, buffers, optimizer, schedulers that follow steps, and random numbers back to a snapshot
      and drops the gradients. The data goes on after the bad window: what came since the snapshot is passed over, not
      seen again. Batches, epochs, `global_step`, logs, metrics, other callbacks and schedulers that follow epochs count
      on, so no row is logged twice. The snapshot is in host memory: once the weights and the state of the optimizer. It
      is taken at the start of an epoch and every `snapshot_every_n_steps`, only of finite weights, and is not part of
      checkpoints: a resumed run begins with a new one.

    With scaled gradients ("16-mixed") overflowing gradients belong to the search for the scale, and the scaler leaves
    such a step out by itself: then only the loss is looked at. In manual optimization, "stop" and "skip" work for each
    step of an optimizer; "rollback" and `spike_factor` are refused.

    Args:
        action: What to do: "stop", "skip" or "rollback".
        check: What to look at: "loss", "gradients" or "both".
        max_skips: So many steps in a row may be left out; one more ends the run.
        max_rollbacks: So often may training go back to one snapshot; once more ends the run.
        snapshot_every_n_steps: Optimizer steps between snapshots.
        spike_factor: A loss of at least so many times the mean of the last `spike_window` good ones is bad, too; the
            loss is that of the whole window, over all ranks. `None` lets it jump.
        spike_window: Optimizer steps that the mean is over; before there are so many, nothing is a jump.

    Raises:
        MisconfigurationException: An argument has no accepted value.

    Example::

        Trainer(callbacks=NonFiniteGuard("rollback", spike_factor=3.0, snapshot_every_n_steps=200))
    """

    def __init__(
        self,
        action: _Action = "stop",
        *,
        check: _Check = "both",
        max_skips: int = 5,
        max_rollbacks: int = 3,
        snapshot_every_n_steps: int = 100,
        spike_factor: float | None = None,
        spike_window: int = 50,
    ) -> None:
        _check_choice("action", action, get_args(_Action))
        _check_choice("check", check, get_args(_Check))
        counts = {
            "max_skips": max_skips, "max_rollbacks": max_rollbacks, "snapshot_every_n_steps": snapshot_every_n_steps,
            "spike_window": spike_window,
        }  # fmt: skip
        for name, value in counts.items():
            _check_count(name, value)
        if spike_factor is not None and not _is_factor(spike_factor):
            raise MisconfigurationException(
                f"`NonFiniteGuard(spike_factor={spike_factor!r})` must be a finite number above 1: a loss is bad from"
                " so many times the running mean on. Pass e.g. 3.0, or None to let the loss jump."
            )
        # settings
        self.action = action
        self.check = check
        self.max_skips = max_skips
        self.max_rollbacks = max_rollbacks
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self.spike_factor = spike_factor
        # state, kept in checkpoints
        self.num_skips = 0
        self.num_rollbacks = 0
        self._skips_in_a_row = 0
        self._returns_to_snapshot = 0
        self._spikes = SpikeRule(spike_window, rtol=None if spike_factor is None else spike_factor - 1.0)
        # of this run
        self._snapshot: LearningSnapshot | None = None
        self._losses: dict[int, Tensor] = {}  # of the accumulation window, by batch index
        self._sees_gradients = True

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint; guards with other actions have others."""
        return self._generate_state_key(action=self.action, check=self.check)

    # ---- the run
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies whose gradients and weights cannot be read."""
        check_takes_parts(trainer, f"NonFiniteGuard(action={self.action!r})", "reads gradients and weights")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what the action cannot work with.

        Raises:
            MisconfigurationException: Manual optimization or the optimizer does not go with the settings.
        """
        if not pl_module.automatic_optimization:
            self._check_manual(type(pl_module).__name__)
        for optimizer in trainer.optimizers:
            self._check_optimizer(optimizer)
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._sees_gradients = self.check != "loss" and not has_scaler
        if has_scaler and self.check == "gradients":
            raise MisconfigurationException(
                f"`NonFiniteGuard(check='gradients')` has nothing to look at with `precision={trainer.precision!r}`:"
                " gradients overflow there while the scaler looks for its factor, and it leaves such steps out by"
                " itself. Choose `check='both'` or 'loss'."
            )
        trainer.fit_loop.told.add("not finite")  # the loop's own warning is about weights that this guard protects
        self._snapshot, self._losses = None, {}

    def _check_manual(self, name: str) -> None:
        for setting, is_asked in (
            ("action='rollback'", self.action == "rollback"),
            (f"spike_factor={self.spike_factor!r}", self.spike_factor is not None),
        ):
            if is_asked:
                raise MisconfigurationException(
                    f"`NonFiniteGuard({setting})` cannot work with `{name}`, which optimizes by hand: the weights would"
                    " change, or the loss be judged, in the middle of its `training_step`. Use `action='skip'` or"
                    " 'stop' without `spike_factor`, or automatic optimization."
                )

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        name = type(optimizer).__name__
        if isinstance(optimizer, LBFGS) and self.action != "stop":
            raise MisconfigurationException(
                f"`NonFiniteGuard(action={self.action!r})` cannot work with `{name}`: it changes the weights several"
                " times within a step, so there is no single step to leave out. Use `action='stop'`."
            )
        if is_sharded(optimizer) and self.action == "rollback":
            raise MisconfigurationException(
                f"`NonFiniteGuard(action='rollback')` cannot work with `{name}`, of whose state each rank has only a"
                " share. Use `action='skip'`, or an optimizer that is not sharded."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take a snapshot, if one is due.

        Raises:
            NonFiniteError: The weights are not finite before the first step.
        """
        if self.action != "rollback" or trainer.fit_loop.has_started_window or not self._snapshot_is_due(trainer):
            return
        if bad := self._bad_weights(trainer, pl_module):
            if self._snapshot is None:
                raise self._error(trainer, f"before the first step the weights are not finite: {_listed(bad)}", ())
            return  # the next step will find it
        self._snapshot = None  # first, so that there is never more than one
        self._snapshot = LearningSnapshot(trainer)
        self._returns_to_snapshot = 0

    @staticmethod
    def _bad_weights(trainer: Trainer, pl_module: LightningModule) -> list[str]:
        """The names of parameters that are not finite, the same on all ranks."""
        bad = _not_finite(dict(pl_module.named_parameters()))
        if not trainer.strategy.has_dtensors:
            return bad
        return list(dict.fromkeys(name for names in trainer.strategy.gather_objects(bad) for name in names))

    def _snapshot_is_due(self, trainer: Trainer) -> bool:
        snapshot = self._snapshot
        return (
            snapshot is None
            or snapshot.epoch != trainer.current_epoch  # going back over a border would draw its order once more
            or trainer.global_step - snapshot.global_step >= self.snapshot_every_n_steps
        )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """In manual optimization, take note of a loss."""
        if not pl_module.automatic_optimization:
            self._note(trainer, loss, adds=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the loss of a batch whose window goes on."""
        if trainer.fit_loop.has_started_window:
            self._note(trainer, trainer.fit_loop.optimization.last_loss)  # type: ignore[union-attr]  # an epoch runs
        elif pl_module.automatic_optimization:
            self._losses.clear()

    def _note(self, trainer: Trainer, loss: Tensor | None, adds: bool = False) -> None:
        if loss is None:
            return
        batch_idx, loss = trainer.fit_loop.batch_idx, loss.detach().sum()
        self._losses[batch_idx] = self._losses[batch_idx] + loss if adds and batch_idx in self._losses else loss

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at what the step would be made from, and act if it is bad.

        Raises:
            NonFiniteError: The action is to stop, or nothing else has helped.
        """
        if pl_module.automatic_optimization:
            self._note(trainer, trainer.fit_loop.optimization.last_loss)  # type: ignore[union-attr]  # an epoch runs
        is_bad, loss = self._look(trainer, optimizer)
        is_spike = not is_bad and loss is not None and self._spikes.is_warm and self._spikes.is_spike(loss)
        if not is_bad and not is_spike:
            self._skips_in_a_row = 0
            if loss is not None:
                self._spikes.add(loss)
        elif is_spike:
            self._act(trainer, optimizer, f"the loss jumped to {loss:.6g} from a mean of {self._spikes.mean:.6g}", ())
        else:
            self._act(trainer, optimizer, *self._found(trainer, pl_module, optimizer))
        self._losses.clear()

    # ---- looking
    def _look(self, trainer: Trainer, optimizer: Optimizer) -> tuple[bool, float | None]:
        """Return whether something is not finite on any rank, and the mean loss over ranks if jumps are looked for."""
        device = trainer.strategy.root_device
        zero = torch.zeros((), device=device)
        loss = sum((each.to(device, torch.float32) for each in self._losses.values()), zero)
        is_bad = ~loss.isfinite() if self.check != "gradients" else zero.bool()
        if self._sees_gradients:
            is_bad = is_bad | ~_largest_gradient(optimizer).to(device).isfinite()
        numbers = torch.stack((is_bad.float(), loss.nan_to_num(0.0, 0.0, 0.0)))
        if trainer.world_size > 1:
            numbers = trainer.strategy.all_reduce(numbers, reduce_op="mean")
        share_of_bad, mean_loss = numbers.tolist()  # sync: the decision is about numbers
        wants_loss = self.spike_factor is not None and bool(self._losses)
        return share_of_bad > 0, mean_loss if wants_loss else None

    def _found(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> tuple[str, tuple[int, ...]]:
        """Return in words what all ranks together have found, and the ranks whose loss is bad."""
        parameters = dict(module.named_parameters())
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        losses = {batch_idx: loss.item() for batch_idx, loss in self._losses.items()}  # sync: something is wrong
        bad_losses = {batch_idx: loss for batch_idx, loss in losses.items() if not math.isfinite(loss)}
        own = _Finding(bad_losses, _not_finite(gradients), _not_finite(parameters))
        findings = trainer.strategy.gather_objects(own)
        parts = [
            f"the loss is {value} in batch {batch_idx}" + (f" on rank {rank}" if trainer.world_size > 1 else "")
            for rank, finding in enumerate(findings)
            for batch_idx, value in finding.losses.items()
        ]
        for word, lists in (
            ("gradients", [finding.gradients for finding in findings]),
            ("weights", [finding.weights for finding in findings]),
        ):
            names = sorted({name for names in lists for name in names}, key=list(parameters).index)
            if names:
                parts.append(f"{word} are not finite in {_listed(names)}")
        return "; ".join(parts), tuple(rank for rank, finding in enumerate(findings) if finding.losses)

    # ---- acting
    def _act(self, trainer: Trainer, optimizer: Optimizer, what: str, ranks: tuple[int, ...]) -> None:
        if self.action == "stop":
            raise self._error(trainer, what, ranks)
        if self.action == "skip":
            self._skip(trainer, what, ranks)
        else:
            self._go_back(trainer, what, ranks)
        clear_gradients(optimizer)

    def _skip(self, trainer: Trainer, what: str, ranks: tuple[int, ...]) -> None:
        if self._skips_in_a_row >= self.max_skips:
            raise self._error(trainer, f"{what}, and {self._skips_in_a_row} steps in a row were left out before", ranks)
        self._skips_in_a_row += 1
        self.num_skips += 1
        rank_zero_warn(
            f"`NonFiniteGuard` leaves out an optimizer step ({self._place(trainer)}): {what}.", category=RuntimeWarning
        )

    def _go_back(self, trainer: Trainer, what: str, ranks: tuple[int, ...]) -> None:
        snapshot = self._snapshot
        assert snapshot is not None  # noqa: S101 - taken before the first batch
        if self._returns_to_snapshot >= self.max_rollbacks:
            tried = f"{what}, and training went back to global step {snapshot.global_step}"
            raise self._error(trainer, f"{tried} {self._returns_to_snapshot} times before", ranks)
        self._returns_to_snapshot += 1
        self.num_rollbacks += 1
        snapshot.restore(trainer)
        rank_zero_warn(
            f"`NonFiniteGuard` goes back ({self._place(trainer)}): {what}. What was learned since global step"
            f" {snapshot.global_step} is undone; training goes on with the data after this batch.",
            category=RuntimeWarning,
        )

    def _place(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx}, global step {trainer.global_step}"

    def _error(self, trainer: Trainer, what: str, ranks: tuple[int, ...]) -> NonFiniteError:
        return NonFiniteError(
            f"Training ends at {self._place(trainer)}: {what}. Look at the data of that batch, lower the learning rate,"
            " set `gradient_clip_val`, or find the operation with `Trainer(detect_anomaly=True)`.",
            epoch=trainer.current_epoch,
            batch_idx=trainer.fit_loop.batch_idx,
            ranks=ranks,
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back the memory of the snapshot."""
        self._snapshot, self._losses = None, {}

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, and the losses that the mean is over."""
        return {
            "num_skips": self.num_skips,
            "num_rollbacks": self.num_rollbacks,
            "skips_in_a_row": self._skips_in_a_row,
            "recent_losses": self._spikes.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.num_skips = state_dict["num_skips"]
        self.num_rollbacks = state_dict["num_rollbacks"]
        self._skips_in_a_row = state_dict["skips_in_a_row"]
        self._spikes.load_state_dict(state_dict["recent_losses"])


def _largest_gradient(optimizer: Optimizer) -> Tensor:
    """Return the largest absolute entry of all gradients, of this rank's parts of them; NaN if there is one."""
    gradients = [
        _own_entries(gradient)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (gradient := parameter.grad) is not None
    ]
    return torch.nn.utils.get_total_norm([each for each in gradients if each.numel()], math.inf)


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of those that hold NaN or an infinite number."""
    flags = [_is_finite(tensor) for tensor in tensors.values()]
    if not flags:
        return []
    are_finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # sync: when a snapshot is due
    return [name for name, is_finite in zip(tensors, are_finite, strict=True) if not is_finite]


def _is_finite(tensor: Tensor) -> Tensor:
    return _own_entries(tensor).isfinite().all()


def _own_entries(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor; the others look at theirs."""
    values: Tensor = getattr(tensor, "_local_tensor", tensor)
    return values.coalesce().values() if values.is_sparse else values


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMES]) + more


def _is_factor(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 1


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise MisconfigurationException(
            f"`NonFiniteGuard({name}={value!r})` is not known. Choose one of {', '.join(map(repr, allowed))}."
        )


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MisconfigurationException(f"`NonFiniteGuard({name}={value!r})` must be an int of at least 1.")
