from __future__ import annotations

from typing import Any

import pytest
import torch

from fulmen import Trainer
from fulmen.callbacks import BatchSizeFinder, ModelCheckpoint
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet
from tests.tuner.models import Model, ready_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The checkpoint has states of callbacks"),  # of the one that wrote it
]
SEARCH: dict[str, Any] = {"mode": "binsearch", "margin": 0}


def limited(batch_size: int = 2, limit: int = 20) -> Model:
    model = Model(batch_size=batch_size)
    model.limit, model.error = limit, lambda: torch.OutOfMemoryError("CUDA out of memory.")
    return model


def fit(tmp_path: Any, callbacks: Any, model: Model, *, ckpt_path: Any = None, **settings: Any) -> Trainer:
    trainer = Trainer(**quiet(tmp_path, callbacks=callbacks, max_epochs=settings.pop("max_epochs", 2), **settings))
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def test_fit_equals_one_of_a_module_made_with_the_batch_size_found(tmp_path):
    states = []
    for callbacks, size in ((BatchSizeFinder(**SEARCH), 2), ([], 20)):
        torch.manual_seed(1)
        model = limited(size)
        fit(tmp_path, callbacks, model)
        states.append(ready_state(model))

    assert states[0] == states[1]


def test_schedule_made_of_the_number_of_steps_is_made_again(tmp_path):
    class Cyclic(Model):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    trainer = fit(tmp_path, BatchSizeFinder(max_val=32), Cyclic())

    assert trainer.global_step == 4
    assert trainer.lr_scheduler_configs[0].scheduler.state_dict()["total_steps"] == 4


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_goes_on_with_the_batch_size_found(tmp_path, method):
    model, finder = limited(), BatchSizeFinder(**SEARCH)
    getattr(Trainer(**quiet(tmp_path, callbacks=finder)), method)(model)

    assert finder.optimal_batch_size == model.batch_size == 20
    assert model.sizes == [20, 20, 20, 4]


def test_search_at_milestones_loads_the_data_anew(tmp_path):
    class AtEpochs(BatchSizeFinder):
        def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.limit = 10 * (1 + trainer.current_epoch)
            self.scale_batch_size(trainer, pl_module)

    model = limited()
    trainer = fit(tmp_path, AtEpochs(), model, limit_val_batches=0)

    assert model.sizes == [8] * 8 + [16] * 4
    assert trainer.global_step == 12


def test_resumed_fit_has_the_batch_size_found_and_equals_the_uninterrupted_one(tmp_path):
    torch.manual_seed(1)
    whole = limited()
    fit(tmp_path, BatchSizeFinder(**SEARCH), whole, max_epochs=3)
    torch.manual_seed(1)
    checkpoint = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=6, save_top_k=-1, filename="{step}")
    fit(tmp_path, [BatchSizeFinder(**SEARCH), checkpoint], limited(), enable_checkpointing=True)
    torch.manual_seed(5)
    resumed, finder = limited(), BatchSizeFinder(**SEARCH)
    fit(tmp_path, finder, resumed, max_epochs=3, ckpt_path=tmp_path / "saved" / "step=6.ckpt")

    assert resumed.batch_size == finder.optimal_batch_size == 20
    assert ready_state(resumed)["weights"] == ready_state(whole)["weights"]


@pytest.mark.parametrize(
    ("settings", "loaders", "message"),
    [({"batch_arg_name": "size"}, None, "'size'"), ({}, [torch.ones(2, 4)], "they are made already")],
)
def test_search_without_effect_is_refused_at_set_up(tmp_path, settings, loaders, message):
    trainer = Trainer(**quiet(tmp_path, callbacks=BatchSizeFinder(**settings)))
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Model(), loaders)


def test_wrong_settings_are_refused_at_construction():
    with pytest.raises(MisconfigurationException, match="`mode='linear'`"):
        BatchSizeFinder(mode="linear")
