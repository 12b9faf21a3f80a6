from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from fulmen import Callback, Trainer
from fulmen.callbacks import StochasticWeightAveraging
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.small_digits import BATCHES, Reader, SaveAt, differences, fit, seeded


class Plain(Reader):
    """Without batch norm."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.backbone[1] = nn.Identity()


class Rates(Callback):
    """Notes the learning rate, the head and the batch norm's state as each epoch begins."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.heads: list[torch.Tensor] = []
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append(round(trainer.optimizers[0].param_groups[0]["lr"], 6))
            self.heads.append(pl_module.head.weight.detach().clone())
            self.steps.append(trainer.global_step)


def step_by_half(optimizer: torch.optim.Optimizer) -> StepLR:
    return StepLR(optimizer, 1, gamma=0.5)


def swa(**settings: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(0.02, **{"swa_epoch_start": 2, "annealing_epochs": 2, **settings})


def test_the_module_gets_the_mean_of_the_weights_at_the_beginning_of_the_epochs(tmp_path: Path) -> None:
    model, notes, average = Plain(), Rates(), swa()
    trainer = fit(model, tmp_path, average, notes, max_epochs=4)

    torch.testing.assert_close(model.head.weight.detach(), torch.stack(notes.heads[1:]).mean(0))
    assert int(average.n_averaged) == 3  # type: ignore[arg-type]
    assert (trainer.current_epoch, trainer.global_step) == (4, 4 * BATCHES)


@pytest.mark.parametrize(
    ("scheduler", "rates"), [(None, [0.1, 0.1, 0.06, 0.02]), (step_by_half, [0.1, 0.05, 0.035, 0.02])]
)
def test_its_schedule_takes_the_place_of_the_scheduler(scheduler: Any, rates: list[float], tmp_path: Path) -> None:
    notes = Rates()
    trainer = fit(Plain(scheduler=scheduler, lr=0.1), tmp_path, swa(), notes, max_epochs=4)

    assert notes.rates == rates
    assert [type(each.scheduler).__name__ for each in trainer.lr_scheduler_configs] == ["SWALR"]


def test_batch_norms_get_the_statistics_of_the_average_in_one_more_epoch(tmp_path: Path) -> None:
    model, notes = Reader(), Rates()
    trainer = fit(model, tmp_path, swa(), notes, max_epochs=4)
    norm: Any = model.backbone[1]

    torch.testing.assert_close(model.head.weight.detach(), torch.stack(notes.heads[1:4]).mean(0))
    assert notes.steps[4:] == [4 * BATCHES]
    assert (trainer.current_epoch, trainer.max_epochs, trainer.global_step) == (5, 4, 4 * BATCHES)
    assert len(model.losses) == 5 * BATCHES
    assert int(norm.num_batches_tracked) == BATCHES
    assert norm.momentum == 0.1
    with torch.no_grad():
        expected = torch.stack([model.backbone[0](x).mean(0) for x, _ in trainer.train_dataloader]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        (Reader, step_by_half),
        pytest.param(Reader, None, marks=pytest.mark.slow),
        pytest.param(Plain, None, marks=pytest.mark.slow),
        pytest.param(Plain, step_by_half, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 3),
        ("on_train_epoch_end", BATCHES),
        ("on_train_batch_end", BATCHES + 2),
        ("on_train_epoch_end", 2 * BATCHES),
        ("on_train_batch_end", 2 * BATCHES + 3),
        ("on_train_epoch_end", 4 * BATCHES),
    ],
)
def test_a_resumed_run_is_the_same_run(kind: Any, scheduler: Any, hook: str, step: int, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    whole, resumed = kind(scheduler=scheduler), seeded(kind, seed=99, scheduler=scheduler)
    fit(whole, tmp_path, swa(), SaveAt(hook, step, path), max_epochs=4)
    fit(resumed, tmp_path, swa(), ckpt_path=path, max_epochs=4)

    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_end"])
def test_a_run_resumed_inside_the_epoch_for_batch_norms_is_the_same_run(hook: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"

    class SaveInLastEpoch(SaveAt):
        def save(self, trainer: Trainer, *args: Any) -> None:
            if trainer.current_epoch == 4 and (hook != "on_train_batch_end" or args[-1] == 1):
                super().save(trainer)

    whole, resumed = Reader(), seeded(Reader, seed=99)
    fit(whole, tmp_path, swa(), SaveInLastEpoch(hook, 4 * BATCHES, path), max_epochs=4)
    again = fit(resumed, tmp_path, swa(), ckpt_path=path, max_epochs=4)

    assert differences(resumed.state_dict(), whole.state_dict()) == []
    assert resumed.backbone[1].momentum == 0.1
    assert again.max_epochs == 4


def test_training_that_is_stopped_keeps_its_weights_and_says_so(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    model, plain = seeded(Reader), seeded(Reader)
    with pytest.warns(UserWarning, match="leaves the trained weights"):
        trainer = fit(model, tmp_path, swa(), Stop(), max_epochs=9)

    assert trainer.max_epochs == 9
    assert differences(model.state_dict(), plain.state_dict())


def test_a_start_after_the_end_is_told(tmp_path: Path) -> None:
    model, plain = seeded(Reader), seeded(Reader)
    with pytest.warns(UserWarning, match="nothing is averaged"):
        fit(model, tmp_path, swa(swa_epoch_start=9))
    fit(plain, tmp_path)

    assert differences(model.state_dict(), plain.state_dict()) == []


def test_fractions_and_counts_of_epochs(tmp_path: Path) -> None:
    by_fraction, by_count = swa(swa_epoch_start=0.5), swa(swa_epoch_start=2)
    fit(Plain(), tmp_path, by_fraction, max_epochs=4)
    fit(Plain(), tmp_path, by_count, max_epochs=4)

    assert (by_fraction.swa_start, by_fraction.swa_end) == (by_count.swa_start, by_count.swa_end) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"swa_lrs": -1.0}, "swa_lrs=-1.0"),
        ({"swa_lrs": [0.1, "x"]}, "swa_lrs="),
        ({"swa_lrs": 0.1, "swa_epoch_start": 0}, "swa_epoch_start=0"),
        ({"swa_lrs": 0.1, "swa_epoch_start": 1.5}, "swa_epoch_start=1.5"),
        ({"swa_lrs": 0.1, "avg_fn": 3}, "avg_fn=3"),
        ({"swa_lrs": 0.1, "device": "gpu?"}, "device='gpu"),
        ({"swa_lrs": []}, "swa_lrs="),
        ({"swa_lrs": 0.1, "annealing_epochs": True}, "annealing_epochs=True"),
        ({"swa_lrs": 0.1, "annealing_epochs": -1}, "annealing_epochs=-1"),
        ({"swa_lrs": 0.1, "annealing_strategy": "x"}, "annealing_strategy='x'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(MisconfigurationException, match=text):
        StochasticWeightAveraging(**arguments)


def test_a_run_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="which is the last"):
        fit(Reader(), tmp_path, swa(), max_epochs=-1, max_steps=2)


def test_two_optimizers_are_refused(tmp_path: Path) -> None:
    class Two(Plain):
        def configure_optimizers(self) -> Any:
            self.automatic_optimization = False
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]

    model = Two()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="one optimizer"):
        fit(model, tmp_path, swa())
