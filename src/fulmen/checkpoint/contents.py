"""What is in a checkpoint: sections, each with a function that dumps it and one that restores it.

The keys are those of Lightning 2.6, so files move both ways; ours alone are under the one key `"fulmen"`, which
Lightning ignores. A run restores in this order:

    restore_modules -> restore_callbacks -> restore_precision      before the strategy is set up
    restore_loops -> restore_optimizers_and_schedulers             in `fit`, after `on_fit_start`
    restore_rng                                                    in `fit`, just before the first batch
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fulmen.checkpoint.ranks import dump_of_ranks, position_of_rank, rng_of_rank
from fulmen.checkpoint.run_record import dump_run
from fulmen.core.hparams import dump_hparams
from fulmen.utilities.deepspeed import DeepSpeedFolder, is_deepspeed_folder
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.migration import LAYOUT_VERSION, VERSION_KEY
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.seed import set_rng_states

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = [
    "OWN_KEY",
    "SECTIONS",
    "Section",
    "dump_checkpoint",
    "restore_callbacks",
    "restore_loops",
    "restore_modules",
    "restore_optimizers_and_schedulers",
    "restore_precision",
    "restore_rng",
]

_Contents: TypeAlias = dict[str, Any]

OWN_KEY = "fulmen"
"""The key of everything that Lightning's layout has no place for."""
_OWN_VERSION = 1
_LOOPS = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}


def dump_checkpoint(trainer: Trainer, weights_only: bool = False) -> _Contents:
    """Collect the state of a run.

    Args:
        trainer: The Trainer, with a model attached.
        weights_only: Leave out what is only needed to train on: callbacks, optimizers, schedulers, precision, random
            state and the position in the data.

    Returns:
        A dict that loads with `weights_only=True`, except for what users put into it.
    """
    validation = trainer.fit_loop.validation
    if weights_only or validation is None or trainer.fit_loop.val_loop.is_ending:
        return _dump(trainer, weights_only)
    with validation.not_begun():
        return _dump(trainer, weights_only)


def _dump(trainer: Trainer, weights_only: bool) -> _Contents:
    checkpoint: _Contents = {}
    own: dict[str, Any] = {}
    for section in SECTIONS:
        if section.is_weights or not weights_only:
            part = section.dump(trainer)
            own.update(part.pop(OWN_KEY, {}))
            checkpoint.update(part)
    checkpoint[OWN_KEY] = {"version": _OWN_VERSION, **own}
    module = trainer.lightning_module
    for callback in trainer.callbacks:
        if not weights_only or getattr(callback, "replaces_weights", False):
            callback.on_save_checkpoint(trainer, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    return checkpoint


# ---- progress and weights


def _dump_progress(trainer: Trainer) -> _Contents:
    return {"epoch": trainer.current_epoch, "global_step": trainer.global_step, VERSION_KEY: LAYOUT_VERSION}


def _dump_weights(trainer: Trainer) -> _Contents:
    return {"state_dict": trainer.strategy.lightning_module_state_dict()}


def _restore_weights(trainer: Trainer, checkpoint: _Contents) -> None:
    module = trainer.lightning_module
    module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)


def restore_modules(trainer: Trainer, checkpoint: _Contents) -> None:
    """Restore the module (`on_load_checkpoint`, then weights) and the datamodule; for every stage.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint.
    """
    _restore_weights(trainer, checkpoint)
    _restore_datamodule(trainer, checkpoint)


# ---- loops


def _dump_loops(trainer: Trainer) -> _Contents:
    return {"loops": {name: getattr(trainer, name).state_dict() for name in _LOOPS.values()}}


def restore_loops(trainer: Trainer, checkpoint: _Contents) -> None:
    """Restore the counters of the loop that this run uses, and for `fit` the position in the data.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint; without the entry `"loops"`, counting begins anew.

    Raises:
        MisconfigurationException: In `fit`, the checkpoint has more epochs than `max_epochs`.
    """
    name = _LOOPS[trainer.state.fn]  # type: ignore[index]  # set while a run goes on; equals its string
    state = checkpoint.get("loops", {}).get(name)
    if state is not None:
        getattr(trainer, name).load_state_dict(state)
    if name != "fit_loop":
        return
    if state is None:
        trainer.fit_loop.begin_anew()
    position = position_of_rank(trainer, checkpoint.get(OWN_KEY, {}))
    if position is not None:
        trainer.fit_loop.load_position_state(position)
    max_epochs = trainer.max_epochs
    if max_epochs not in (None, -1) and trainer.current_epoch > max_epochs:
        raise MisconfigurationException(
            f"The checkpoint has current_epoch={trainer.current_epoch}, but `Trainer(max_epochs={max_epochs})` ends"
            " earlier, so there is nothing to train. Raise `max_epochs`, or resume from an earlier checkpoint."
        )


# ---- callbacks


def _dump_callbacks(trainer: Trainer) -> _Contents:
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
    return {"callbacks": {key: state for key, state in states.items() if state}}


def restore_callbacks(trainer: Trainer, checkpoint: _Contents) -> None:
    """Call `on_load_checkpoint` of all callbacks, then give each its state; for every stage.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint; nothing happens for one with weights only.
    """
    states = checkpoint.get("callbacks")
    if states is None:
        return
    _warn_about_unclaimed(trainer, states)
    module = trainer.lightning_module
    for callback in trainer.callbacks:
        callback.on_load_checkpoint(trainer, module, checkpoint)
    for callback in trainer.callbacks:
        state = states.get(callback.state_key)
        if state is not None:
            callback.load_state_dict(copy.deepcopy(state))  # a callback may keep what it gets and change it


def _warn_about_unclaimed(trainer: Trainer, states: dict[Any, Any]) -> None:
    unclaimed = states.keys() - {callback.state_key for callback in trainer.callbacks}
    if unclaimed:
        rank_zero_warn(
            f"The checkpoint has states of callbacks that this Trainer does not have: {sorted(map(str, unclaimed))}."
            " They are not restored. To go on with them, pass such callbacks: `Trainer(callbacks=[...])`."
        )


# ---- optimizers, schedulers, precision


def _dump_optimizers(trainer: Trainer) -> _Contents:
    strategy = trainer.strategy
    return {"optimizer_states": [strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]}


def _dump_schedulers(trainer: Trainer) -> _Contents:
    return {"lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]}


def restore_optimizers_and_schedulers(trainer: Trainer, checkpoint: _Contents) -> None:
    """Restore what `configure_optimizers` made; only for `fit`.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint.

    Raises:
        KeyError: The checkpoint lacks them, e.g. because it has weights only.
    """
    _restore_optimizers(trainer, checkpoint)
    _restore_schedulers(trainer, checkpoint)


def _restore_optimizers(trainer: Trainer, checkpoint: _Contents) -> None:
    if not trainer.strategy.lightning_restore_optimizer:
        return
    if "optimizer_states" not in checkpoint and (path := trainer.ckpt_path) and is_deepspeed_folder(path):
        raise ValueError(
            f"`{path}` is a folder of DeepSpeed, whose optimizer states `{type(trainer.strategy).__name__}` cannot take"
            f" over. Go on from it {DeepSpeedFolder(path).conditions}; or begin a new fit with its weights: `fulmen"
            f" consolidate {path} --output_file weights.ckpt`, and `Model.load_from_checkpoint('weights.ckpt')`."
        )
    _required(checkpoint, "optimizer_states", "optimizer")
    trainer.strategy.load_optimizer_state_dict(checkpoint)


def _restore_schedulers(trainer: Trainer, checkpoint: _Contents) -> None:
    states = _required(checkpoint, "lr_schedulers", "learning rate scheduler")
    _warn_if_unequal(len(states), len(trainer.lr_scheduler_configs))
    for config, state in zip(trainer.lr_scheduler_configs, states, strict=False):
        config.scheduler.load_state_dict(state)


def _required(checkpoint: _Contents, key: str, what: str) -> list[Any]:
    if key not in checkpoint:
        raise KeyError(
            f"Training cannot go on: the checkpoint has no {what} state ({key!r}). It probably holds weights only, as"
            " `ModelCheckpoint(save_weights_only=True)` saves them. Resume from a full checkpoint, or take the weights"
            " alone with `Model.load_from_checkpoint(path)`."
        )
    states: list[Any] = checkpoint[key]
    return states


def _warn_if_unequal(num_saved: int, num_now: int) -> None:
    if num_saved != num_now:
        rank_zero_warn(
            f"The checkpoint has {num_saved} learning rate scheduler state(s), but `configure_optimizers` now returns"
            f" {num_now}. They are matched in order, and those without a partner start anew."
        )


def _dump_precision(trainer: Trainer) -> _Contents:
    precision = trainer.strategy.precision_plugin
    state = precision.state_dict()
    return {type(precision).__qualname__: state} if state else {}


def restore_precision(trainer: Trainer, checkpoint: _Contents) -> None:
    """Restore the precision plugin, e.g. the scale of a gradient scaler; for every stage.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint.
    """
    precision = trainer.strategy.precision_plugin
    names = type(precision).__qualname__, *precision.interchangeable_with
    state = next((checkpoint[name] for name in names if checkpoint.get(name) is not None), None)
    if state is not None:
        precision.load_state_dict(state)


# ---- hyperparameters and datamodule


def _dump_hparams(trainer: Trainer) -> _Contents:
    section: _Contents = {}
    pickled: dict[str, Any] = {}
    for owner in (trainer.lightning_module, trainer.datamodule):
        if owner is not None:
            part = dump_hparams(owner)
            pickled.update(part.pop(OWN_KEY, {}).get("pickled_hparams", {}))
            section.update(part)
    if pickled:
        section[OWN_KEY] = {"pickled_hparams": pickled}
    return section


def _dump_datamodule(trainer: Trainer) -> _Contents:
    if trainer.datamodule is None:
        return {}
    state = trainer.datamodule.state_dict()
    return {type(trainer.datamodule).__qualname__: state} if state else {}


def _restore_datamodule(trainer: Trainer, checkpoint: _Contents) -> None:
    datamodule = trainer.datamodule
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])


# ---- random state and position in the data


def _dump_position(trainer: Trainer) -> _Contents:
    return {OWN_KEY: dump_of_ranks(trainer)}


def restore_rng(trainer: Trainer, checkpoint: _Contents) -> None:
    """Set the random state that was saved, so that the run goes on as if it had not been interrupted.

    Args:
        trainer: The Trainer of the run.
        checkpoint: A migrated checkpoint; one that Lightning wrote has no random state, and nothing happens.
    """
    states = rng_of_rank(trainer, checkpoint.get(OWN_KEY, {}))
    if states is not None:
        set_rng_states(states)


def _dump_run(trainer: Trainer) -> _Contents:
    return {OWN_KEY: dump_run(trainer)}


# ---- the list


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a checkpoint: how it is taken from a run and given back."""

    dump: Callable[[Trainer], _Contents]
    """Returns entries of the checkpoint; those under `OWN_KEY` are merged."""
    restore: Callable[[Trainer, _Contents], None] | None
    """`None` for what a run only reads by other means."""
    is_weights: bool = False
    """Whether it is also in a checkpoint with weights only."""


# in the order of the calls that users see, which is also the order of the keys
SECTIONS = (
    Section(_dump_progress, None, is_weights=True),  # epoch and step come back with the loops' counters
    Section(_dump_weights, _restore_weights, is_weights=True),
    Section(_dump_loops, restore_loops, is_weights=True),
    Section(_dump_callbacks, restore_callbacks),
    Section(_dump_optimizers, _restore_optimizers),
    Section(_dump_schedulers, _restore_schedulers),
    Section(_dump_precision, restore_precision),
    Section(_dump_hparams, None, is_weights=True),  # read by `load_from_checkpoint`; a living object keeps its own
    Section(_dump_datamodule, _restore_datamodule, is_weights=True),
    Section(_dump_position, restore_rng),  # `restore_loops` takes the position back
    Section(_dump_run, None),  # `run_record` gives it to the loggers
)
