"""What both searches check and agree on."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from typing import TYPE_CHECKING, Any

from fulmen.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from fulmen.trainer.trainer import Trainer

__all__ = ["Place", "check_name", "check_one_of", "holders", "set_everywhere", "value_of"]

_HOOKS = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_validation_start", "on_test_start",
    "on_predict_start",
)  # fmt: skip


class Place:
    """The point of a run at which a search takes place; it looks after signals that come meanwhile.

    Args:
        trainer: The running Trainer.
        name: Of the search, for errors.

    Raises:
        RuntimeError: There is no run, or it cannot be left alone at this point.
    """

    def __init__(self, trainer: Trainer, name: str) -> None:
        hook = trainer.scope.hook
        if hook not in _HOOKS:
            raise RuntimeError(
                f"`{name}` was called {f'in `{hook}`' if hook else 'outside of a run'}, where the state that it must"
                f" put back is half changed. Call it in one of {', '.join(_HOOKS)}, or use `Tuner`."
            )
        self._trainer = trainer
        self._signals = trainer.signals
        self._hook = hook

    def begin(self) -> None:
        """Tell the Trainer's own parts of the search what runs."""
        trainer = self._trainer
        trainer.events.build()
        trainer.begin_metrics()

    def is_interrupted(self) -> bool:
        """Whether a signal that ends the run has come on any rank; all must ask."""
        received = self._signals.ending
        latest = self._trainer.strategy.agree([-1 if received is None else received])[0]
        if latest != -1:
            self._signals.received = latest
        return latest != -1

    def leave_if_interrupted(self) -> None:
        """Leave the run if such a signal ended the search, with a checkpoint that begins it again where there is one.

        Raises:
            SIGTERMException: Leaves the run.
            KeyboardInterrupt: As well, for Ctrl-C.
        """
        if self._signals.ending is None:
            return
        if self._hook == "on_train_epoch_start":
            self._trainer.obey_signal()
        self._signals.raise_received()


def holders(module: Any, datamodule: Any, name: str) -> list[Any]:
    """Return who has a setting: the module, the datamodule, and the hyperparameters of both.

    Args:
        module: The module.
        datamodule: The datamodule, if there is one.
        name: Of the setting.
    """
    found: list[Any] = []
    for owner in (module, datamodule):
        if owner is not None:
            hparams = getattr(owner, "hparams", None)
            found += [owner] if hasattr(owner, name) else []
            found += [hparams] if isinstance(hparams, MutableMapping) and name in hparams else []
    return found


def set_everywhere(found: list[Any], name: str, value: Any) -> None:
    """Give a setting a value in all that have it.

    Args:
        found: As `holders` returned them.
        name: Of the setting.
        value: The value.
    """
    for holder in found:
        if isinstance(holder, MutableMapping):
            holder[name] = value
        else:
            setattr(holder, name, value)


def value_of(found: list[Any], name: str) -> Any:
    """Return a setting's value, of the last that has it."""
    return found[-1][name] if isinstance(found[-1], MutableMapping) else getattr(found[-1], name)


def check_name(name: str, value: Any) -> None:
    """Check the name of an attribute.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"`{name}={value!r}` must be a text: the name of the attribute that the search sets, in the module, the"
            " datamodule or their `hparams`."
        )


def check_one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Check a word.

    Raises:
        MisconfigurationException: It is none of those allowed.
    """
    if value not in allowed:
        raise MisconfigurationException(f"`{name}={value!r}` is not known. Use one of {sorted(allowed)}.")
