"""Evaluation on several ranks: each sees its share of the batches, and nobody waits for one that has run out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fulmen.data.prefetch import EvalBatches
from fulmen.loops.agreement import SignalAgreement
from fulmen.utilities.warnings import PossibleUserWarning

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["EvenSteps", "TogetherSteps", "evenly", "interleaved", "signal_agreement"]


class _SharedSteps:
    """What ranks do that have different numbers of batches.

    Args:
        trainer: The Trainer of the run.
        batches: What this rank evaluates.
        name: Of the step, for the warning.
        step: Called with the first `arguments` of batch, batch index and dataloader index.
        arguments: How many it takes.
        to_device: Moves a batch; `None` if there is nothing to move.
        make_context: Returns what a step runs in.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: EvalBatches,
        name: str,
        *,
        step: Callable[..., Any],
        arguments: int,
        to_device: Callable[[Any, int], Any] | None,
        make_context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._trainer = trainer
        self._batches = batches
        self._name = name
        self._step, self._arguments = step, arguments
        self._to_device, self._make_context = to_device, make_context

    def _take_part(self, batch: Any, batch_idx: int, dataloader_idx: int, *, times: int = 1) -> None:
        """Call the step for the sake of other ranks; nothing of it is recorded."""
        if self._to_device is not None:
            batch = self._to_device(batch, dataloader_idx)
        scope = self._trainer.scope
        for number in range(1, times + 1):
            scope.hook = self._name
            with self._trainer.metrics.unrecorded(), self._make_context():
                self._step(*(batch, batch_idx + number, dataloader_idx)[: self._arguments])
            scope.hook = None


class EvenSteps(_SharedSteps):
    """The batches of this rank, and repeats of its last one where the steps of other ranks need it to take part.

    Batches are not padded, so one rank can have a batch more than another. That is fine while the steps keep to
    themselves. If a step communicates (`self.all_gather` in `validation_step`), a rank that has run out repeats its
    last batch, of which nothing is recorded.
    """

    def __init__(self, trainer: Trainer, batches: EvalBatches, name: str, **how: Any) -> None:
        super().__init__(trainer, batches, name, **how)
        own = batches.num_batches
        self._missing = [max(counts) - mine for mine, counts in zip(own, batches.global_num_batches, strict=True)]
        self._communicates = False
        self._is_known = False

    def step(self, *args: Any) -> Any:
        """Call the step, and learn from the first call whether it communicates."""
        if self._is_known:
            return self._step(*args)
        strategy = self._trainer.strategy
        before = strategy.num_exchanges
        output = self._step(*args)
        self._is_known = True
        self._communicates = strategy.num_exchanges != before
        return output

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Yield batch, batch index and dataloader index."""
        last: tuple[Any, int, int] | None = None
        for item in self._batches:
            if last is not None and item[2] != last[2]:
                self._repeat(*last)
            last = item
            yield item
        if last is not None:
            self._repeat(*last)

    def _repeat(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        missing = self._missing[dataloader_idx]
        if not self._communicates or not missing:
            return
        warnings.warn(  # by the rank that it is about: rank 0 never runs out first
            f"`{self._name}` communicates between ranks, but they have different numbers of batches. Rank"
            f" {self._trainer.global_rank} has run out and repeats its last batch, so that nobody waits; what is logged"
            " does not count it, but what your step gathers holds those samples twice. Gather at the end of the epoch.",
            category=PossibleUserWarning,
            stacklevel=2,
        )
        self._take_part(batch, batch_idx, dataloader_idx, times=int(missing))


class TogetherSteps(_SharedSteps):
    """The batches of this rank where each step takes all ranks, as they hold parts of the weights.

    Before each step the ranks tell whether they have a batch. One that has run out repeats its last batch, of which
    nothing is recorded; one that never had any gets one from another rank.
    """

    def __init__(self, trainer: Trainer, batches: EvalBatches, name: str, **how: Any) -> None:
        super().__init__(trainer, batches, name, **how)
        self._is_common = False  # a signal has come to some rank, and all know it, and none has run out

    @property
    def step(self) -> Callable[..., Any]:
        """What to call for a batch: the step itself."""
        return self._step

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Yield batch, batch index and dataloader index."""
        source, last = iter(self._batches), None
        while True:
            item = next(source, None)
            is_any, first_needed = self._compare(item is not None, last is not None)
            if not is_any:
                return
            if first_needed is not None:
                sent = self._trainer.strategy.broadcast(item, src=first_needed)
                last = sent if last is None else last
            if item is not None:
                last = item
                yield item
            elif last is not None:
                self._take_part(*last)

    def _compare(self, has_one: bool, had_one: bool) -> tuple[bool, int | None]:
        """Tell whether any rank has a batch; and which rank is to send one, if another has never had any."""
        signals, strategy = self._trainer.signals, self._trainer.strategy
        received = -1 if signals.received is None else signals.received
        rank = strategy.global_rank if has_one else strategy.world_size
        mine = [int(has_one), -int(has_one), int(not has_one and not had_one), -rank, received]
        is_any, minus_all, is_needed, minus_first, latest = strategy.agree(mine, op="max")
        self._is_common = minus_all == -1 and latest != -1
        if self._is_common:
            signals.received = latest
        return bool(is_any), -minus_first if is_needed and is_any else None

    # ---- signals: they came with the comparison

    def reached(self) -> bool:
        """Tell if all ranks know now of a signal."""
        return self._is_common

    def answer(self) -> bool:
        """Tell that nothing more can come: signals of the last steps are for the loop around this one."""
        return False


def evenly(
    trainer: Trainer,
    batches: EvalBatches,
    name: str,
    *,
    step: Callable[..., Any],
    arguments: int,
    to_device: Callable[[Any, int], Any] | None,
    make_context: Callable[[], AbstractContextManager[Any]],
) -> tuple[Iterable[tuple[Any, int, int]], Callable[..., Any]]:
    """Return what to iterate in an evaluation and what to call, where ranks have different numbers of batches."""
    if trainer.world_size == 1:
        return batches, step
    needs_all = trainer.strategy.needs_shadow_steps
    if all(len(set(counts)) == 1 and not (needs_all and math.inf in counts) for counts in batches.global_num_batches):
        return batches, step
    even = (TogetherSteps if needs_all else EvenSteps)(
        trainer, batches, name, step=step, arguments=arguments, to_device=to_device, make_context=make_context
    )
    return even, even.step


def signal_agreement(
    trainer: Trainer, batches: EvalBatches, source: Iterable[Any]
) -> SignalAgreement | TogetherSteps | None:
    """Return how ranks agree on a signal during an evaluation; `None` with one process.

    Args:
        trainer: The Trainer of the run.
        batches: What this rank evaluates.
        source: What `evenly` returned to iterate.
    """
    if trainer.world_size == 1:
        return None
    if isinstance(source, TogetherSteps):
        return source
    per_rank = [sum(counts) for counts in zip(*batches.global_num_batches, strict=True)]
    if any(math.isinf(count) for count in per_rank):  # streams may end after different numbers of batches
        return SignalAgreement(trainer.strategy, trainer.signals, has_end=True)
    return SignalAgreement(trainer.strategy, trainer.signals, count=int(min(per_rank, default=0)))


def interleaved(per_rank: list[list[Any]]) -> list[Any]:
    """Return what the ranks have for their batches in the order in which one process would see them.

    Args:
        per_rank: For each rank its list; rank r of W has the batches r, r + W, ...
    """
    most = max(map(len, per_rank), default=0)
    return [items[i] for i in range(most) for items in per_rank if i < len(items)]
