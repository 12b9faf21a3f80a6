"""Finetuning: train the head of a model first, and the layers below it later, with smaller learning rates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fulmen.callbacks.param_groups import discriminative_learning_rates, layer_groups, lead_schedulers
from fulmen.callbacks.sharding import check_takes_parts
from fulmen.core.callback import Callback
from fulmen.utilities.exceptions import MisconfigurationException
from fulmen.utilities.model_helpers import batch_norms
from fulmen.utilities.options import check_function, check_number
from fulmen.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.core.module import LightningModule
    from fulmen.trainer.trainer import Trainer

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "GradualUnfreezing",
    "discriminative_learning_rates",
    "multiplicative",
]

log = logging.getLogger(__name__)

_Modules: TypeAlias = "nn.Module | Iterable[nn.Module | Iterable[Any]]"


def multiplicative(epoch: int) -> float:
    """Return 2: by default the learning rate of an unfrozen backbone doubles each epoch.

    Args:
        epoch: Not looked at.
    """
    return 2.0


class BaseFinetuning(Callback):
    """Base of callbacks that freeze layers before training and unfreeze them later.

    `freeze_before_training` runs before `configure_optimizers`, which should take only what trains:
    `filter(lambda p: p.requires_grad, self.parameters())`. `finetune_function` runs at the start of each epoch and adds
    the layers it unfreezes as a new parameter group. Schedulers go on with that group in proportion to the first one. A
    resumed run has the same groups, and the same layers frozen. With `DistributedDataParallel`, the module is wrapped
    anew where layers begin to train, as torch exchanges gradients only of those that trained when it was wrapped.

    Example::

        class UnfreezeFeatures(BaseFinetuning):
            def freeze_before_training(self, pl_module):
                self.freeze(pl_module.features)

            def finetune_function(self, pl_module, epoch, optimizer):
                if epoch == 5:
                    self.unfreeze_and_add_param_group(pl_module.features, optimizer)
    """

    def __init__(self) -> None:
        # ---- state
        self._layout: dict[int, list[dict[str, Any]]] = {}  # of the optimizers: settings, and names of parameters
        self._frozen: list[str] | None = []  # parameters; `None` where a file of Lightning's does not tell
        self._without_statistics: list[str] = []  # batch norms
        self._is_resumed = False

    # ---- to override
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what shall not train from the beginning; called before `configure_optimizers`.

        Args:
            pl_module: The module.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must override `freeze_before_training(pl_module)`: freeze there what shall not"
            " train from the beginning, e.g. `self.freeze(pl_module.backbone)`."
        )

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is due; called for each optimizer at the start of each epoch.

        Args:
            pl_module: The module.
            epoch: Index of the epoch, from 0.
            optimizer: The optimizer.

        Raises:
            NotImplementedError: It is not overridden.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must override `finetune_function(pl_module, epoch, optimizer)`: unfreeze there"
            " what is due, e.g. with `self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)`."
        )

    # ---- tools
    @staticmethod
    def flatten_modules(modules: _Modules) -> list[nn.Module]:
        """Return all modules that have parameters of their own, or no submodules.

        Args:
            modules: A module, or (nested) sequences of modules.
        """
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if isinstance(modules, Iterable) and not isinstance(modules, nn.Module):
            return [each for one in modules for each in BaseFinetuning.flatten_modules(one)]
        return [each for each in modules.modules() if not list(each.children()) or each._parameters]

    @staticmethod
    def filter_params(modules: _Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters of modules that train, or that do not.

        Args:
            modules: A module, or (nested) sequences of modules.
            train_bn: Include those of batch norm.
            requires_grad: Which of the two.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and not train_bn:
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad == requires_grad:
                    yield parameter

    @staticmethod
    def make_trainable(modules: _Modules) -> None:
        """Let parameters get gradients, and batch norms follow statistics.

        Args:
            modules: A module, or (nested) sequences of modules.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters of one module, and the statistics if it is a batch norm; not those of submodules.

        Args:
            module: The module.
        """
        _set_trainable(module, False)

    @staticmethod
    def freeze(modules: _Modules, train_bn: bool = True) -> None:
        """Freeze modules.

        Args:
            modules: A module, or (nested) sequences of modules.
            train_bn: Leave batch norms trainable.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            _set_trainable(module, isinstance(module, _BatchNorm) and train_bn)

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return the parameters that the optimizer does not have; warn about the others.

        Args:
            optimizer: The optimizer.
            params: Parameters.
        """
        known = _ids_in(optimizer)
        params = list(params)
        new = [each for each in params if id(each) not in known]
        if len(new) < len(params):
            rank_zero_warn(
                f"{len(params) - len(new)} of the {len(params)} parameters to unfreeze are in the optimizer already, so"
                " they train with the learning rate of their group there, not with one of their own. Let"
                " `configure_optimizers` take only what trains:"
                f" `{type(optimizer).__name__}(filter(lambda p: p.requires_grad, self.parameters()), ...)`."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: _Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Let modules train, as a new group of an optimizer.

        Args:
            modules: A module, or (nested) sequences of modules.
            optimizer: The optimizer.
            lr: The learning rate of the group; default is that of the first group, divided by `initial_denom_lr`.
            initial_denom_lr: What the first group's learning rate is divided by.
            train_bn: Include the parameters of batch norm.
        """
        known = _ids_in(optimizer)
        # batch norms, as a rule: that they train already is as it should be
        trained = {id(each) for each in BaseFinetuning.filter_params(modules) if id(each) in known}
        BaseFinetuning.make_trainable(modules)
        params = [each for each in BaseFinetuning.filter_params(modules, train_bn=train_bn) if id(each) not in trained]
        rate = float(optimizer.param_groups[0]["lr"]) / initial_denom_lr if lr is None else float(lr)
        if new := BaseFinetuning.filter_on_optimizer(optimizer, params):
            optimizer.add_param_group({"params": new, "lr": rate})

    # ---- hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, before the optimizers are made."""
        if stage != "fit":
            return
        check_takes_parts(trainer, type(self).__name__, "freezes single parameters")
        self._layout, self._frozen, self._without_statistics, self._is_resumed = {}, [], [], False
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizers the groups of the checkpoint, and freeze what was frozen, if one was loaded."""
        if self._is_resumed:
            trained_before = _num_trainable(pl_module)
            self.restore_optimizers(trainer, pl_module)
            _wrap_anew(trainer, pl_module, trained_before)

    def restore_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what was frozen and make the groups of the state that was loaded, of new optimizers.

        Args:
            trainer: The Trainer, with the optimizers that `configure_optimizers` has made.
            pl_module: The module.
        """
        if not self._is_resumed:
            return
        self._is_resumed = False
        if self._frozen is None:  # all that an optimizer has was trained
            _restore_frozen(pl_module, _left_out(pl_module, self._layout), set())
        else:
            _restore_frozen(pl_module, set(self._frozen), set(self._without_statistics))
        parameters = dict(pl_module.named_parameters())
        for index, groups in self._layout.items():
            optimizer = trainer.optimizers[index]
            num_before = len(optimizer.param_groups)
            _regroup(optimizer, groups, parameters)
            lead_schedulers(trainer.lr_scheduler_configs, optimizer, num_before)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call `finetune_function` for each optimizer."""
        trained_before = _num_trainable(pl_module)
        for optimizer in trainer.optimizers:
            num_before = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            lead_schedulers(trainer.lr_scheduler_configs, optimizer, num_before)
        _wrap_anew(trainer, pl_module, trained_before)
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self._layout = {
            index: [{**group, "params": [names[each] for each in group["params"]]} for group in optimizer.param_groups]
            for index, optimizer in enumerate(trainer.optimizers)
        }
        self._frozen = [name for name, each in pl_module.named_parameters() if not each.requires_grad]
        norms = batch_norms(pl_module)
        self._without_statistics = [name for name, each in norms.items() if not each.track_running_stats]

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return the groups of the optimizers by names of parameters, and what is frozen."""
        return {
            "internal_optimizer_metadata": self._layout,
            "frozen": self._frozen,
            "without_statistics": self._without_statistics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until the optimizers are there."""
        self._layout = state_dict["internal_optimizer_metadata"]
        self._frozen = state_dict.get("frozen")
        self._without_statistics = state_dict.get("without_statistics", [])
        self._is_resumed = bool(self._layout)


class BackboneFinetuning(BaseFinetuning):
    """Train all but `pl_module.backbone` first, and the backbone from some epoch on.

    Args:
        unfreeze_backbone_at_epoch: The epoch (from 0) from which on the backbone trains.
        lambda_func: Takes the epoch (from 1) and returns the factor by which the backbone's learning rate changes then.
        backbone_initial_ratio_lr: The backbone's first learning rate, as a share of that of the first group.
        backbone_initial_lr: The same as an absolute number; it wins.
        should_align: The backbone's learning rate does not rise above that of the first group.
        initial_denom_lr: As in `unfreeze_and_add_param_group`; the first learning rate is always given here.
        train_bn: Train batch norms of the backbone from the beginning.
        verbose: Print the learning rates at each epoch.
        rounding: Digits of what is printed.

    Raises:
        MisconfigurationException: The module has no `backbone`.

    Example::

        Trainer(callbacks=BackboneFinetuning(unfreeze_backbone_at_epoch=5))
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        name = "BackboneFinetuning"
        check_number(
            name, "unfreeze_backbone_at_epoch", unfreeze_backbone_at_epoch, "the epoch (from 0) from which on the"
            " backbone trains.", least=0, whole=True,
        )  # fmt: skip
        check_function(name, "lambda_func", lambda_func, "it takes the epoch and returns a factor, e.g. 2.0.")
        check_number(
            name, "backbone_initial_ratio_lr", backbone_initial_ratio_lr, "it scales a learning rate.", above=0
        )
        check_number(
            name, "backbone_initial_lr", backbone_initial_lr, "a learning rate.", above=0, optional=True
        )  # fmt: skip
        check_number(name, "initial_denom_lr", initial_denom_lr, "it divides a learning rate.", above=0)
        check_number(name, "rounding", rounding, "the digits of what is printed.", whole=True)
        # ---- settings
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        # ---- state
        self.previous_backbone_lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a backbone, and freeze it."""
        if stage == "fit" and not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationException(
                f"`BackboneFinetuning` trains `self.backbone` later than the rest, but `{type(pl_module).__name__}` has"
                " no module of this name. Call the layers that are trained already `self.backbone`."
            )
        if stage == "fit":
            self.previous_backbone_lr = None
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the groups of a checkpoint."""
        super().on_fit_start(trainer, pl_module)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone.

        Args:
            pl_module: The module.
        """
        self.freeze(pl_module.backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the backbone when it is time, and raise its learning rate in the epochs after that.

        Args:
            pl_module: The module.
            epoch: Index of the epoch, from 0.
            optimizer: The optimizer.
        """
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        main = float(optimizer.param_groups[0]["lr"])
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            rate = main * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(
                pl_module.backbone,
                optimizer,
                rate,
                train_bn=self.train_bn,
                initial_denom_lr=self.initial_denom_lr,
            )
        else:
            previous = self.previous_backbone_lr
            rate = self.lambda_func(epoch + 1) * (main if previous is None else previous)
            rate = main if self.should_align and rate > main else rate
            optimizer.param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            log.info(f"Current lr: {round(main, self.rounding)}, Backbone lr: {round(rate, self.rounding)}")

    def state_dict(self) -> dict[str, Any]:
        """Return the groups of the optimizers and the backbone's learning rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)


class GradualUnfreezing(BaseFinetuning):
    """Train the head first, and one more group of layers every few epochs, from the head to the input.

    Howard and Ruder 2018 (ULMFiT), fastai. A group that is unfrozen gets the learning rate of the first parameter group
    divided by `lr_decay` for each group above it, unless the optimizer has its parameters already, as with
    `discriminative_learning_rates`: then it trains as it was set there.

    Args:
        groups: Names of submodules from the input to the head, each one or a list of several that go together. All
            other layers train from the beginning, as does the last group.
        epochs_per_group: Epochs until the next group is unfrozen.
        lr_decay: Factor between the learning rates of neighbors; 2.6 in the paper.
        train_bn: Train batch norms of frozen groups from the beginning.

    Raises:
        ValueError: An argument is out of range, or the module has no layers of a name.

    Example::

        Trainer(callbacks=GradualUnfreezing(["embedding", "encoder.0", "encoder.1", "head"]))
    """

    def __init__(
        self,
        groups: Sequence[str | Sequence[str]],
        *,
        epochs_per_group: int = 1,
        lr_decay: float = 2.6,
        train_bn: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(groups, str) or not isinstance(groups, Sequence) or len(groups) < 2:
            raise ValueError(
                f"`GradualUnfreezing({groups!r})` needs two groups or more, of which the last trains from the"
                " beginning. Give names of submodules from the input to the head: `['backbone', 'head']`."
            )
        name = "GradualUnfreezing"
        check_number(
            name, "epochs_per_group", epochs_per_group, "the epochs until the next group trains.", least=1, whole=True
        )
        check_number(
            name, "lr_decay", lr_decay, "it divides learning rates. The paper has 2.6; 1 gives all groups the same.",
            above=0,
        )  # fmt: skip
        self.groups = groups
        self.epochs_per_group = epochs_per_group
        self.lr_decay = lr_decay
        self.train_bn = train_bn

    def num_unfrozen(self, epoch: int) -> int:
        """Return how many groups, counted from the head, train in an epoch.

        Args:
            epoch: Its index, from 0.
        """
        return min(len(self.groups), 1 + epoch // self.epochs_per_group)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze all groups but the last.

        Args:
            pl_module: The module.
        """
        for modules in layer_groups(pl_module, self.groups)[:-1]:
            self.freeze(modules, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the next group when it is time.

        Args:
            pl_module: The module.
            epoch: Index of the epoch, from 0.
            optimizer: The optimizer.
        """
        before = self.num_unfrozen(epoch - 1) if epoch else 1
        groups = layer_groups(pl_module, self.groups)[::-1]
        for depth in range(before, self.num_unfrozen(epoch)):
            modules = groups[depth]
            self.make_trainable(modules)
            known = _ids_in(optimizer)
            new = [each for each in self.filter_params(modules) if id(each) not in known]
            if new:
                main = float(optimizer.param_groups[0]["lr"])
                optimizer.add_param_group({"params": new, "lr": main / self.lr_decay**depth})


# ---- freezing


def _ids_in(optimizer: Optimizer) -> set[int]:
    return {id(each) for group in optimizer.param_groups for each in group["params"]}


def _set_trainable(module: nn.Module, trains: bool) -> None:
    if isinstance(module, _BatchNorm):
        module.track_running_stats = trains
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = trains


def _left_out(module: nn.Module, layout: dict[int, list[dict[str, Any]]]) -> set[str]:
    known = {name for groups in layout.values() for group in groups for name in group["params"]}
    return {name for name, _ in module.named_parameters()} - known


def _restore_frozen(module: nn.Module, frozen: set[str], without_statistics: set[str]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in frozen
    for name, norm in batch_norms(module).items():
        norm.track_running_stats = name not in without_statistics


def _num_trainable(module: nn.Module) -> int:
    return sum(each.requires_grad for each in module.parameters())


def _regroup(optimizer: Optimizer, groups: list[dict[str, Any]], parameters: dict[str, nn.Parameter]) -> None:
    """Give an optimizer these groups of parameters, given by name."""
    known = optimizer.param_groups
    # a new group begins with the settings of the first one, so that none is missing that a scheduler has put there
    known.extend({**known[0], "params": []} for _ in groups[len(known) :])
    for group, saved in zip(known, groups, strict=False):
        group.update({**saved, "params": [parameters[name] for name in saved["params"]]})


def _wrap_anew(trainer: Trainer, pl_module: LightningModule, trained_before: int) -> None:
    """Let `DistributedDataParallel` know of parameters that begin to train."""
    strategy = trainer.strategy
    if strategy.has_dtensors:  # there is no wrapper
        return
    is_wrapped = isinstance(strategy.model, DistributedDataParallel) or trainer.world_size > 1
    if is_wrapped and _num_trainable(pl_module) != trained_before:
        strategy.model = None  # with the old wrapper its hooks on the parameters go
        strategy.model = strategy.setup_module(pl_module)
