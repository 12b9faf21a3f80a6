"""StochasticWeightAveraging: the mean of the weights of the last epochs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from fulmen.callbacks.sharding import check_takes_whole
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import batch_norms
from fulmen.utilities.options import check_function, check_number, parse_device
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.types import LRSchedulerConfig

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["SWALR", "StochasticWeightAveraging"]

log = logging.getLogger(__name__)

_AverageFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class SWALR(swa_utils.SWALR):
    """torch's schedule, whose state is plain data with each version of torch."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state, without the function that torch before 2.10 has there; the constructor chooses it."""
        return {name: value for name, value in super().state_dict().items() if name != "anneal_func"}


class StochasticWeightAveraging(Callback):
    """Average the weights at the beginning of each of the last epochs, under a learning rate of its own.

    Izmailov et al. 2018. From `swa_epoch_start` on, `torch.optim.swa_utils.SWALR` takes the place of the scheduler. At
    the end the module gets the average. If it has batch norms, one more epoch follows, in which nothing is learned: it
    computes their statistics for the averaged weights. If training is stopped before its last epoch, the module keeps
    its trained weights, with a warning.

    Args:
        swa_lrs: Learning rate to anneal to, one for all parameter groups or a list with one for each.
        swa_epoch_start: First epoch to average: an int counts from 1, a float is a fraction of `max_epochs`.
        annealing_epochs: Epochs until `swa_lrs` is reached; 0 is at once.
        annealing_strategy: "cos" or "linear".
        avg_fn: Takes the average, the new weights and how many are averaged already (all tensors), and returns the new
            average; default is the mean.
        device: Where the average is kept; `None` is the device of the module.

    Raises:
        MisconfigurationException: An argument is out of range.

    Example::

        Trainer(max_epochs=100, callbacks=StochasticWeightAveraging(swa_lrs=1e-2))
    """

    copies_module: ClassVar[bool] = True

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: _AverageFunction | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008 - a constant, as in Lightning
    ) -> None:
        _check_arguments(swa_lrs, swa_epoch_start, annealing_epochs, annealing_strategy)
        check_function(
            "StochasticWeightAveraging", "avg_fn", avg_fn, "it takes the average, the weights and the number averaged.",
            optional=True, error=MisconfigurationException,
        )  # fmt: skip
        # ---- settings
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy = annealing_strategy
        self._avg_fn: _AverageFunction = avg_fn or self.avg_fn
        self._device = parse_device("StochasticWeightAveraging", device)
        # ---- state
        self.n_averaged: Tensor | None = None
        self.momenta: dict[nn.Module, float | None] | None = None  # of batch norms, in the last epoch
        self._start = 0
        self._max_epochs = 0
        self._adds_epoch = False
        self._average: nn.Module | None = None
        self._latest_update_epoch = -1
        self._is_transferred = False
        self._loaded: dict[str, Any] | None = None

    @property
    def swa_start(self) -> int:
        """First epoch (from 0) at whose beginning the weights are averaged."""
        return max(self._start - 1, 0)

    @property
    def swa_end(self) -> int:
        """The last one."""
        return self._max_epochs - 1

    # ---- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that strategy and callbacks leave weights whole, and forget an earlier run."""
        if stage != "fit":
            return
        check_takes_whole(
            trainer, "StochasticWeightAveraging", "averages whole weights",
            "Use `WeightAveraging`, which averages parts, or train with `strategy='ddp'` or on one device.",
        )  # fmt: skip
        others = [each for each in trainer.callbacks if each is not self and getattr(each, "copies_module", False)]
        if others:
            raise MisconfigurationException(
                f"`StochasticWeightAveraging` and `{type(others[0]).__name__}` both give the module an average at the"
                " end of training. Leave one of them out."
            )
        self.n_averaged = self.momenta = self._average = self._loaded = None
        self._latest_update_epoch, self._is_transferred = -1, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out when to begin, and go on with the average and the scheduler of a checkpoint."""
        self._check_run(trainer, pl_module)
        max_epochs = trainer.max_epochs or 0
        start = self._swa_epoch_start
        self._start = int(max_epochs * start) if isinstance(start, float) else start
        self._max_epochs = max_epochs
        if self.swa_start > self.swa_end:
            rank_zero_warn(
                f"`StochasticWeightAveraging(swa_epoch_start={start})` begins after the last of"
                f" `max_epochs={max_epochs}` epochs, so nothing is averaged. Choose an earlier epoch."
            )
        elif self.pl_module_contains_batch_norm(pl_module):
            trainer.fit_loop.max_epochs = max_epochs + 1
            self._adds_epoch = True
        self.restore_optimizers(trainer, pl_module)

    def restore_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put `SWALR` in the place of the scheduler, and take over the average, if the loaded state has one.

        Args:
            trainer: The Trainer, with the optimizers that `configure_optimizers` has made.
            pl_module: The module.
        """
        if self._loaded is not None and self._loaded["n_averaged"]:
            self._begin(trainer, pl_module)  # the scheduler's state comes after this
            assert self._average is not None  # noqa: S101 - just made
            self._average.load_state_dict(self._loaded["average_model_state"])
            self.n_averaged = torch.tensor(self._loaded["n_averaged"], device=self.n_averaged.device)  # type: ignore[union-attr]  # just made

    def _check_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"`StochasticWeightAveraging` works with one optimizer, but `configure_optimizers` returned"
                f" {len(trainer.optimizers)}: which schedule is to follow `swa_lrs`? Use `WeightAveraging` instead."
            )
        if len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                f"`StochasticWeightAveraging` replaces the scheduler, but there are"
                f" {len(trainer.lr_scheduler_configs)}. Chain them, e.g. with `torch.optim.lr_scheduler.SequentialLR`."
            )
        if trainer.max_epochs in (None, -1):
            raise MisconfigurationException(
                f"`StochasticWeightAveraging` averages the last epochs, but `max_epochs={trainer.max_epochs}` does not"
                " say which is the last. Set `max_epochs`, or use `WeightAveraging`, which needs no end."
            )
        if not pl_module.automatic_optimization and self.pl_module_contains_batch_norm(pl_module):
            raise MisconfigurationException(
                "`StochasticWeightAveraging` computes the statistics of batch norms in an epoch without gradients, but"
                " with manual optimization `training_step` runs backward itself. Use `automatic_optimization = True`,"
                " or `WeightAveraging`, which averages the statistics as well."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on inside the last epoch, if the checkpoint was taken there."""
        momenta = None if self._loaded is None else self._loaded.get("momenta")
        if momenta is not None and trainer.fit_loop.restarted_mid_epoch:
            self.momenta = dict(zip(batch_norms(pl_module).values(), momenta, strict=True))
            self._average_statistics()
            trainer.fit_loop.learn(False)
        self._loaded = None

    # ---- epochs
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average in the last epochs; in the one after them, let batch norms see the averaged weights at work."""
        epoch = trainer.current_epoch
        if self.swa_start <= epoch <= self.swa_end and epoch > self._latest_update_epoch:
            if self._average is None:
                self._begin(trainer, pl_module)
                trainer.fit_loop.follow_schedulers()
            self.update_parameters(self._average, pl_module, self.n_averaged, self._avg_fn)  # type: ignore[arg-type]  # begun
            self._latest_update_epoch = epoch
        elif epoch == self.swa_end + 1 and self._adds_epoch and self._average is not None:
            self._transfer(pl_module)
            self.reset_batch_norm_and_save_state(pl_module)
            trainer.fit_loop.learn(False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average, if training went to its end."""
        self._finish(trainer, pl_module)
        if self._average is not None and not self._is_transferred:
            rank_zero_warn(
                f"Training ended in epoch {trainer.current_epoch - 1}, before the last one, {self.swa_end}, so"
                " `StochasticWeightAveraging` leaves the trained weights in the module instead of their average."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average also where there was nothing left to train."""
        self._finish(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo what a run that broke down has left."""
        if stage == "fit":
            self._leave_last_epoch(trainer)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_over = trainer.current_epoch > self.swa_end and not self._adds_epoch
        if is_over and self._average is not None and not self._is_transferred:
            self._transfer(pl_module)
        self._leave_last_epoch(trainer)

    def _leave_last_epoch(self, trainer: Trainer) -> None:
        if self.momenta is not None:
            self.reset_momenta()
        trainer.fit_loop.learn(True)
        if self._adds_epoch:
            trainer.fit_loop.max_epochs = self._max_epochs
            self._adds_epoch = False

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = self._device or pl_module.device
        self._average = copy.deepcopy(pl_module).to(device)
        self.n_averaged = torch.tensor(0, dtype=torch.long, device=device)
        [optimizer] = trainer.optimizers
        swa_lrs: Any = self._swa_lrs  # torch takes a list as well, but does not say so
        scheduler = SWALR(optimizer, swa_lrs, self._annealing_epochs, self._annealing_strategy)
        configs = trainer.lr_scheduler_configs
        if configs:
            log.info(f"Swapping scheduler `{type(configs[0].scheduler).__name__}` for `SWALR`")
        configs[:] = [LRSchedulerConfig(scheduler)]

    def _transfer(self, pl_module: LightningModule) -> None:
        assert self._average is not None  # noqa: S101 - its callers have seen to that
        self.transfer_weights(self._average, pl_module)
        self._is_transferred = True

    # ---- weights
    @staticmethod
    @torch.no_grad()
    def transfer_weights(src_pl_module: nn.Module, dst_pl_module: nn.Module) -> None:
        """Copy parameters from one module to another.

        Args:
            src_pl_module: Where from.
            dst_pl_module: Where to.
        """
        for source, target in zip(src_pl_module.parameters(), dst_pl_module.parameters(), strict=True):
            target.copy_(source)

    @staticmethod
    @torch.no_grad()
    def update_parameters(
        average_model: nn.Module, model: nn.Module, n_averaged: Tensor, avg_fn: _AverageFunction
    ) -> None:
        """Take the parameters of a module into an average.

        Args:
            average_model: Holds the average.
            model: Holds the new parameters.
            n_averaged: How many are averaged already; counted up in place.
            avg_fn: Computes the new average.
        """
        for averaged, parameter in zip(average_model.parameters(), model.parameters(), strict=True):
            new = parameter.to(averaged.device)
            averaged.copy_(new if n_averaged == 0 else avg_fn(averaged, new, n_averaged))
        n_averaged += 1

    @staticmethod
    def avg_fn(averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor) -> Tensor:
        """Return the mean, one value more included.

        Args:
            averaged_model_parameter: The mean so far.
            model_parameter: The new value.
            num_averaged: How many values the mean is of.
        """
        return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (num_averaged + 1)

    # ---- batch norm
    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Tell whether a module has batch norms.

        Args:
            pl_module: The module.
        """
        return bool(batch_norms(pl_module))

    def reset_batch_norm_and_save_state(self, pl_module: nn.Module) -> None:
        """Let batch norms begin a plain mean over all batches; `reset_momenta` undoes it.

        Args:
            pl_module: The module.
        """
        self.momenta = {each: each.momentum for each in batch_norms(pl_module).values()}
        for each in batch_norms(pl_module).values():
            each.reset_running_stats()
        self._average_statistics()

    def reset_momenta(self) -> None:
        """Give batch norms their momenta back."""
        for module, momentum in (self.momenta or {}).items():
            module.momentum = momentum  # type: ignore[assignment]  # a batch norm
        self.momenta = None

    def _average_statistics(self) -> None:
        for module in self.momenta or {}:
            module.momentum = None  # type: ignore[assignment]  # a batch norm, to which None means a plain mean

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return the average and how far it is."""
        average = self._average
        return {
            "n_averaged": 0 if self.n_averaged is None else int(self.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None,  # it is among the schedulers of the checkpoint
            "average_model_state": None if average is None else average.state_dict(),
            "is_transferred": self._is_transferred,
            "momenta": None if self.momenta is None else list(self.momenta.values()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._loaded = state_dict
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        self._is_transferred = state_dict.get("is_transferred", False)


def _check_arguments(swa_lrs: Any, start: Any, annealing_epochs: Any, annealing_strategy: Any) -> None:
    rates = list(swa_lrs) if isinstance(swa_lrs, Iterable) and not isinstance(swa_lrs, str) else [swa_lrs]
    if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates):
        raise MisconfigurationException(
            f"`StochasticWeightAveraging(swa_lrs={swa_lrs!r})` must be a float above 0, or a list of such floats."
        )
    is_count = isinstance(start, int) and not isinstance(start, bool) and start >= 1
    if not (is_count or (isinstance(start, float) and 0 <= start <= 1)):
        raise MisconfigurationException(
            f"`StochasticWeightAveraging(swa_epoch_start={start!r})` must be the number of an epoch (an int of at least"
            " 1) or a fraction of `max_epochs` (a float from 0 to 1)."
        )
    check_number(
        "StochasticWeightAveraging", "annealing_epochs", annealing_epochs, "the epochs until `swa_lrs` is reached.",
        least=0, whole=True, error=MisconfigurationException,
    )  # fmt: skip
    if annealing_strategy not in ("cos", "linear"):
        raise MisconfigurationException(
            f"`StochasticWeightAveraging(annealing_strategy={annealing_strategy!r})` must be 'cos' or 'linear'."
        )
