from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import LearningRateFinder
from fulmen.loggers import CSVLogger
from fulmen.tuner import LRFinder, Tuner
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet
from tests.tuner.models import Model, ready_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*training batches"),  # few batches for the logger
]
SEARCH: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 1.0, "num_training": 30}


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    numbers: list[int] = state[1].tolist()
    return numbers


def trained(tmp_path: Any, search: Any = None, **settings: Any) -> tuple[Model, Trainer, Any]:
    """Search if asked for, and train two epochs."""
    torch.manual_seed(1)
    model, trainer = Model(), Trainer(**quiet(tmp_path, max_epochs=2, num_sanity_val_steps=1, **settings))
    found = search(Tuner(trainer), model) if search else None
    trainer.fit(model)
    return model, trainer, found


def test_fit_after_a_search_equals_a_fit_without_one(tmp_path):
    plain, trainer_of_plain, _ = trained(tmp_path)
    model, trainer, finder = trained(tmp_path, lambda tuner, model: tuner.lr_find(model, update_attr=False, **SEARCH))

    assert ready_state(model) == ready_state(plain)
    assert (
        trainer.optimizers[0].state_dict()["param_groups"]
        == trainer_of_plain.optimizers[0].state_dict()["param_groups"]
    )
    assert trainer.logged_metrics == trainer_of_plain.logged_metrics
    assert len(finder.results["lr"]) == 30


def test_search_leaves_module_trainer_callbacks_loggers_and_random_numbers_as_they_were(tmp_path):
    class Counts(Callback):
        def __init__(self):
            self.calls = 0

        def setup(self, *args):
            self.calls += 1

        def on_train_batch_end(self, *args):
            self.calls += 1

    counts, logger, model = Counts(), CSVLogger(tmp_path / "logs"), Model()
    trainer = Trainer(**quiet(tmp_path, callbacks=counts, logger=logger))
    before, attributes, generator = ready_state(model), dict(vars(trainer)), _numpy_state()
    Tuner(trainer).lr_find(model, update_attr=False, **SEARCH)

    assert ready_state(model) == before
    assert all(vars(trainer)[name] is value for name, value in attributes.items())
    assert vars(trainer).keys() == attributes.keys()
    assert (trainer.global_step, trainer.current_epoch, trainer.callback_metrics, trainer.optimizers) == (0, 0, {}, [])
    assert counts.calls == 0
    assert not (tmp_path / "logs").exists()
    assert _numpy_state() == generator
    assert os.listdir(tmp_path) == []


def test_loaders_with_generators_and_workers_give_the_same_batches_after_a_search(tmp_path):
    def train(search: bool) -> list[float]:
        torch.manual_seed(1)
        model, data = Model(), TensorDataset(torch.linspace(-1, 1, 160).reshape(-1, 4))
        workers: Any = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
        loader = DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(3), **workers)
        trainer = Trainer(**quiet(tmp_path, max_epochs=2))
        if search:
            Tuner(trainer).lr_find(model, loader, update_attr=False, num_training=5)
        trainer.fit(model, loader)
        return model.losses

    assert train(search=True) == train(search=False)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_everything_is_put_back_after_an_error_while_searching(tmp_path, error):
    model, trainer = Model(), Trainer(**quiet(tmp_path))
    model.limit, model.error = 1, error
    before, attributes = ready_state(model), dict(vars(trainer))
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else ValueError):
        Tuner(trainer).lr_find(model, **SEARCH)

    assert ready_state(model) == before
    assert all(vars(trainer)[name] is value for name, value in attributes.items())
    assert os.listdir(tmp_path) == []


def test_suggestion_becomes_the_learning_rate_of_module_hparams_and_datamodule(tmp_path):
    class WithHparams(Model):
        def __init__(self, learning_rate: float = 0.5) -> None:
            super().__init__()
            self.save_hyperparameters()
            del self.lr
            self.learning_rate = learning_rate

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    class Data(LightningDataModule):
        learning_rate = 0.5

        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(64, 4)), 2)

    model, data = WithHparams(), Data()
    finder = Tuner(Trainer(**quiet(tmp_path))).lr_find(model, data, **SEARCH)

    assert finder is not None
    assert model.learning_rate == model.hparams.learning_rate == data.learning_rate == finder.suggestion()
    assert model.learning_rate in finder.results["lr"]


@pytest.mark.parametrize(("mode", "middle"), [("exponential", 1e-2), ("linear", 0.50005)])
def test_rates_run_from_the_first_to_the_last_and_groups_keep_their_ratio(tmp_path, mode, middle):
    model = Model(lr=0.1)
    finder = Tuner(Trainer(**quiet(tmp_path))).lr_find(
        model, min_lr=1e-4, max_lr=1.0, num_training=31, mode=mode, early_stop_threshold=None, update_attr=False
    )
    assert finder is not None

    rates = finder.results["lr"]

    assert len(rates) == 31
    assert rates[0] == 1e-4
    assert rates[-1] == pytest.approx(1.0)
    assert rates[15] == pytest.approx(middle)


def test_second_group_is_searched_at_its_share_of_the_first(tmp_path):
    seen: list[list[float]] = []

    class Watched(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            return super().training_step(batch, batch_idx)

    Tuner(Trainer(**quiet(tmp_path))).lr_find(Watched(), **SEARCH)

    assert all(second == pytest.approx(first / 10) for first, second in seen)
    assert len(seen) == 30


def test_search_ends_when_the_loss_explodes_and_can_be_told_not_to(tmp_path):
    class Explodes(Model):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            last: Any = self.net[3]
            return last.weight.sum() * 0 + (10.0**self.trainer.global_step)

    trainer = Trainer(**quiet(tmp_path))
    short = Tuner(trainer).lr_find(Explodes(), num_training=20, update_attr=False)
    whole = Tuner(trainer).lr_find(Explodes(), num_training=20, update_attr=False, early_stop_threshold=None)

    assert short is not None
    assert whole is not None
    assert (len(short.results["lr"]), len(whole.results["lr"])) == (2, 20)


def test_an_accumulated_step_is_one_point_with_the_mean_loss(tmp_path):
    finders = []
    for arguments in ({"accumulate_grad_batches": 4}, {}):
        trainer = Trainer(**quiet(tmp_path, **arguments))
        model: Any = Model(batch_size=2 if arguments else 8)
        model.net = nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Identity(), nn.Linear(8, 1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        model.train_dataloader = model.val_dataloader
        model._forward = lambda batch, net=model.net: (net(batch[0]) - 1).square().mean()
        finders.append(Tuner(trainer).lr_find(model, update_attr=False, num_training=6))

    accumulated, whole = finders
    assert accumulated is not None
    assert whole is not None
    assert accumulated.results["loss"] == pytest.approx(whole.results["loss"], rel=1e-4)


def test_manual_optimization_can_be_searched(tmp_path):
    class Manual(Model):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer: Any = self.optimizers()
            loss = self._forward(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            scheduler: Any = self.lr_schedulers()
            scheduler.step()
            return loss

    model = Manual()
    finder = Tuner(Trainer(**quiet(tmp_path))).lr_find(model, **SEARCH)

    assert finder is not None
    assert len(finder.results["loss"]) == 30
    assert model.lr == finder.suggestion()


def test_suggestion_is_where_the_loss_falls_fastest():
    finder = LRFinder(results={"lr": [10.0**i for i in range(7)], "loss": [5.0, 4.9, 4.8, 2.0, 1.9, 9.0, float("nan")]})

    assert finder.suggestion(skip_begin=0) in (100.0, 1000.0)
    assert finder.suggestion(skip_begin=4) == 10.0**4
    with pytest.warns(UserWarning, match="1 finite point"):
        assert finder.suggestion(skip_begin=5) is None


def test_plot_shows_curve_and_suggestion(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    finder = LRFinder(results={"lr": [10.0**-i for i in range(20)], "loss": [float(20 - i) for i in range(20)]})
    figure = finder.plot(suggest=True)
    figure.savefig(tmp_path / "plot.png")
    axes = figure.axes[0]

    assert [len(line.get_xdata()) for line in axes.lines] == [20, 1]
    assert axes.get_xscale() == "log"
    assert finder.plot(ax=axes) is figure
    import matplotlib.pyplot as plt

    plt.close(figure)
    gc.collect()


def two_optimizers() -> LightningModule:
    model: Any = Model()
    model.automatic_optimization = False
    model.configure_optimizers = lambda: [torch.optim.SGD(model.parameters(), 0.1) for _ in range(2)]
    two: LightningModule = model
    return two


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (Model, {"method": "test"}, MisconfigurationException, "only `method='fit'` trains"),
        (Model, {"mode": "cubic"}, MisconfigurationException, r"`mode='cubic'` is not known"),
        (Model, {"attr_name": "rate"}, AttributeError, "'rate'"),
        (Model, {"num_training": 0}, ValueError, "`num_training=0`"),
        (Model, {"min_lr": 0}, ValueError, "`min_lr=0`"),
        (Model, {"min_lr": 2}, ValueError, "not above"),
        (Model, {"max_lr": "x"}, ValueError, "`max_lr='x'`"),
        (Model, {"max_lr": float("inf")}, ValueError, "`max_lr=inf`"),
        (Model, {"attr_name": 3}, TypeError, "`attr_name=3`"),
        (Model, {"dataloaders": [1]}, MisconfigurationException, "`dataloaders` is for"),
        (two_optimizers, {}, MisconfigurationException, "one optimizer"),
        (lambda: "no model", {}, TypeError, "needs a `LightningModule`"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, make, arguments, error, message):
    trainer = Trainer(**quiet(tmp_path))
    attributes = dict(vars(trainer))
    with pytest.raises(error, match=message):
        Tuner(trainer).lr_find(make(), **arguments)

    assert all(vars(trainer)[name] is value for name, value in attributes.items())


def test_tuner_refuses_a_trainer_whose_callback_searches_too(tmp_path):
    with pytest.raises(ValueError, match="learning rate in each fit"):
        Tuner(Trainer(**quiet(tmp_path, callbacks=LearningRateFinder()))).lr_find(Model())


def test_fast_dev_run_is_not_searched(tmp_path):
    with pytest.warns(UserWarning, match="`lr_find` is skipped"):
        assert Tuner(Trainer(**quiet(tmp_path, fast_dev_run=True))).lr_find(Model()) is None


def test_model_built_late_is_built_again_by_the_fit(tmp_path):
    class Late(Model):
        def __init__(self) -> None:
            super().__init__(lr=0.001)
            self.head: Any = None

        def configure_model(self) -> None:
            if self.head is None:
                self.head = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.head(super().training_step(batch, batch_idx).reshape(1, 1)).square().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    losses = []
    for search in (False, True):
        torch.manual_seed(1)
        model, trainer = Late(), Trainer(**quiet(tmp_path))
        if search:
            Tuner(trainer).lr_find(model, update_attr=False, num_training=12)
        trainer.fit(model)
        losses.append((model.losses, model.head.weight.tolist()))

    assert losses[0] == losses[1]


def test_endless_stream_can_be_searched(tmp_path):
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            while True:
                yield torch.randn(4)

    loader = DataLoader(Stream(), 4)
    model: Any = Model()
    model._forward = lambda batch: model.net(batch).square().mean()
    finder = Tuner(Trainer(**quiet(tmp_path, max_epochs=1))).lr_find(model, loader, update_attr=False, num_training=12)

    assert finder is not None
    assert len(finder.results["lr"]) == 12


def test_a_tuner_needs_a_trainer():
    with pytest.raises(TypeError, match="Pass one"):
        Tuner("trainer")  # type: ignore[arg-type]  # the mistake
