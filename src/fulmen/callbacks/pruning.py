"""ModelPruning: sets weights to zero while a model trains, and writes checkpoints that really have the zeros."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from fulmen.callbacks.same_on_ranks import take_from_first_rank
from fulmen.callbacks.sharding import check_takes_whole
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.options import check_number

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = ["ModelPruning"]

log = logging.getLogger(__name__)

_Targets: TypeAlias = "Sequence[tuple[nn.Module, str]]"
_Choice: TypeAlias = "bool | Callable[[int], bool]"

_FUNCTIONS: dict[str, Callable[..., nn.Module]] = {
    "ln_structured": torch_prune.ln_structured,
    "l1_unstructured": torch_prune.l1_unstructured,
    "random_structured": torch_prune.random_structured,
    "random_unstructured": torch_prune.random_unstructured,
}
_METHODS: dict[str, type[torch_prune.BasePruningMethod]] = {
    "ln_structured": torch_prune.LnStructured,
    "l1_unstructured": torch_prune.L1Unstructured,
    "random_structured": torch_prune.RandomStructured,
    "random_unstructured": torch_prune.RandomUnstructured,
}


class ModelPruning(Callback):
    """Prune weights with `torch.nn.utils.prune` at the end of epochs.

    While it trains, a pruned parameter `weight` is torch's pair `weight_orig` and `weight_mask`. What is saved, and the
    model after fit, has plain weights with zeros, under the names of the model that is not pruned. With
    `use_lottery_ticket_hypothesis`, the weights that are left go back to their initial values after each pruning
    (Frankle and Carbin 2019). A resumed run has the same masks; they and the values under them are in the callback's
    state, and so are the initial values.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", or a subclass of
            `torch.nn.utils.prune.BasePruningMethod`.
        parameters_to_prune: Pairs of a module and the name of its parameter; default are all of `parameter_names`.
        parameter_names: Names of parameters to prune in each module that has them; default "weight" and "bias".
        use_global_unstructured: Compare all weights with each other, rather than those of each parameter.
        amount: Share (float) or number (int) to prune of what is left, or a function that takes the epoch and returns
            it.
        apply_pruning: Whether to prune, or a function that takes the epoch and returns it.
        make_pruning_permanent: Save plain weights with zeros, and leave them in the model after fit. If False, both
            keep torch's pairs.
        use_lottery_ticket_hypothesis: Whether to go back to the initial values, or a function that takes the epoch.
        resample_parameters: With the lottery ticket, go back to new random values instead of the initial ones.
        pruning_dim: Dimension along which whole slices are pruned; for structured pruning.
        pruning_norm: The n of `ln_structured`.
        verbose: 0 is silent, 1 tells the sparsity of the model, 2 that of each parameter as well.
        prune_on_train_epoch_end: Prune at the end of training epochs; False: of validations.

    Raises:
        MisconfigurationException: Arguments are unknown or exclude each other.

    Example::

        Trainer(callbacks=ModelPruning("l1_unstructured", amount=lambda epoch: 0.5 if epoch == 5 else 0.0))
    """

    PARAMETER_NAMES: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: _Targets = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: _Choice = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: _Choice = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        if verbose not in (0, 1, 2):
            raise MisconfigurationException(
                f"`ModelPruning(verbose={verbose!r})` says how much is told: 0 is nothing, 1 the sparsity of the model,"
                " 2 that of each parameter."
            )
        if not callable(amount):
            _check_amount(amount)
        _check_choice("apply_pruning", apply_pruning)
        _check_choice("use_lottery_ticket_hypothesis", use_lottery_ticket_hypothesis)
        if not isinstance(parameters_to_prune, (list, tuple)):
            raise MisconfigurationException(
                f"`ModelPruning(parameters_to_prune={parameters_to_prune!r})` must be a list of pairs of a module and"
                " the name of its parameter, e.g. `[(model.encoder, 'weight')]`."
            )
        if isinstance(parameter_names, str):
            raise MisconfigurationException(
                f"`ModelPruning(parameter_names={parameter_names!r})` must be a list of names: [{parameter_names!r}]."
            )
        why = "the dimension along which slices are pruned, e.g. 0 for the rows of a linear layer."
        check_number(
            "ModelPruning", "pruning_dim", pruning_dim, why, whole=True, optional=True, error=MisconfigurationException
        )
        # ---- settings
        self.pruning_fn = _pruning_function(pruning_fn, use_global_unstructured, pruning_dim, pruning_norm)
        self.amount = amount
        self._given_targets = parameters_to_prune
        self._parameter_names = tuple(parameter_names or self.PARAMETER_NAMES)
        self._is_global = use_global_unstructured
        self._apply_pruning = apply_pruning
        self._makes_permanent = make_pruning_permanent
        self._use_lottery_ticket = use_lottery_ticket_hypothesis
        self._resamples = resample_parameters
        self._verbose = verbose
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        # ---- state
        self._targets: dict[str, tuple[nn.Module, str]] = {}  # by full name
        self._initial: dict[str, Tensor] = {}  # values that the lottery ticket goes back to
        self._loaded: dict[str, dict[str, Tensor]] | None = None
        self._handles: list[RemovableHandle] = []

    # ---- what
    def filter_parameters_to_prune(self, parameters_to_prune: _Targets = ()) -> _Targets:
        """Return the parameters that shall be pruned, of those found; for subclasses, all by default.

        Args:
            parameters_to_prune: Pairs of a module and the name of its parameter.
        """
        return parameters_to_prune

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: LightningModule, parameters_to_prune: _Targets = (), parameter_names: Sequence[str] = ()
    ) -> _Targets:
        """Return pairs of module and parameter name to prune, found in the module or checked against it.

        Args:
            pl_module: The module.
            parameters_to_prune: The user's pairs; if there are none, all parameters of `parameter_names`.
            parameter_names: Default "weight" and "bias".

        Raises:
            MisconfigurationException: A pair is not in the module, is no pair, or nothing is found.
        """
        modules = [each for each in pl_module.modules() if each is not pl_module]
        if not parameters_to_prune:
            names = parameter_names or ModelPruning.PARAMETER_NAMES
            found = [(each, name) for name in names for each in modules if _parameter(each, name) is not None]
            if not found:
                raise MisconfigurationException(
                    f"`ModelPruning` found no parameter called {' or '.join(map(repr, names))} in"
                    f" `{type(pl_module).__name__}`, so there is nothing to prune. Pass `parameter_names`, or pairs of"
                    " module and name as `parameters_to_prune`."
                )
            return found
        _check_pairs([pl_module, *modules], parameters_to_prune)
        return parameters_to_prune

    # ---- set-up
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the parameters, and keep their initial values if they are to come back."""
        if stage != "fit":
            return
        check_takes_whole(
            trainer, "ModelPruning", "compares the values of whole parameters",
            "Prune in a run with `strategy='ddp'` or on one device.",
        )  # fmt: skip
        _refuse_averages(trainer)
        self.make_pruning_permanent(pl_module)  # left by a run that broke down, or that kept the pairs
        pairs = self.sanitize_parameters_to_prune(pl_module, self._given_targets, self._parameter_names)
        kept = {(id(module), name) for module, name in self.filter_parameters_to_prune(pairs)}
        self._targets = {
            f"{prefix}.{name}" if prefix else name: (module, name)
            for prefix, module in pl_module.named_modules()
            for name in module._parameters
            if (id(module), name) in kept
        }
        _check_slices(self._targets, self.pruning_fn)
        self._loaded = None
        self._initial = {}
        if self._use_lottery_ticket and not self._resamples:
            self._initial = {key: _values(*target).detach().clone() for key, target in self._targets.items()}
        self._watch_state_dicts(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune as the run was that wrote the checkpoint, if one was loaded."""
        loaded, self._loaded = self._loaded, None
        for key, mask in (loaded or {}).get("masks", {}).items():
            module, name = self._targets[key]
            values = _values(module, name)
            _mask(module, name, mask.to(values.device))
            with torch.no_grad():
                values[~mask.bool()] = loaded["under_masks"][key].to(values)  # type: ignore[index]  # there if masks are

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave plain weights in the model also after an error."""
        if stage == "fit" and self._makes_permanent:
            self.make_pruning_permanent(pl_module)
        while self._handles:
            self._handles.pop().remove()

    # ---- pruning
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, unless that is bound to validations."""
        if self._prune_on_train_epoch_end:
            self._prune(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if that is bound to validations."""
        if not self._prune_on_train_epoch_end and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._prune(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the zeros part of the weights."""
        if self._makes_permanent:
            self.make_pruning_permanent(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the zeros part of the weights also where there was nothing left to train."""
        self.on_train_end(trainer, pl_module)

    def _prune(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        _check_amount(amount)
        if not amount or not _chosen(self._apply_pruning, epoch):
            return
        before = self._sparsity() if self._verbose else {}
        self.apply_pruning(amount)
        if _chosen(self._use_lottery_ticket, epoch):
            self.apply_lottery_ticket_hypothesis()
        if trainer.world_size > 1:  # random masks and values differ
            pairs = (_values_and_mask(*target) for target in self._targets.values())
            take_from_first_rank(trainer, chain.from_iterable(pairs))
        if self._verbose and trainer.is_global_zero:
            self._tell(before, amount)

    @torch.no_grad()
    def apply_pruning(self, amount: int | float) -> None:
        """Prune now.

        Args:
            amount: Share (float) or number (int) to prune of what is left.
        """
        targets = list(self._targets.values())
        with _parameter_order_kept(module for module, _ in targets):
            for module, name in targets:
                _refresh(module, name)
            if self._is_global:
                torch_prune.global_unstructured(targets, pruning_method=self.pruning_fn, amount=amount)
            else:
                for module, name in targets:
                    self.pruning_fn(module, name=name, amount=amount)
        for module, name in targets:
            _join_masks(module, name)

    @torch.no_grad()
    def apply_lottery_ticket_hypothesis(self) -> None:
        """Put the initial values, or new random ones, into the weights that are left; the masks stay."""
        if self._resamples:
            for module in dict.fromkeys(module for module, _ in self._targets.values()):
                self._resample(module)
            return
        for key, (module, name) in self._targets.items():
            values = _values(module, name)
            values.copy_(self._initial[key].to(values.device))

    def _resample(self, module: nn.Module) -> None:
        if not hasattr(module, "reset_parameters"):
            raise MisconfigurationException(
                f"`ModelPruning(resample_parameters=True)` needs a `reset_parameters` method, but"
                f" `{type(module).__name__}` has none. Write one, or leave `resample_parameters` out."
            )
        names = [name for owner, name in self._targets.values() if owner is module]
        masks = {name: getattr(module, f"{name}_mask") for name in names if _is_pruned(module, name)}
        with _parameter_order_kept([module]):  # `reset_parameters` wants plain parameters
            for name in masks:
                _fold(module, name)
            module.reset_parameters()  # type: ignore[operator]  # checked above
            for name, mask in masks.items():
                _mask(module, name, mask)

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Turn the pairs of original values and mask into plain parameters with zeros.

        Args:
            module: A module; its submodules are included.
        """
        for child in module.modules():
            names = [hook._tensor_name for hook in child._forward_pre_hooks.values() if _prunes(hook)]  # type: ignore[attr-defined]  # it has one
            with _parameter_order_kept([child]):
                for name in names:
                    _fold(child, name)

    # ---- what it says
    def _sparsity(self) -> dict[str, tuple[int, int]]:
        """Return the zeros and the size of each parameter."""
        return {
            key: (int((getattr(*target) == 0).sum()), getattr(*target).numel())  # sync: only if it is to be told
            for key, target in self._targets.items()
        }

    def _tell(self, before: dict[str, tuple[int, int]], amount: int | float) -> None:
        after = self._sparsity()
        total = sum(size for _, size in after.values())
        was, now = (sum(zeros for zeros, _ in each.values()) for each in (before, after))
        log.info(f"Applied `{_name_of(self.pruning_fn)}`. Pruned: {was}/{total} ({was / total:.2%}) -> "
                 f"{now}/{total} ({now / total:.2%})")  # fmt: skip
        if self._verbose == 2:
            for key, (zeros, size) in after.items():
                log.info(
                    f"Applied `{_name_of(self.pruning_fn)}` to `{key}` with amount={amount}."
                    f" Pruned: {before[key][0]} ({before[key][0] / size:.2%}) -> {zeros} ({zeros / size:.2%})"
                )

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return the masks, the values under them, and the initial values."""
        pruned = {key: target for key, target in self._targets.items() if _is_pruned(*target)}
        masks = {key: getattr(module, f"{name}_mask").bool() for key, (module, name) in pruned.items()}
        return {
            "masks": masks,
            "under_masks": {key: _values(*pruned[key]).detach()[~mask] for key, mask in masks.items()},
            "initial": self._initial,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until the optimizers are there."""
        self._loaded = state_dict
        self._initial = dict(state_dict["initial"])

    def _watch_state_dicts(self, pl_module: LightningModule) -> None:
        """Let the module save plain weights, and load them into whatever it has now."""
        targets, folds = self._targets, self._makes_permanent

        # plain functions, as a copy of the module would copy the object that a method belongs to
        def save(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
            for key in targets if folds else ():
                if (mask := state.pop(f"{prefix}{key}_mask", None)) is not None:
                    state[prefix + key] = state.pop(f"{prefix}{key}_orig").detach() * mask

        def load(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            for key, (owner, name) in targets.items():
                plain, original, mask = prefix + key, f"{prefix}{key}_orig", f"{prefix}{key}_mask"
                if _is_pruned(owner, name) and plain in state:
                    state[original], state[mask] = state.pop(plain), getattr(owner, f"{name}_mask")
                elif not _is_pruned(owner, name) and original in state:
                    state[plain] = state.pop(original) * state.pop(mask)

        self._handles.append(pl_module.register_state_dict_post_hook(save))  # type: ignore[no-untyped-call]
        self._handles.append(pl_module.register_load_state_dict_pre_hook(load))  # type: ignore[no-untyped-call]


# ---- arguments


def _pruning_function(
    given: Callable[..., Any] | str, is_global: bool, dim: int | None, norm: int | None
) -> Callable[..., Any]:
    """Return the class of a method for global pruning, or a function that prunes one parameter."""
    if isinstance(given, str):
        method = _known(given, dim, norm)
    elif inspect.isclass(given) and issubclass(given, torch_prune.BasePruningMethod):
        method = given
        if not is_global:
            raise MisconfigurationException(
                f"`ModelPruning(pruning_fn={given.__name__}, use_global_unstructured=False)` can't be combined: a"
                " class of torch is only used to prune globally. Pass its name, e.g. 'l1_unstructured', or leave"
                " `use_global_unstructured` True."
            )
    else:
        raise MisconfigurationException(
            f"`ModelPruning(pruning_fn={given!r})` must be one of {list(_FUNCTIONS)} or a subclass (not an instance) of"
            " `torch.nn.utils.prune.BasePruningMethod`."
        )
    if is_global:
        if (kind := getattr(method, "PRUNING_TYPE", None)) != "unstructured":
            raise MisconfigurationException(
                f"`ModelPruning(pruning_fn={given!r})` prunes whole slices of a parameter, which can't be compared over"
                f" all of them (PRUNING_TYPE is {kind!r}). Pass `use_global_unstructured=False`."
            )
        return method
    function = _FUNCTIONS[given]  # type: ignore[index]  # a name, as classes are refused above
    if given == "ln_structured":
        return partial(function, n=norm, dim=dim)
    return partial(function, dim=dim) if given == "random_structured" else partial(function)


def _known(name: str, dim: int | None, norm: int | None) -> type[torch_prune.BasePruningMethod]:
    if name not in _METHODS:
        raise MisconfigurationException(
            f"`ModelPruning(pruning_fn={name!r})` is not known. Choose one of {list(_METHODS)}, or pass a subclass of"
            " `torch.nn.utils.prune.BasePruningMethod`."
        )
    if name.endswith("_structured") and dim is None:
        raise MisconfigurationException(
            f"`ModelPruning(pruning_fn={name!r})` prunes whole slices, but does not know along which dimension."
            " Pass `pruning_dim`, e.g. 0 for the rows of a linear layer."
        )
    if name == "ln_structured" and not isinstance(norm, (int, float)) and norm not in ("fro", "nuc"):
        raise MisconfigurationException(
            f"`ModelPruning(pruning_fn='ln_structured', pruning_norm={norm!r})` compares slices by their norm, but does"
            " not know which. Pass the n of `torch.norm` as `pruning_norm`, e.g. 2."
        )
    return _METHODS[name]


def _check_amount(amount: Any) -> None:
    is_share = isinstance(amount, float) and 0 <= amount <= 1
    is_count = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 0
    if not is_share and not is_count:
        raise MisconfigurationException(
            f"`ModelPruning(amount={amount!r})` says how much to prune of what is left: give a share (a float from 0 to"
            " 1), a number of weights (an int of at least 0), or a function that takes the epoch and returns one of"
            " them."
        )


def _check_choice(name: str, choice: Any) -> None:
    if not isinstance(choice, bool) and not callable(choice):
        raise MisconfigurationException(
            f"`ModelPruning({name}={choice!r})` must be True, False, or a function that takes the epoch and returns one"
            " of them."
        )


def _check_slices(targets: dict[str, tuple[nn.Module, str]], function: Callable[..., Any]) -> None:
    """Refuse parameters that a structured method cannot prune; torch would say so at the end of an epoch."""
    dim = function.keywords.get("dim") if isinstance(function, partial) else None
    if dim is None:
        return
    shapes = {key: tuple(_values(*target).shape) for key, target in targets.items()}
    bad = {key: shape for key, shape in shapes.items() if len(shape) < 2 or not -len(shape) <= dim < len(shape)}
    if bad:
        raise MisconfigurationException(
            f"`ModelPruning(pruning_fn={_name_of(function)!r}, pruning_dim={dim})` prunes slices along dimension {dim},"
            f" which these parameters don't have, or they have only one dimension: {bad}. Leave them out, e.g. with"
            " `parameter_names=['weight']`, or by `parameters_to_prune`."
        )


def _check_pairs(modules: list[nn.Module], pairs: Any) -> None:
    ids = {id(each) for each in modules}
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], str)):
            raise MisconfigurationException(
                f"`ModelPruning(parameters_to_prune=...)` holds {pair!r}, but must hold pairs of a module and the name"
                " of its parameter, e.g. `[(model.encoder, 'weight')]`."
            )
        module, name = pair
        if id(module) not in ids or _parameter(module, name) is None:
            where = "is not part of the model" if id(module) not in ids else f"has no parameter {name!r}"
            raise MisconfigurationException(
                f"`ModelPruning(parameters_to_prune=...)` names {name!r} of {module!r}, which {where}. Pass modules of"
                " the object that is given to `Trainer.fit`."
            )


def _refuse_averages(trainer: Trainer) -> None:
    for callback in trainer.callbacks:
        if getattr(callback, "copies_module", False):
            raise MisconfigurationException(
                f"`ModelPruning` and `{type(callback).__name__}` can't be combined: pruning splits parameters in two"
                " while training, and the average would be taken over other tensors than those that the model computes"
                " with. Leave one of them out, or prune in a run after the other."
            )


def _chosen(choice: _Choice, epoch: int) -> bool:
    return bool(choice(epoch)) if callable(choice) else choice


def _name_of(function: Any) -> str:
    return str(getattr(function.func if isinstance(function, partial) else function, "__name__", function))


# ---- one parameter


def _prunes(hook: Any) -> bool:
    return isinstance(hook, torch_prune.BasePruningMethod)


def _is_pruned(module: nn.Module, name: str) -> bool:
    return f"{name}_orig" in module._parameters


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters.get(f"{name}_orig", module._parameters.get(name))


def _values(module: nn.Module, name: str) -> Tensor:
    """Return what the optimizer works on: the parameter, without its mask."""
    values = _parameter(module, name)
    assert values is not None  # noqa: S101 - checked when it was chosen
    return values


def _values_and_mask(module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    return _values(module, name), getattr(module, f"{name}_mask")


def _refresh(module: nn.Module, name: str) -> None:
    """Compute the pruned tensor anew, as it is from before the last optimizer step, and new masks go by it."""
    if _is_pruned(module, name):
        values, mask = _values_and_mask(module, name)
        setattr(module, name, values * mask)


def _fold(module: nn.Module, name: str) -> None:
    torch_prune.remove(module, name)  # type: ignore[no-untyped-call]  # torch's


def _mask(module: nn.Module, name: str, mask: Tensor) -> None:
    with _parameter_order_kept([module]):
        if _is_pruned(module, name):
            _fold(module, name)
        torch_prune.custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]  # torch's


def _join_masks(module: nn.Module, name: str) -> None:
    """Let one hook stand for all that pruned a parameter; torch keeps a list that grows with each pruning."""
    [key] = [key for key, hook in module._forward_pre_hooks.items() if _prunes(hook) and hook._tensor_name == name]  # type: ignore[attr-defined]  # it has one
    hook = torch_prune.CustomFromMask(getattr(module, f"{name}_mask"))
    hook._tensor_name = name
    module._forward_pre_hooks[key] = hook


@contextmanager
def _parameter_order_kept(modules: Any) -> Iterator[None]:
    """Keep the order of parameters where torch replaces one by another: optimizers' states go by it."""
    orders = {
        module: [name.removesuffix("_orig") if _is_pruned(module, name.removesuffix("_orig")) else name
                 for name in module._parameters]
        for module in modules
    }  # fmt: skip
    yield
    for module, names in orders.items():
        parameters = dict(module._parameters)
        module._parameters.clear()
        for name in names:
            key = name if name in parameters else f"{name}_orig"
            module._parameters[key] = parameters.pop(key)
        module._parameters.update(parameters)
