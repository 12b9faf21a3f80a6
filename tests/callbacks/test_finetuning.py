from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import BackboneFinetuning, BaseFinetuning, GradualUnfreezing, discriminative_learning_rates
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.small_digits import BATCHES, Reader, SaveAt, differences, fit, seeded


class Notes(Callback):
    """By epoch: learning rates of the groups, and the first layer at its end."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append([round(group["lr"], 6) for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights.append(pl_module.backbone[0].weight.detach().clone())


def test_the_backbone_is_frozen_until_its_epoch_and_then_follows_the_ratio(tmp_path: Path) -> None:
    notes, model = Notes(), Reader(lr=0.01)
    before = copy.deepcopy(model.state_dict()["backbone.0.weight"])
    fit(model, tmp_path, BackboneFinetuning(unfreeze_backbone_at_epoch=2), notes, max_epochs=7)
    frozen = [torch.equal(each, before) for each in notes.weights]

    assert frozen == [True, True] + [False] * 5
    assert notes.rates[:2] == [[0.01], [0.01]]
    assert [rates[1] / rates[0] for rates in notes.rates[2:]] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])


def test_without_alignment_the_backbone_may_be_faster(tmp_path: Path) -> None:
    notes = Notes()
    finetuning = BackboneFinetuning(1, lambda epoch: 3.0, backbone_initial_lr=0.01, should_align=False)
    fit(Reader(lr=0.01), tmp_path, finetuning, notes)

    assert notes.rates == [[0.01], [0.01, 0.01], [0.01, 0.03]]
    assert finetuning.previous_backbone_lr == pytest.approx(0.03)


def by_cycle(optimizer: Optimizer) -> Any:
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.001, 0.01, step_size_up=2, cycle_momentum=False)
    return {"scheduler": scheduler, "interval": "step"}


def by_one_cycle(optimizer: Optimizer) -> Any:
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=5 * BATCHES)
    return {"scheduler": scheduler, "interval": "step"}


def by_parts(optimizer: Optimizer) -> Any:
    later = lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    return lr_scheduler.SequentialLR(optimizer, [lr_scheduler.ConstantLR(optimizer, 0.5), later], [2])


SCHEDULERS: dict[str, Any] = {
    "none": None,
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, gamma=0.9),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "OneCycleLR": by_one_cycle,
    "CyclicLR": by_cycle,
    "SequentialLR": by_parts,
}


@pytest.mark.parametrize(
    "scheduler", [each if each == "LambdaLR" else pytest.param(each, marks=pytest.mark.slow) for each in SCHEDULERS]
)
@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_end", 2 * BATCHES + 1), ("on_train_epoch_end", BATCHES)])
def test_a_resumed_run_is_the_same_run(scheduler: str, hook: str, step: int, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    notes, again = Notes(), Notes()
    whole, resumed = (seeded(Reader, scheduler=SCHEDULERS[scheduler]) for _ in range(2))
    with torch.no_grad():
        resumed.head.weight.zero_()
    fit(whole, tmp_path, BackboneFinetuning(1), notes, SaveAt(hook, step, path), max_epochs=5)
    fit(resumed, tmp_path, BackboneFinetuning(1), again, ckpt_path=path, max_epochs=5)

    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []
    assert again.rates[-2:] == notes.rates[-2:]
    assert [each.requires_grad for each in resumed.parameters()] == [each.requires_grad for each in whole.parameters()]


def test_a_plateau_scheduler_goes_on_with_the_new_group(tmp_path: Path) -> None:
    class Plateau(Reader):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.trained(), lr=0.1)
            scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0, factor=0.1, min_lr=[0.001])
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}

    notes = Notes()
    fit(Plateau(), tmp_path, GradualUnfreezing(["backbone", "head"], lr_decay=2.0), notes, max_epochs=4)

    assert len(notes.rates[-1]) == 2
    assert notes.rates[-1][0] < 0.1


def test_a_scheduler_keeps_the_ratio_of_a_group_that_came_later(tmp_path: Path) -> None:
    notes = Notes()
    model = Reader(lr=0.01, scheduler=SCHEDULERS["LambdaLR"])
    fit(model, tmp_path, GradualUnfreezing(["backbone", "head"], lr_decay=2.0), notes, max_epochs=4)

    assert notes.rates[0] == [0.01]
    assert [rates[0] / rates[1] for rates in notes.rates[1:]] == pytest.approx([2.0] * 3, rel=1e-3)


def test_statistics_of_a_frozen_batch_norm_come_back_with_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            follows.append((trainer.current_epoch, pl_module.backbone[1].track_running_stats))

    follows: list[tuple[int, bool]] = []
    save = SaveAt("on_train_batch_end", BATCHES + 1, path)
    fit(Reader(), tmp_path, BackboneFinetuning(2, train_bn=False), save, Look())
    assert set(follows) == {(0, False), (1, False), (2, True)}
    follows.clear()
    fit(Reader(), tmp_path, BackboneFinetuning(2, train_bn=False), Look(), ckpt_path=path)

    assert set(follows) == {(1, False), (2, True)}


# ---- the tools


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(2))
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


def test_modules_with_parameters_of_their_own_are_found() -> None:
    mixed, line = Mixed(), nn.Sequential(nn.Linear(1, 1), nn.ReLU())

    assert BaseFinetuning.flatten_modules([mixed, [line]]) == [mixed, mixed.linear, mixed.norm, line[0], line[1]]
    assert BaseFinetuning.flatten_modules(nn.ModuleDict({"a": line})) == [line[0], line[1]]
    assert len(list(BaseFinetuning.filter_params(mixed))) == 5
    assert len(list(BaseFinetuning.filter_params(mixed, train_bn=False))) == 3
    assert list(BaseFinetuning.filter_params(mixed, requires_grad=False)) == []


@pytest.mark.parametrize("train_bn", [True, False])
def test_freezing_leaves_batch_norm_as_asked(train_bn: bool) -> None:
    mixed = Mixed()
    BaseFinetuning.freeze(mixed, train_bn=train_bn)

    assert [each.requires_grad for each in mixed.parameters()] == [False] * 3 + [train_bn] * 2
    assert mixed.norm.track_running_stats is train_bn
    BaseFinetuning.make_trainable(mixed)
    assert all(each.requires_grad for each in mixed.parameters())
    assert mixed.norm.track_running_stats


def test_parameters_join_an_optimizer_once() -> None:
    mixed, other = Mixed(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    BaseFinetuning.unfreeze_and_add_param_group(mixed, optimizer)
    BaseFinetuning.freeze(other)
    with pytest.warns(UserWarning, match="2 of the 2 parameters to unfreeze are in the optimizer already"):
        BaseFinetuning.unfreeze_and_add_param_group([mixed, other], optimizer)

    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [(2, 1.0), (5, 0.1)]


def test_what_a_subclass_must_write_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="freeze_before_training"):
        fit(Reader(), tmp_path, BaseFinetuning())


@pytest.mark.filterwarnings("ignore:There is a validation dataloader")
def test_a_module_without_backbone_is_refused(tmp_path: Path) -> None:
    class Other(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(MisconfigurationException, match=r"`Other` has no module"):
        fit(Other(), tmp_path, BackboneFinetuning(), limit_val_batches=0)


# ---- gradual unfreezing and learning rates by layer

LAYERS = ["backbone.0", ["backbone.1"], "head"]


def test_groups_are_unfrozen_from_the_head_backwards(tmp_path: Path) -> None:
    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            layers = (pl_module.backbone[0], pl_module.backbone[1], pl_module.head)
            trained.append([layer.weight.requires_grad for layer in layers])

    trained: list[list[bool]] = []
    notes = Notes()
    fit(Reader(lr=0.01), tmp_path, GradualUnfreezing(LAYERS, epochs_per_group=2, lr_decay=2.0, train_bn=False),
        Look(), notes, max_epochs=6)  # fmt: skip

    assert trained[:: 2 * BATCHES] == [[False, False, True], [False, True, True], [True, True, True]]
    assert notes.rates[::2] == [[0.01], [0.01, 0.005], [0.01, 0.005, 0.0025]]


class Layered(Reader):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(discriminative_learning_rates(self, LAYERS, lr=0.01, decay=2.0, weight_decay=0.1))


def test_learning_rates_fall_from_the_head_to_the_input(tmp_path: Path) -> None:
    trainer = fit(Layered(), tmp_path)
    groups = trainer.optimizers[0].param_groups

    assert [(group["name"], group["lr"]) for group in groups] == [
        ("head", 0.01), ("backbone.1", 0.005), ("backbone.0", 0.0025)
    ]  # fmt: skip
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert sum(len(group["params"]) for group in groups) == 6


def test_both_together_keep_the_groups_and_resume(tmp_path: Path) -> None:
    path, step = tmp_path / "saved.ckpt", BATCHES + 2
    whole, resumed = seeded(Layered), seeded(Layered)
    save = SaveAt("on_train_batch_end", step, path)
    trainer = fit(whole, tmp_path, GradualUnfreezing(LAYERS, train_bn=False), save, max_epochs=4)
    fit(resumed, tmp_path, GradualUnfreezing(LAYERS, train_bn=False), ckpt_path=path, max_epochs=4)

    assert len(trainer.optimizers[0].param_groups) == 3
    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []


@pytest.mark.parametrize(
    ("groups", "arguments", "text"),
    [
        (["backbone", "tail"], {}, r"\['tail'\].*\['backbone', 'head'\]"),
        (["head"], {}, "without the parameters"),
        (["backbone.0", "backbone", "head"], {}, "share parameters"),
        (["backbone", "head"], {"decay": 0.0}, "decay=0.0"),
        (["backbone", "head"], {"lr": -1.0}, "lr=-1.0"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups: Any, arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        discriminative_learning_rates(Reader(), groups, **{"lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("groups", "arguments", "text"),
    [
        ("head", {}, "two groups"),
        (["head"], {}, "two groups"),
        (["a", "b"], {"epochs_per_group": 0}, "epochs_per_group=0"),
        (["a", "b"], {"epochs_per_group": 1.5}, "epochs_per_group=1.5"),
        (["a", "b"], {"lr_decay": 0}, "lr_decay=0"),
        (["a", "b"], {"lr_decay": "x"}, "lr_decay='x'"),
        (5, {}, "two groups"),
    ],
)
def test_wrong_arguments_are_refused(groups: Any, arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GradualUnfreezing(groups, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"unfreeze_backbone_at_epoch": -1}, ValueError),
        ({"unfreeze_backbone_at_epoch": 1.5}, ValueError),
        ({"lambda_func": 2}, TypeError),
        ({"backbone_initial_ratio_lr": "x"}, ValueError),
        ({"backbone_initial_lr": 0}, ValueError),
        ({"initial_denom_lr": 0}, ValueError),
        ({"rounding": 1.5}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_for_a_backbone_are_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        BackboneFinetuning(**arguments)
