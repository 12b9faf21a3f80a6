"""LightningOptimizer, and the reading of what `configure_optimizers` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.optimizer_step import clear_gradients
from fulmen.utilities.rank_zero import rank_zero_warn
from fulmen.utilities.types import LRSchedulerConfig

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule

__all__ = ["LightningOptimizer", "StepRunner", "do_nothing_closure", "parse_optimizers"]


def do_nothing_closure() -> None:
    """Stand in for a closure that was not given."""


StepRunner = Callable[..., Any]


class LightningOptimizer:
    """A user's optimizer whose `step` goes through the strategy and precision in use.

    It is an instance of the wrapped optimizer's class, and reads and writes that optimizer's attributes.

    Args:
        optimizer: The optimizer to wrap.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        own = self.__dict__
        own["_optimizer"] = optimizer
        own["_run_step"] = None
        own["_toggle"] = None
        kind = type(optimizer)
        # what the wrapped optimizer does at its end must not happen at the end of the wrapper
        members = {"__del__": _end_of_wrapper} if hasattr(kind, "__del__") else {}
        self.__class__ = type(f"Lightning{kind.__name__}", (LightningOptimizer, kind), members)

    def connect(self, run_step: StepRunner, toggle: Callable[[Optimizer, bool], Any]) -> None:
        """Let steps go through `run_step(optimizer, closure, **kwargs)` during a run."""
        own = self.__dict__
        own["_run_step"], own["_toggle"] = run_step, toggle

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer."""
        return cast(Optimizer, self.__dict__["_optimizer"])

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Step the optimizer.

        Args:
            closure: Computes the loss and its gradients again; optional.
            kwargs: Passed on to the optimizer's `step`.

        Raises:
            MisconfigurationException: `closure` cannot be called.
        """
        if closure is None:
            closure = do_nothing_closure
        elif not callable(closure):
            raise MisconfigurationException(
                f"`optimizer.step(closure={closure!r})`: a closure is a function that computes the loss."
            )
        run_step: StepRunner | None = self.__dict__["_run_step"]
        if run_step is None:
            return self.optimizer.step(closure, **kwargs)  # type: ignore[arg-type]  # any result will do
        return run_step(self.optimizer, closure, **kwargs)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let only this optimizer's parameters require gradients, inside the context.

        Args:
            sync_grad: Set False to skip the synchronisation of gradients between processes inside the context.
        """
        toggle: Callable[[Optimizer, bool], Any] | None = self.__dict__["_toggle"]
        if toggle is None:
            raise RuntimeError("`toggle_model` needs a running Trainer: it changes the module's parameters.")
        with toggle(self.optimizer, sync_grad):
            yield

    # ---- what torch's class would do on `self` is done on the wrapped optimizer
    def __getattribute__(self, name: str) -> Any:
        own: dict[str, Any] = object.__getattribute__(self, "__dict__")
        if name not in _MEMBERS and "_optimizer" in own:
            attributes = own["_optimizer"].__dict__
            if name in attributes:  # before a default of the same name that the class has
                return attributes[name]
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("__class__", "step"):  # a scheduler that is given the wrapper replaces its `step`, which calls ours
            object.__setattr__(self, name, value)
        else:
            setattr(self.__dict__["_optimizer"], name, value)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        optimizer = self.optimizer
        if set_to_none and type(optimizer).zero_grad is Optimizer.zero_grad:
            clear_gradients(optimizer)
        else:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def __reduce__(self) -> tuple[Any, ...]:
        return LightningOptimizer, (self.optimizer,)

    def __repr__(self) -> str:
        return f"Lightning{self.optimizer!r}"


_MEMBERS = frozenset({*vars(LightningOptimizer), "__dict__", "__class__"})


def _end_of_wrapper(wrapper: LightningOptimizer) -> None:
    """Stand in for the `__del__` of a wrapped optimizer, which is called for that one itself."""


# ---- configure_optimizers
_SCHEDULER_KEYS = tuple(field.name for field in fields(LRSchedulerConfig))
_IN_DICT = "`configure_optimizers` returned an lr_scheduler dict"
_FORMS = (
    "an optimizer; a list of optimizers; ([optimizers], [schedulers]);"
    " {'optimizer': ..., 'lr_scheduler': ...}; a list of such dicts; or None"
)


def parse_optimizers(
    returned: Any, module: LightningModule, *, steps_any_scheduler: bool
) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Read what `configure_optimizers` returned.

    Args:
        returned: Its return value.
        module: The module it belongs to.
        steps_any_scheduler: Whether the module overrides `lr_scheduler_step`.

    Returns:
        The optimizers, and the checked scheduler configurations.

    Raises:
        MisconfigurationException: The value has none of the accepted forms, or settings exclude each other.
        TypeError: A scheduler cannot be saved.
    """
    optimizers, schedulers, monitor = _split(returned)
    configs = [_scheduler_config(s, monitor, module) for s in schedulers]
    for optimizer in optimizers:
        if not _steps(optimizer):
            raise _unknown(returned)
    _check_schedulers(configs, optimizers, module, steps_any_scheduler)
    return optimizers, configs


def _split(returned: Any) -> tuple[list[Any], list[Any], str | None]:
    if returned is None:
        rank_zero_warn(
            "`configure_optimizers` returned None: the loop runs, but no weight is changed. Return an optimizer, or"
            " step by hand with `self.automatic_optimization = False`."
        )
        return [], [], None
    if _steps(returned):
        return [returned], [], None
    if isinstance(returned, Mapping):
        optimizer, scheduler, monitor = _from_mapping(returned)
        return [optimizer], scheduler, monitor
    if isinstance(returned, (list, tuple)):
        return _from_sequence(returned)
    raise _unknown(returned)


def _from_mapping(returned: Mapping[str, Any]) -> tuple[Any, list[Any], str | None]:
    if "optimizer" not in returned:
        raise _unknown(returned)
    if unknown := set(returned) - {"optimizer", "lr_scheduler", "monitor"}:
        rank_zero_warn(
            f"`configure_optimizers` returned a dict with the keys {sorted(unknown)}, which are not used."
            " Known are 'optimizer', 'lr_scheduler' and 'monitor'."
        )
    scheduler = returned.get("lr_scheduler")
    return returned["optimizer"], [] if scheduler is None else [scheduler], returned.get("monitor")


def _from_sequence(returned: Sequence[Any]) -> tuple[list[Any], list[Any], str | None]:
    if not returned:
        raise MisconfigurationException(
            f"`configure_optimizers` returned an empty {type(returned).__name__}. Return {_FORMS}."
        )
    if len(returned) == 2 and isinstance(returned[0], list) and all(_steps(o) for o in returned[0]):
        schedulers = returned[1]
        return list(returned[0]), list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers], None
    if all(_steps(item) for item in returned):
        return list(returned), [], None
    if all(isinstance(item, Mapping) for item in returned):
        parsed = [_from_mapping(item) for item in returned]
        return [p[0] for p in parsed], [s for p in parsed for s in p[1]], None
    raise _unknown(returned)


def _unknown(returned: Any) -> MisconfigurationException:
    advice = f"Return {_FORMS}."
    if isinstance(returned, (list, tuple)):
        shown = f"a {type(returned).__name__} of {[type(item).__name__ for item in returned]}"
    elif isinstance(returned, Mapping):
        shown = f"a {type(returned).__name__} with the keys {sorted(map(str, returned))}"
    else:
        shown = _shown(returned)
    if isinstance(returned, type):
        advice = f"Make an object of it: `{returned.__name__}(self.parameters(), ...)`."
    return MisconfigurationException(f"`configure_optimizers` returned {shown}, which cannot be stepped. {advice}")


def _shown(value: Any) -> str:
    return f"the class `{value.__name__}`" if isinstance(value, type) else f"a {type(value).__name__}: {value!r:.80}"


def _steps(value: Any) -> bool:
    return isinstance(value, Optimizer) or (
        not isinstance(value, (LRScheduler, type))
        and all(hasattr(value, name) for name in ("step", "param_groups", "state_dict", "load_state_dict"))
    )


def _scheduler_config(scheduler: Any, monitor: str | None, module: LightningModule) -> LRSchedulerConfig:
    if isinstance(scheduler, LRSchedulerConfig):
        return scheduler
    if not isinstance(scheduler, Mapping):
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        if plateau and monitor is None and module.automatic_optimization:
            raise MisconfigurationException(
                "`configure_optimizers` returned a `ReduceLROnPlateau` scheduler without the metric it follows. Return"
                " {'optimizer': ..., 'lr_scheduler': scheduler, 'monitor': 'val_loss'}."
            )
        config = LRSchedulerConfig(scheduler, reduce_on_plateau=plateau, monitor=monitor)
    else:
        config = _from_scheduler_dict(scheduler, monitor, module)
    if config.interval == "epoch" and isinstance(config.scheduler, OneCycleLR) and module.automatic_optimization:
        rank_zero_warn(
            "A `OneCycleLR` scheduler follows batches, but it is stepped once per epoch here. Return"
            " {'scheduler': scheduler, 'interval': 'step'} as 'lr_scheduler'.",
            category=RuntimeWarning,
        )
    return config


def _from_scheduler_dict(given: Mapping[str, Any], monitor: str | None, module: LightningModule) -> LRSchedulerConfig:
    if "scheduler" not in given:
        raise MisconfigurationException(
            f"{_IN_DICT} with the keys {sorted(map(str, given))}, but without 'scheduler'. Add the scheduler itself:"
            " {'scheduler': scheduler, ...}."
        )
    if unknown := set(given) - set(_SCHEDULER_KEYS):
        rank_zero_warn(
            f"{_IN_DICT} with the keys {sorted(map(str, unknown))}, which are not used."
            f" Known are {list(_SCHEDULER_KEYS)}.",
            category=RuntimeWarning,
        )
    ignored = sorted({"reduce_on_plateau", "monitor", "strict"} & set(given))
    if ignored and not module.automatic_optimization:
        rank_zero_warn(
            f"The lr_scheduler keys {ignored} have no effect with manual optimization: you step the scheduler.",
            category=RuntimeWarning,
        )
    config = LRSchedulerConfig(**{key: value for key, value in given.items() if key in _SCHEDULER_KEYS})
    if "reduce_on_plateau" not in given:
        config.reduce_on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
    if config.monitor is None:
        config.monitor = monitor
    if config.interval not in ("step", "epoch"):
        raise MisconfigurationException(
            f"{_IN_DICT} with 'interval': {config.interval!r}, but it must be 'step' or 'epoch'."
        )
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise MisconfigurationException(
            f"{_IN_DICT} with 'frequency': {config.frequency!r}, but it must be an int of at least 1."
        )
    if config.reduce_on_plateau and config.monitor is None and module.automatic_optimization:
        raise MisconfigurationException(
            f"{_IN_DICT} with `{type(config.scheduler).__name__}` but without the metric that it follows. Add its"
            " name: 'monitor': 'val_loss'."
        )
    return config


def _check_schedulers(
    configs: list[LRSchedulerConfig], optimizers: list[Optimizer], module: LightningModule, steps_any_scheduler: bool
) -> None:
    for config in configs:
        scheduler = config.scheduler
        name = type(scheduler).__name__
        if isinstance(scheduler, type) or not hasattr(scheduler, "step"):
            raise TypeError(
                f"`configure_optimizers` returned {_shown(scheduler)} as a scheduler. Return an object with `step`,"
                " e.g. `torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)`."
            )
        if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
            raise TypeError(
                f"The scheduler `{name}` has no `state_dict` and `load_state_dict`, so it could not be resumed."
                " Define both, or return a scheduler of torch."
            )
        is_known = isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)) or steps_any_scheduler
        if module.automatic_optimization and not is_known:
            raise MisconfigurationException(
                f"`{name}` is not a scheduler of torch, so it is not known how to step it."
                " Override `LightningModule.lr_scheduler_step`."
            )
        owner = getattr(scheduler, "optimizer", None)
        if optimizers and owner is not None and not any(owner is optimizer for optimizer in optimizers):
            raise MisconfigurationException(
                f"The scheduler `{name}` belongs to an optimizer that `configure_optimizers` did not return."
                " Return that optimizer too, or make the scheduler with one that is returned."
            )
