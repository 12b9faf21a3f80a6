"""GradientNoiseScale: how large a batch is worth its cost, measured while training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fulmen.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from fulmen.callbacks.gradient_monitor import check_interval, norm_of
from fulmen.callbacks.sharding import check_takes_whole
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_number
from fulmen.utilities.tree import extract_batch_size

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["GradientNoiseScale"]


class GradientNoiseScale(Callback):
    """Log the simple gradient noise scale: how many samples a batch should have at most.

    It is the trace of the covariance of the samples' gradients over the squared norm of the true gradient. Batches far
    below it learn about as much from each sample as single samples would, so a larger batch saves steps at hardly any
    cost; far above it, more samples hardly improve the step.

    The gradient of each micro-batch on each rank (small batches) is compared with that of the whole step (the large
    batch); the mean of their squared norms tells noise and signal apart. So there must be more than one micro-batch in
    a step, by `accumulate_grad_batches`, several ranks, or both. The loss must be a mean over samples.

    Only the steps that it logs are measured: then each backward pass computes a norm, and ranks exchange three numbers.
    Hooks on the parameters are there in these steps only.

    Source: McCandlish, Kaplan, Amodei: "An Empirical Model of Large-Batch Training", arXiv:1812.06162, appendix A.1.

    Args:
        every_n_steps: Steps between two measurements; `None` for the Trainer's `log_every_n_steps`.
        decay: Of the running means of numerator and denominator, which alone are too noisy; 0 takes each as it is.

    Attributes:
        noise_scale: The latest estimate in samples; NaN before the first, and as long as the gradient is lost in noise.

    Raises:
        MisconfigurationException: An argument has no accepted value, or when training begins, there is only one
            micro-batch in a step, the module optimizes by hand, or gradients are divided among ranks.

    Example::

        Trainer(accumulate_grad_batches=4, callbacks=GradientNoiseScale(every_n_steps=10))
    """

    def __init__(self, every_n_steps: int | None = None, *, decay: float = 0.95) -> None:
        check_interval(type(self).__name__, every_n_steps)
        check_number(
            "GradientNoiseScale", "decay", decay, "the weight of earlier measurements in the running mean, e.g. 0.95.",
            least=0, below=1, error=MisconfigurationException,
        )  # fmt: skip
        # settings
        self.every_n_steps = every_n_steps
        self.decay = decay
        # state, kept in checkpoints
        self._noise = 0.0  # running mean of the trace, times its weight
        self._signal = 0.0  # the same of the squared norm of the gradient
        self._weight = 0.0
        # of this run
        self._every = 0
        self._hooks: list[RemovableHandle] = []
        self._in_pass: list[Tensor] = []  # squared norms of the parameters' gradients of one backward pass
        self._small: list[Tensor] = []  # the same of whole micro-batches
        self._inverse_sizes: list[float] = []

    @property
    def noise_scale(self) -> float:
        """The latest estimate in samples."""
        return self._noise / self._signal if self._signal > 0 else math.nan

    # ---- before
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies under which no rank sees the whole gradient of a micro-batch."""
        check_takes_whole(
            trainer, type(self).__name__, "reads the whole gradient of each micro-batch",
            "Measure with `strategy='ddp'` or on one device, on a smaller model of the same kind.",
        )  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse runs in which there is nothing to compare."""
        name = type(self).__name__
        self._every = trainer.log_every_n_steps if self.every_n_steps is None else self.every_n_steps
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"`{name}` cannot tell the micro-batches of `{type(pl_module).__name__}`, which optimizes by hand. Use"
                " automatic optimization with `Trainer(accumulate_grad_batches=...)`."
            )
        if trainer.splits_batches:
            raise MisconfigurationException(
                f'`{name}` does not know the sizes of the parts that `Trainer(accumulate_grad_batches="auto")` makes of'
                " a batch. Pass a number."
            )
        has_plan = any(isinstance(each, GradientAccumulationScheduler) for each in trainer.callbacks)
        if trainer.strategy.data_parallel_size == 1 and trainer.accumulate_grad_batches == 1 and not has_plan:
            raise MisconfigurationException(
                f"`{name}` compares the gradients of several micro-batches of a step, but there is only one. Set"
                " `Trainer(accumulate_grad_batches=2)` or more, with as much smaller batches, or use several devices."
            )

    # ---- the small batches
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to listen at the first micro-batch of a step that is measured."""
        loop = trainer.fit_loop
        if not self._every or loop.has_started_window or (loop.batches_that_stepped + 1) % self._every:
            return
        self._small, self._inverse_sizes, self._in_pass = [], [], []
        self._hooks = [
            parameter.register_hook(self._note)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for parameter in pl_module.parameters()
            if parameter.requires_grad
        ]

    def _note(self, gradient: Tensor) -> None:
        """Take the gradient of one parameter, before it is added to others and averaged over ranks."""
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        self._in_pass.append(values.detach().float().square().sum())

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the gradient of one micro-batch."""
        if not self._hooks or not self._in_pass:
            return
        self._small.append(torch.stack(self._in_pass).sum())
        self._in_pass = []
        self._inverse_sizes.append(1.0 / max(1, extract_batch_size(trainer.fit_loop.metrics.batch)))

    # ---- the large one
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compare, log, and stop listening."""
        if not self._hooks:
            return
        self._stop_listening()
        optimization = trainer.fit_loop.optimization
        # a shorter last batch is weighted, which is no mean over samples of this rank
        is_even = trainer.strategy.agree([int(optimization.weight == 1.0)], op="min")[0]  # type: ignore[union-attr]
        if not is_even or not self._small:
            return
        scaler = trainer.scaler
        factor = optimization.divisor / (1.0 if scaler is None else scaler.get_scale())  # type: ignore[union-attr]
        gradients = [each.grad for each in pl_module.parameters() if each.grad is not None]
        numbers = torch.stack([torch.stack(self._small).mean() * factor**2, norm_of(gradients).square()])
        inverse_size = sum(self._inverse_sizes) / len(self._inverse_sizes)
        own = torch.cat([numbers, numbers.new_tensor([inverse_size])])
        if trainer.world_size > 1:
            own = trainer.strategy.all_reduce(own, reduce_op="mean")
        small, large_norm, inverse_size = own.tolist()  # sync: a row
        self._add(small, large_norm, inverse_size, len(self._small) * trainer.strategy.data_parallel_size)
        self._log(trainer)

    def _add(self, small: float, large: float, inverse_size: float, count: int) -> None:
        """Take in one comparison: E|g|^2 = |G|^2 + trace / size, for both sizes of batches."""
        if count < 2 or not math.isfinite(small + large):
            return
        noise = (small - large) / (inverse_size * (1.0 - 1.0 / count))
        signal = (count * large - small) / (count - 1)
        keep = self.decay
        self._noise = keep * self._noise + (1.0 - keep) * noise
        self._signal = keep * self._signal + (1.0 - keep) * signal
        self._weight = keep * self._weight + (1.0 - keep)

    def _log(self, trainer: Trainer) -> None:
        if not self._weight:
            return
        row = {
            "gradient_noise/trace": self._noise / self._weight,
            "gradient_noise/signal": self._signal / self._weight,
        }
        if self._signal > 0:
            row["gradient_noise/scale"] = self.noise_scale
        trainer.metrics.send(row, trainer.fit_loop.batches_that_stepped, trainer.current_epoch)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in row.items()})

    # ---- after
    def _stop_listening(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hooks behind, also after an error."""
        self._stop_listening()
        self._small, self._in_pass = [], []

    def state_dict(self) -> dict[str, Any]:
        """Return the running means."""
        return {"noise": self._noise, "signal": self._signal, "weight": self._weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._noise = state_dict["noise"]
        self._signal = state_dict["signal"]
        self._weight = state_dict["weight"]
