from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from fulmen import Trainer
from fulmen.callbacks import LearningRateFinder, ModelCheckpoint
from fulmen.utilities.exceptions import MisconfigurationException, SIGTERMException
from tests.support import quiet
from tests.tuner.models import Model, ready_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The checkpoint has states of callbacks"),  # of the one that wrote it
]
SEARCH: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 0.1, "num_training_steps": 25}


class AtMilestones(LearningRateFinder):
    """As programs written for Lightning do it."""

    def __init__(self, milestones: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.milestones = milestones

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.lr_find(trainer, pl_module)


def fit(tmp_path: Any, callbacks: Any, *, lr: float = 0.05, ckpt_path: Any = None, **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model, trainer = Model(lr=lr), Trainer(**quiet(tmp_path, callbacks=callbacks, num_sanity_val_steps=0, **settings))
    trainer.fit(model, ckpt_path=ckpt_path)
    return model, trainer


def test_fit_equals_one_of_a_module_made_with_the_learning_rate_found(tmp_path):
    finder = LearningRateFinder(**SEARCH)
    model, trainer = fit(tmp_path, finder)
    expected, _ = fit(tmp_path, [], lr=model.lr)

    assert finder.optimal_lr is not None
    assert model.lr == finder.optimal_lr.suggestion() != 0.05
    assert ready_state(model) == ready_state(expected)
    assert trainer.global_step == 32


def test_without_update_the_fit_goes_on_as_if_nobody_had_searched(tmp_path):
    finder = LearningRateFinder(**SEARCH, update_attr=False)
    model, _ = fit(tmp_path, finder)
    expected, _ = fit(tmp_path, [])

    assert finder.optimal_lr is not None
    assert len(finder.optimal_lr.results["lr"]) == 25
    assert ready_state(model) == ready_state(expected)


def test_search_at_milestones_leaves_only_the_learning_rate_behind(tmp_path):
    found: list[float] = []

    class Notes(AtMilestones):
        def lr_find(self, trainer: Any, pl_module: Any) -> None:
            before = ready_state(pl_module), trainer.optimizers[0].state_dict()["state"].keys(), trainer.global_step
            super().lr_find(trainer, pl_module)
            after = ready_state(pl_module), trainer.optimizers[0].state_dict()["state"].keys(), trainer.global_step
            before[0]["plain"] = after[0]["plain"] = ()
            assert before == after
            found.append(pl_module.lr)

    model, trainer = fit(tmp_path, Notes((1,), **SEARCH), max_epochs=3)

    assert len(found) == 2
    assert model.rates[0] == pytest.approx([found[0], found[0] / 10])
    assert len(model.rates) == trainer.global_step == 96
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx([found[1], found[1] / 10])


@pytest.mark.parametrize("kind", [LearningRateFinder, lambda **kwargs: AtMilestones((1,), **kwargs)])
def test_resumed_fit_equals_the_uninterrupted_one(tmp_path, kind):
    whole, _ = fit(tmp_path, [kind(**SEARCH)], max_epochs=3)
    checkpoint = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=40, save_top_k=-1, filename="{step}")
    fit(tmp_path, [kind(**SEARCH), checkpoint], max_epochs=2, enable_checkpointing=True)
    callback = kind(**SEARCH)
    resumed, _ = fit(tmp_path, [callback], max_epochs=3, ckpt_path=tmp_path / "saved" / "step=40.ckpt")
    expected, seen = ready_state(whole), ready_state(resumed)

    assert resumed.lr == whole.lr
    assert seen["weights"] == expected["weights"]
    assert seen["rng"] == expected["rng"]
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert callback.optimal_lr is not None


def test_sigterm_while_searching_at_an_epoch_begins_that_epoch_again_after_resume(tmp_path):
    whole, _ = fit(tmp_path, [AtMilestones((1,), **SEARCH)], max_epochs=2)

    class Killed(AtMilestones):
        def lr_find(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                hook = pl_module.on_after_backward
                pl_module.on_after_backward = lambda: os.kill(os.getpid(), signal.SIGTERM)
                try:
                    super().lr_find(trainer, pl_module)
                finally:
                    pl_module.on_after_backward = hook
            else:
                super().lr_find(trainer, pl_module)

    # the same class name, as its state is found by it
    Killed.__qualname__ = AtMilestones.__qualname__
    checkpoint = ModelCheckpoint(tmp_path / "saved", every_n_epochs=100)
    with pytest.raises(SIGTERMException):
        fit(tmp_path, [Killed((1,), **SEARCH), checkpoint], max_epochs=2, enable_checkpointing=True)
    (path,) = (tmp_path / "saved").glob("*.ckpt")
    resumed, _ = fit(tmp_path, [AtMilestones((1,), **SEARCH)], max_epochs=2, ckpt_path=path)

    assert ready_state(resumed)["weights"] == ready_state(whole)["weights"]
    assert resumed.losses == whole.losses[-len(resumed.losses) :]


def test_search_in_the_midst_of_a_batch_is_refused(tmp_path):
    class Misplaced(LearningRateFinder):
        def on_fit_start(self, *args: Any) -> None:
            return

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.lr_find(trainer, pl_module)

    with pytest.raises(RuntimeError, match="in `on_train_batch_end`"):
        fit(tmp_path, Misplaced())


def test_wrong_settings_are_refused_at_construction():
    with pytest.raises(MisconfigurationException, match="`mode='cubic'`"):
        LearningRateFinder(mode="cubic")
