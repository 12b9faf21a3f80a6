"""Every hook, once: who receives it, in which order, and whether `self.log` works inside it.

    setup
    on_fit_start
      on_sanity_check_start .. validation .. on_sanity_check_end
      on_train_start
        on_train_epoch_start
          on_train_batch_start
            training_step
            on_before_zero_grad, optimizer_zero_grad      (first batch of a window)
            on_before_backward, backward, on_after_backward
            on_before_optimizer_step, configure_gradient_clipping, optimizer_step   (last batch of a window)
          on_train_batch_end
          on_validation_start                              (when due)
            on_validation_epoch_start
              on_validation_batch_start, validation_step, on_validation_batch_end
            on_validation_epoch_end
          on_validation_end
        on_train_epoch_end
      on_train_end
    on_fit_end
    teardown

An *event* is announced to several receivers; a *call* is a plain method call on the module or datamodule.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "CALLBACKS",
    "CALLS",
    "DATAMODULE",
    "EVENTS",
    "LOG_RULES",
    "MODULE",
    "MONITORS",
    "PER_EPOCH",
    "PER_EVAL_BATCH",
    "PER_STEP",
    "STRATEGY",
    "Event",
    "LogRule",
    "Receiver",
]


class Receiver(Enum):
    """Who is told of an event."""

    DATAMODULE = "datamodule"
    CALLBACKS = "callbacks"
    MODULE = "module"
    MONITORS = "monitors"  # EarlyStopping and Checkpoint callbacks, told last: they see all metrics and save all state
    STRATEGY = "strategy"


@dataclass(frozen=True)
class LogRule:
    """What `self.log` does inside a hook when `on_step` and `on_epoch` are not given."""

    on_step: bool
    on_epoch: bool
    step_allowed: bool = True


PER_STEP = LogRule(on_step=True, on_epoch=False)
PER_EVAL_BATCH = LogRule(on_step=False, on_epoch=True)
PER_EPOCH = LogRule(on_step=False, on_epoch=True, step_allowed=False)

DATAMODULE, CALLBACKS, MODULE = Receiver.DATAMODULE, Receiver.CALLBACKS, Receiver.MODULE
MONITORS, STRATEGY = Receiver.MONITORS, Receiver.STRATEGY
_ALL = (CALLBACKS, MODULE, STRATEGY)
_BOTH = (CALLBACKS, MODULE)
_MONITORED = (CALLBACKS, MODULE, MONITORS)


@dataclass(frozen=True)
class Event:
    """One hook: its name, its receivers in calling order, and its logging rule (`None`: logging is an error)."""

    name: str
    receivers: tuple[Receiver, ...]
    log: LogRule | None = None


def _evaluation(stage: str) -> tuple[Event, ...]:
    epoch, batch = (None, None) if stage == "predict" else (PER_EPOCH, PER_EVAL_BATCH)
    return (
        Event(f"on_{stage}_start", _ALL, log=epoch),
        Event(f"on_{stage}_epoch_start", _BOTH, log=epoch),
        Event(f"on_{stage}_batch_start", _BOTH, log=batch),
        Event(f"on_{stage}_batch_end", _BOTH, log=batch),
        Event(f"on_{stage}_epoch_end", _BOTH, log=epoch),
        Event(f"on_{stage}_end", (*_MONITORED, STRATEGY)),
    )


EVENTS: tuple[Event, ...] = (
    Event("setup", (DATAMODULE, CALLBACKS, MODULE)),
    Event("on_fit_start", _BOTH),
    Event("on_sanity_check_start", (CALLBACKS,)),
    Event("on_sanity_check_end", (CALLBACKS,)),
    Event("on_train_start", _ALL, log=PER_EPOCH),
    Event("on_train_epoch_start", _BOTH, log=PER_EPOCH),
    Event("on_train_batch_start", _ALL, log=PER_STEP),
    Event("on_before_zero_grad", _BOTH, log=PER_STEP),
    Event("on_before_backward", _BOTH, log=PER_STEP),
    Event("on_after_backward", _BOTH, log=PER_STEP),
    Event("on_before_optimizer_step", _BOTH, log=PER_STEP),
    Event("on_train_batch_end", _MONITORED, log=PER_STEP),
    *_evaluation("validation"),
    Event("on_train_epoch_end", _MONITORED, log=PER_EPOCH),
    Event("on_train_end", _ALL),
    Event("on_fit_end", _BOTH),
    *_evaluation("test"),
    *_evaluation("predict"),
    Event("on_exception", (CALLBACKS, DATAMODULE)),
    Event("on_save_checkpoint", (CALLBACKS, MODULE)),
    Event("on_load_checkpoint", (MODULE, CALLBACKS)),
    Event("teardown", (DATAMODULE, CALLBACKS, MODULE)),
)

# Plain calls on the module (or datamodule), with their logging rule.
CALLS: dict[str, LogRule | None] = {
    "configure_callbacks": None,
    "prepare_data": None,
    "configure_sharded_model": None,
    "configure_model": None,
    "configure_optimizers": None,
    "train_dataloader": None,
    "val_dataloader": None,
    "test_dataloader": None,
    "predict_dataloader": None,
    "on_before_batch_transfer": None,
    "transfer_batch_to_device": None,
    "on_after_batch_transfer": None,
    "training_step": PER_STEP,
    "optimizer_zero_grad": PER_STEP,
    "backward": PER_STEP,
    "configure_gradient_clipping": PER_STEP,
    "clip_gradients": PER_STEP,
    "optimizer_step": PER_STEP,
    "lr_scheduler_step": None,
    "on_validation_model_zero_grad": None,
    "on_validation_model_eval": None,
    "validation_step": PER_EVAL_BATCH,
    "on_validation_model_train": None,
    "on_test_model_eval": None,
    "test_step": PER_EVAL_BATCH,
    "on_test_model_train": None,
    "on_predict_model_eval": None,
    "predict_step": None,
    "state_dict": None,
    "load_state_dict": None,
}

LOG_RULES: dict[str, LogRule | None] = {event.name: event.log for event in EVENTS} | CALLS
