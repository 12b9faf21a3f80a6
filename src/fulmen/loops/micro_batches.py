"""`accumulate_grad_batches="auto"`: a batch that does not fit into memory is computed in smaller parts.

the batch whole, or in parts of the size that was found before
out of memory (on any rank): drop what was computed, halve the size, compute it again with the same random numbers
all parts done (on all ranks): one gradient, the mean over all samples of the batch; only now ranks exchange it
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulmen.loops.gradients import average_gradients
from fulmen.loops.optimization import AutomaticOptimization
from fulmen.metrics.deferred import DeferringBoard
from fulmen.strategies.ddp import DDPStrategy
from fulmen.strategies.strategy import Strategy
from fulmen.utilities.distributed import broadcast_tensors
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.memory import garbage_collection_cuda, is_oom_error, recursive_detach
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import collect_rng_states, set_rng_states
from fulmen.utilities.splitting import even_sizes, num_samples, split_batch

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule

__all__ = ["MicroBatchedOptimization", "check_can_split"]

_NO_LIMIT = 2**62


class _AnotherRankFailed(Exception):
    """This rank is done with its batch, but memory has run out on another one."""


class MicroBatchedOptimization(AutomaticOptimization):
    """Automatic optimization that survives running out of memory in `training_step` and backward.

    The gradient is that of the whole batch if the loss is a mean over samples: the loss of each part is weighted by its
    share of the samples. Before a batch is computed again, its gradients, logged values, metric objects, buffers and
    random numbers are put back. What cannot be put back is what `training_step` changes elsewhere, in Python.

    `training_step` and the hooks around backward are called once per part. Statistics over the batch (batch norm) are
    over the part. On several ranks gradients are exchanged once the batch is done on all of them, not while backward
    runs; steps that communicate themselves are refused.
    """

    def __init__(self, *args: Any, board: DeferringBoard, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._board = board
        self._due = False
        self._is_cleared = False  # whether the gradients of the window before are gone
        if self.is_parallel:  # torch's wrapper communicates in forward and backward, where a rank may break off
            self.training_step = self.module.training_step

    def step(self, batch: Any, batch_idx: int, *, due: bool, divisor: int) -> dict[str, Any]:
        """Work on one batch; see `AutomaticOptimization.step`."""
        self._due = due
        return super().step(batch, batch_idx, due=due, divisor=divisor)

    def forward_backward(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Compute the gradient of a batch in as many attempts as it takes."""
        self._is_cleared = self.window_batches != 1
        losses_before = self.window_losses
        earlier = self._set_gradients_aside()
        self._share_buffers()
        rng = collect_rng_states()
        buffers = {name: buffer.detach().clone() for name, buffer in self.module.named_buffers()}
        while True:
            limit = self.progress.micro_batch_size
            is_done, agreed, wish = False, limit, limit
            try:
                with self._board.deferred():
                    loss = self._in_parts(batch, batch_idx)
                    is_done, agreed = True, self._agreed(limit)
                    if agreed != limit:
                        raise _AnotherRankFailed
                break
            except _AnotherRankFailed:
                pass
            except (RuntimeError, MemoryError) as error:
                if is_done or not is_oom_error(error) or (wish := self._halved(batch, error)) is None:
                    raise
            # outside of `except`, whose traceback holds what there is no memory for
            self._drop_attempt(losses_before)
            set_rng_states(rng)
            _load_buffers(self.module, buffers)
            self.progress.micro_batch_size = agreed if is_done else self._agreed(wish)
            self._tell(batch_idx, has_failed=not is_done)
        self._add_earlier(earlier)
        if self._due and self.is_parallel and self.optimizer is not None:
            average_gradients(self.strategy, self.optimizer)
        return loss

    # ---- one attempt
    def _in_parts(self, batch: Any, batch_idx: int) -> Tensor | None:
        exchanges = self.strategy.num_exchanges
        parts = self._parts(batch)
        total, weight = sum(size for _, size in parts), self.weight
        losses_before, contributed = self.window_losses, 0
        losses: list[Tensor] = []
        outputs: list[dict[str, Any]] = []
        try:
            for part, size in parts:
                self._board.begin_part(size)
                self.weight = weight * (size / total)
                loss = super().forward_backward(part, batch_idx)
                if loss is not None:
                    losses.append(loss)
                    contributed += size
                    if self.wants_outputs:
                        outputs.append(self.outputs)
                    if len(parts) > 1:
                        self._let_graph_go(losses, outputs)
        finally:
            self.weight = weight
        if self.strategy.num_exchanges != exchanges:
            raise RuntimeError(_COMMUNICATES)
        self.window_losses = losses_before + bool(losses)
        if len(parts) == 1:
            return losses[0] if losses else None
        if losses and contributed != total and self.optimizer is not None:
            self.strategy.scale_gradients(self.optimizer, total / contributed)
        self.last_loss = torch.stack(losses).sum() * (total / contributed) if losses else None
        if self.wants_outputs:
            self.outputs = _joined(outputs, self.last_loss, [size for _, size in parts])
        return self.last_loss

    def _parts(self, batch: Any) -> list[tuple[Any, int]]:
        most = self.progress.micro_batch_size
        if most is None:
            return [(batch, 1)]
        total = num_samples(batch)
        if total <= most:
            return [(batch, total)]
        sizes = even_sizes(total, most)
        return list(zip(split_batch(batch, sizes), sizes, strict=True))

    def _let_graph_go(self, losses: list[Tensor], outputs: list[dict[str, Any]]) -> None:
        losses[-1] = self.last_loss = losses[-1].detach()
        if self.wants_outputs:
            outputs[-1] = recursive_detach(outputs[-1])

    def _zero_grad(self, batch_idx: int) -> None:
        if not self._is_cleared:  # not for each part
            super()._zero_grad(batch_idx)
            self._is_cleared = True

    # ---- after memory has run out
    def _halved(self, batch: Any, error: BaseException) -> int | None:
        """Return a size that is worth a try; `None` if single samples do not fit, which the error then says.

        Raises:
            MisconfigurationException: The batch cannot be divided.
        """
        computed = min(num_samples(batch), self.progress.micro_batch_size or _NO_LIMIT)
        if computed > 1:
            return (computed + 1) // 2
        error.args = (
            f"{error}\nMICRO-BATCHES (fulmen): a single sample does not fit into memory, so the batch cannot be divided"
            " any further. Use a smaller model or sample, activation checkpointing, or a lower precision.",
        )
        return None

    def _drop_attempt(self, losses_before: int) -> None:
        self.scope.hook = None
        self.outputs, self.last_loss, self.window_losses = {}, None, losses_before
        for parameter in self._parameters():
            parameter.grad = None
        garbage_collection_cuda()

    def _tell(self, batch_idx: int, *, has_failed: bool) -> None:
        failed = self.strategy.gather_objects(has_failed)
        ranks = ", ".join(str(rank) for rank, has in enumerate(failed) if has)
        rank_zero_warn(
            f"Out of memory in batch {batch_idx} of epoch {self.progress.epochs.current.completed}"
            f"{f' on rank {ranks}' if self.is_parallel else ''}: micro-batches of {self.progress.micro_batch_size} from"
            " now on. The batch is computed again; its gradient stays that of the whole batch."
        )

    # ---- what an attempt changes
    def _parameters(self) -> Iterator[nn.Parameter]:
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                yield from group["params"]

    def _set_gradients_aside(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Take away the gradients of earlier batches of the window, which an attempt must not spoil."""
        if self.window_batches == 1:
            return []
        aside = [(parameter, parameter.grad) for parameter in self._parameters() if parameter.grad is not None]
        for parameter, _ in aside:
            parameter.grad = None
        return aside

    def _add_earlier(self, aside: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, gradient in aside:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    # ---- several ranks
    def _agreed(self, wish: int | None) -> int | None:
        """Return the least that any rank wishes."""
        agreed = -self.strategy.agree([-(wish or _NO_LIMIT)])[0]
        return None if agreed == _NO_LIMIT else agreed

    def _share_buffers(self) -> None:
        """Do what torch's wrapper would do before each forward pass: rank 0's buffers hold for all."""
        wrapper = self.strategy.model
        if self.is_parallel and isinstance(wrapper, DistributedDataParallel) and wrapper.broadcast_buffers:
            broadcast_tensors(self.module.buffers(), group=wrapper.process_group)


_COMMUNICATES = (
    "`training_step`, or a hook around backward, exchanges something between ranks, but with"
    " `Trainer(accumulate_grad_batches='auto')` ranks may compute different numbers of micro-batches, and would then"
    " wait for each other forever. Exchange in `on_train_batch_end`, or use `accumulate_grad_batches=<int>`."
)


def check_can_split(strategy: Strategy, module: LightningModule) -> None:
    """Refuse runs whose batches cannot be computed in parts.

    Args:
        strategy: The strategy of the run.
        module: The module.

    Raises:
        MisconfigurationException: The module optimizes by hand, or ranks communicate within a step.
    """
    setting, name = "`Trainer(accumulate_grad_batches='auto')`", type(module).__name__
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{setting} cannot work with `{name}`, which optimizes by hand: a step of an optimizer cannot be taken back"
            " when memory runs out after it. Use automatic optimization, or leave the argument out."
        )
    if strategy.world_size == 1:
        return
    if not isinstance(strategy, DDPStrategy) or not strategy.averages_gradients_plainly:
        raise MisconfigurationException(
            f"{setting} cannot work with `{type(strategy).__name__}` as it is set up: a rank that runs out of memory"
            " must be able to break off without the others, which takes the whole module on each rank and gradients"
            " that are simply averaged. Use `strategy='ddp'` without communication hooks, or an int."
        )
    if any(isinstance(child, nn.SyncBatchNorm) for child in module.modules()) or strategy.layer_sync is not None:
        raise MisconfigurationException(
            f"{setting} cannot work with `sync_batchnorm=True` on several ranks: a rank that runs out of memory would"
            " leave the others waiting in a layer. Leave one of them out."
        )


@torch.no_grad()
def _load_buffers(module: nn.Module, saved: dict[str, Tensor]) -> None:
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])


def _joined(outputs: list[dict[str, Any]], loss: Tensor | None, sizes: list[int]) -> dict[str, Any]:
    """Put together what the parts returned: samples side by side, numbers as their mean, all else as a list."""
    if loss is None or not outputs:
        return {}
    if len(outputs) != len(sizes):  # `training_step` has returned None for a part
        return {"loss": loss.clone()}
    joined = {key: _joined_value([each.get(key) for each in outputs], sizes) for key in outputs[0]}
    return {**joined, "loss": loss.clone()}


def _joined_value(values: list[Any], sizes: list[int]) -> Any:
    lengths = [len(value) if isinstance(value, Tensor) and value.ndim else None for value in values]
    if lengths == sizes:
        return torch.cat(values)
    is_number = [isinstance(value, float) or (isinstance(value, Tensor) and not value.ndim) for value in values]
    if all(is_number):
        return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
    return values
