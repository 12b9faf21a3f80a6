"""ThroughputMonitor: batches, samples, tokens and floating point operations in a second as logged curves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fulmen.callbacks.rows import require_logger, train_row_is_due
from fulmen.core.callback import Callback
from fulmen.utilities.available_flops import get_available_flops
from fulmen.utilities.compile import holds_compiled
from fulmen.utilities.options import check_function
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.throughput import Throughput

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["ThroughputMonitor"]

_WINDOW_ARGUMENTS = ("available_flops", "world_size", "window_size", "separator")  # of `Throughput`
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64, "transformer": torch.bfloat16}


class _Mark(NamedTuple):
    """A moment after a batch, and the totals at it."""

    moment: Any
    batches: int
    samples: int
    lengths: int | None
    flops: int | None


class _Clock:
    """Seconds of computing: on a GPU by its own events, so that nothing has to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self.begin(0.0)

    def begin(self, already_s: float) -> None:
        """Go on from so many seconds."""
        self._already_s = already_s
        self._origin = self.now()

    def now(self) -> Any:
        """Return this moment, on the device's stream."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event

    def seconds(self, moment: Any) -> float:
        """Return how many seconds had passed at a moment."""
        if not self._is_cuda:
            return self._already_s + float(moment - self._origin)
        moment.synchronize()  # sync: a rate is read
        return self._already_s + float(self._origin.elapsed_time(moment)) / 1000.0


@dataclass(slots=True)
class _Stage:
    """What is measured in one stage."""

    throughput: Throughput
    clock: _Clock
    marks: deque[_Mark]  # not yet turned into readings
    totals: dict[str, float] = field(default_factory=lambda: {"time": 0.0, "batches": 0, "samples": 0, "lengths": 0})
    flops_per_sample: float | None = None  # counted; None until it is, and where the module gives a number

    def settle(self) -> None:
        """Turn marks into readings; waits for the last batch."""
        while self.marks:
            mark = self.marks.popleft()
            self.totals["time"] = self.clock.seconds(mark.moment)
            self.throughput.update(
                time=self.totals["time"], batches=mark.batches, samples=mark.samples, lengths=mark.lengths,
                flops=mark.flops,
            )  # fmt: skip


class ThroughputMonitor(Callback):
    """Log how fast batches are worked off, and which share of the chip's peak that is (MFU).

    Rows are written in the steps that the Trainer logs (`log_every_n_steps`): `<stage>/time`, `/batches`, `/samples`
    and `/lengths` since the start of the stage, and once the window is full the rates over it,
    `<stage>/device/<x>_per_sec` of this device and `<stage>/<x>_per_sec` of all, where `<x>` is batches, samples, items
    or flops, and `<stage>/device/mfu`. Stages are train, validate, test and predict. Time that a fit spends in
    validation is not counted as training; a resumed fit goes on from its totals.

    The floating point operations of a batch are the module's `flops_per_batch` if it has that attribute or property
    (it may depend on `self.training`). Otherwise those of the first batch of each stage are counted, which makes it
    slow, and taken in proportion to the number of samples; modules that are compiled cannot be counted. Devices that
    work on one batch together (tensor parallel) are taken to share its operations evenly.

    On a GPU events of its own clock are read when a row is due: no batch waits for another.

    Args:
        batch_size_fn: Number of samples of a batch.
        length_fn: Number of items of a batch, such as its tokens; `None` gives no such rate.
        kwargs: Arguments of `Throughput`: `window_size` and `separator`, and in place of what is found out
            `available_flops` and `world_size`.

    Attributes:
        available_flops: Peak of one device in operations a second, known from the start of a run on; `None` if the chip
            is not in the table.

    Raises:
        TypeError: No function, or an argument that `Throughput` does not have.
        ValueError: A value that it does not accept.
        MisconfigurationException: The Trainer has no logger; raised when a run begins.

    Example::

        Trainer(callbacks=ThroughputMonitor(batch_size_fn=lambda batch: batch[0].size(0), window_size=50))
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int],
        length_fn: Callable[[Any], int] | None = None,
        **kwargs: Any,
    ) -> None:
        name, why = type(self).__name__, "it takes a batch and returns a number, e.g. `lambda batch: len(batch[0])`."
        check_function(name, "batch_size_fn", batch_size_fn, why)
        check_function(name, "length_fn", length_fn, why, optional=True)
        if unknown := kwargs.keys() - _WINDOW_ARGUMENTS:
            raise TypeError(
                f"`{name}` got {sorted(unknown)}, which `Throughput` does not know. Besides the two functions it takes"
                f" {', '.join(f'`{each}`' for each in _WINDOW_ARGUMENTS)}."
            )
        Throughput(**kwargs)  # checks their values
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.kwargs = kwargs
        self.available_flops: float | None = kwargs.get("available_flops")
        self._stages: dict[str, _Stage] = {}
        self._saved: dict[str, float] | None = None  # totals of training before a resume
        self._val_batches = 0  # of earlier validations of this fit: the x axis of the next
        self._num_peers = 1  # how many devices share the operations of a batch
        self._counter: FlopCounterMode | None = None  # while a first batch is counted
        self._counts_flops = False
        self._module_knows = False

    # ---- before
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out how fast the device can be, and where the operations of a batch are known from."""
        require_logger(trainer, "ThroughputMonitor")
        if "available_flops" not in self.kwargs:
            dtype = _DTYPES.get(str(trainer.precision).partition("-")[0], torch.float32)
            self.available_flops = get_available_flops(trainer.strategy.root_device, dtype)
        self._stages.clear()
        self._val_batches = 0
        self._num_peers = trainer.world_size // trainer.strategy.data_parallel_size
        self._module_knows = hasattr(pl_module, "flops_per_batch")
        self._counts_flops = not self._module_knows and not holds_compiled(pl_module)
        if not self._module_knows and not self._counts_flops:
            rank_zero_warn(
                f"`ThroughputMonitor` cannot count the operations of `{type(pl_module).__name__}`, as it is compiled,"
                " so it gives no `flops_per_sec` and no `mfu`. Give the module an attribute `flops_per_batch`, e.g. by"
                " `fulmen.utilities.throughput.measure_flops` before it is compiled."
            )

    def _start(self, trainer: Trainer, stage: str) -> _Stage:
        strategy = trainer.strategy
        settings = {**self.kwargs, "available_flops": self.available_flops}
        if "world_size" not in settings:
            settings |= {"world_size": strategy.world_size, "data_parallel_size": strategy.data_parallel_size}
        throughput = Throughput(**settings)
        window = self.kwargs.get("window_size", 100)
        started = _Stage(throughput, _Clock(strategy.root_device), deque(maxlen=window))
        known = self._stages.get(stage)
        started.flops_per_sample = None if known is None else known.flops_per_sample
        self._stages[stage] = started
        return started

    # ---- train
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, at the totals of the run that goes on."""
        stage = self._start(trainer, "train")
        if self._saved is not None:
            stage.totals.update(self._saved)
            stage.clock.begin(self._saved["time"])
            self._saved = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count the operations of the first batch."""
        if self._counts_flops:
            self._count(self._stages["train"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Note the moment; log the rates in steps that are logged."""
        stage = self._stages["train"]
        self._note(stage, pl_module, batch)
        if train_row_is_due(trainer):
            self._log(trainer, "train", trainer.fit_loop.batches_that_stepped, trainer.current_epoch)

    # ---- evaluation
    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of validation, and stop that of training."""
        if trainer.sanity_checking:
            return
        if "train" in self._stages:
            self._stages["train"].settle()
        self._start(trainer, "validate")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Let the clock of training go on."""
        if trainer.sanity_checking:
            return
        self._val_batches += int(self._stages["validate"].totals["batches"])
        if "train" in self._stages:
            stage = self._stages["train"]
            stage.clock.begin(stage.totals["time"])

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of testing."""
        self._start(trainer, "test")

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of predicting."""
        self._start(trainer, "predict")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count the operations of the first batch of validation."""
        if self._counts_flops and not trainer.sanity_checking:
            self._count(self._stages["validate"])

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count the operations of the first batch of testing."""
        if self._counts_flops:
            self._count(self._stages["test"])

    def on_predict_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count the operations of the first batch of predicting."""
        if self._counts_flops:
            self._count(self._stages["predict"])

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Note the moment of a batch of validation; log the rates now and then."""
        if not trainer.sanity_checking:
            self._after_eval_batch(trainer, pl_module, "validate", batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Note the moment of a batch of testing; log the rates now and then."""
        self._after_eval_batch(trainer, pl_module, "test", batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Note the moment of a batch of predicting; log the rates now and then."""
        self._after_eval_batch(trainer, pl_module, "predict", batch)

    def _after_eval_batch(self, trainer: Trainer, pl_module: LightningModule, name: str, batch: Any) -> None:
        stage = self._stages[name]
        self._note(stage, pl_module, batch)
        num_batches, every = int(stage.totals["batches"]), trainer.log_every_n_steps
        if every and num_batches % every == 0:
            before = self._val_batches if name == "validate" else 0
            self._log(trainer, name, before + num_batches, None)

    # ---- measuring
    def _note(self, stage: _Stage, module: LightningModule, batch: Any) -> None:
        samples, totals = self.batch_size_fn(batch), stage.totals
        totals["batches"] += 1
        totals["samples"] += samples
        lengths = None
        if self.length_fn is not None:
            totals["lengths"] += self.length_fn(batch)
            lengths = int(totals["lengths"])
        if self._counter is not None:
            stage.flops_per_sample = self._stop_counting() / max(samples, 1)
        flops: int | None = None
        if self._module_knows:
            flops = int(module.flops_per_batch)  # type: ignore[arg-type]  # checked in `setup`
        elif stage.flops_per_sample is not None:
            flops = round(stage.flops_per_sample * samples)
        if flops is not None:
            flops //= self._num_peers
        now = stage.clock.now()
        stage.marks.append(_Mark(now, int(totals["batches"]), int(totals["samples"]), lengths, flops))

    def _log(self, trainer: Trainer, name: str, step: int, epoch: int | None) -> None:
        stage = self._stages[name]
        stage.settle()
        rates = stage.throughput.compute()
        separator = stage.throughput.separator
        trainer.metrics.send({f"{name}{separator}{key}": value for key, value in rates.items()}, step, epoch)

    def _count(self, stage: _Stage) -> None:
        if stage.flops_per_sample is None and self._counter is None:
            from torch.utils.flop_counter import FlopCounterMode

            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def _stop_counting(self) -> int:
        counter, self._counter = self._counter, None
        assert counter is not None  # noqa: S101 - only called while it counts
        counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # likewise
        return int(counter.get_total_flops())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop counting if the first batch failed."""
        if self._counter is not None:
            self._stop_counting()

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return the totals of training, and the place of the next validation on the x axis."""
        stage = self._stages.get("train")
        if stage is not None:
            stage.settle()
        return {"train": None if stage is None else dict(stage.totals), "val_batches": self._val_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._saved = state_dict["train"]
        self._val_batches = state_dict["val_batches"]
