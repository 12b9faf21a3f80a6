"""What a run in worker processes leaves behind, brought back to the process that called `fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.core.states import TrainerFn
from fulmen.trainer.run import configure_model
from fulmen.utilities.seed import collect_rng_states, set_rng_states

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["TrainerCarrier"]

_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


class TrainerCarrier:
    """Takes the state of a Trainer from the worker of rank 0 to the process that started the workers.

    Afterwards the Trainer there stands as if it had run in that process: weights, optimizers, schedulers, counters,
    callbacks, logged values and random numbers.

    Args:
        trainer: The Trainer; in a worker its copy there.
        module: What it runs.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = module

    def pack(self) -> dict[str, Any]:
        """Return the state; all workers must call it, and that of rank 0 is whole."""
        trainer = self._trainer
        strategy = trainer.strategy
        return {
            **strategy.whole_states(),
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "loops": {name: getattr(trainer, name).state_dict() for name in _LOOPS},
            "batches_that_stepped": trainer.fit_loop.batches_that_stepped,
            "num_batches": trainer.fit_loop.num_batches,
            "callbacks": strategy.gathered({each.state_key: each.state_dict() for each in trainer.callbacks}),
            "versions": [logger.version for logger in trainer.loggers],
            "callback_metrics": _on_cpu(trainer.callback_metrics),
            "logged_metrics": _on_cpu(trainer.logged_metrics),
            "progress_bar_metrics": dict(trainer.progress_bar_metrics),
            "history": trainer.history.state_dict(),
            "notes": trainer.notes.runs,
            "status": trainer.state.status,
            "should_stop": trainer.should_stop,
            "max_epochs": trainer.fit_loop.max_epochs,
            "ckpt_path": trainer.ckpt_path,
            "rng": collect_rng_states(),
        }

    def unpack(self, payload: dict[str, Any]) -> None:
        """Give the Trainer of this process the state that `pack` returned."""
        trainer = self._trainer
        trainer.attach(self._module)
        configure_model(trainer)
        is_empty = any(parameter.is_meta for parameter in self._module.parameters())  # it got memory in the workers
        self._module.load_state_dict(payload["state_dict"], assign=is_empty)
        for name, state in payload["loops"].items():
            getattr(trainer, name).load_state_dict(state)
        trainer.fit_loop.progress.batches_that_stepped = payload["batches_that_stepped"]
        trainer.fit_loop.max_epochs = payload["max_epochs"]
        for callback in trainer.callbacks:  # those that the module adds are made in the workers only
            state = payload["callbacks"].get(callback.state_key)
            if not state:
                continue
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = state["dirpath"]
            callback.load_state_dict(state)
        for logger, version in zip(trainer.loggers, payload["versions"], strict=True):
            logger.take_version(version)
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.fit_loop.ran_in_workers(payload["num_batches"])
            self._unpack_optimizers(payload)
        trainer.metrics.show(payload["callback_metrics"], payload["logged_metrics"], payload["progress_bar_metrics"])
        trainer.history.load_state_dict(payload["history"])
        trainer.notes.runs = payload["notes"]
        trainer.state.status, trainer.state.stage = payload["status"], None
        trainer.should_stop = payload["should_stop"]
        trainer.note_ckpt_path(payload["ckpt_path"])
        set_rng_states(payload["rng"])

    def _unpack_optimizers(self, payload: dict[str, Any]) -> None:
        trainer = self._trainer
        trainer.strategy.setup_optimizers(trainer)
        for callback in trainer.callbacks:
            if restore := getattr(callback, "restore_optimizers", None):  # it has changed them in the workers
                restore(trainer, self._module)
        for optimizer, state in zip(trainer.optimizers, payload["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for config, state in zip(trainer.lr_scheduler_configs, payload["schedulers"], strict=True):
            config.scheduler.load_state_dict(state)


def _on_cpu(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in metrics.items()}
