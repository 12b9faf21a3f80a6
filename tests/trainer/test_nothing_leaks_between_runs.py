"""What a run leaves behind: nothing that the next one, or the memory, would feel."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.loggers.logger import DummyLogger
from fulmen.loops.optimization import AutomaticOptimization
from fulmen.strategies.single_device import SingleDeviceStrategy
from fulmen.utilities.exceptions import MisconfigurationException


class Small(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.drawn: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append(torch.rand(1).item())
        return self.layer(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=2)


def trainer_for(tmp_path: Any, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"max_epochs": 1, "default_root_dir": tmp_path, "enable_model_summary": False, **quiet, **kwargs})


class SaveAtStep(Callback):
    def __init__(self, path: str, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def checkpoint(tmp_path: Any) -> str:
    path = str(tmp_path / "two.ckpt")
    trainer_for(tmp_path, callbacks=[SaveAtStep(path, 2)]).fit(Small(), loader(), loader())
    return path


def test_random_state_of_a_validated_checkpoint_does_not_get_into_a_later_fit(tmp_path, checkpoint):
    drawn = []
    for validate in (False, True):
        trainer, module = trainer_for(tmp_path, num_sanity_val_steps=0), Small()
        if validate:
            trainer.validate(module, loader(), ckpt_path=checkpoint, verbose=False)
        torch.manual_seed(3)
        trainer.fit(module, loader(), loader())
        drawn.append(module.drawn)

    assert drawn[0] == drawn[1]


def test_sanity_check_runs_again_after_a_resumed_run_broke_down(tmp_path, checkpoint):
    class Breaks(Small):
        def on_train_start(self) -> None:
            raise RuntimeError("broken")

    class CountsSanityChecks(Callback):
        count = 0

        def on_sanity_check_start(self, *args: Any) -> None:
            self.count += 1

    counts = CountsSanityChecks()
    trainer = trainer_for(tmp_path, callbacks=[counts])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(Breaks(), loader(), loader(), ckpt_path=checkpoint)
    trainer.fit(Small(), loader(), loader())

    assert counts.count == 1


def test_refused_arguments_leave_no_running_state(tmp_path):
    trainer = trainer_for(tmp_path)
    with pytest.raises(MisconfigurationException):
        trainer.fit(Small(), loader(), datamodule=LightningDataModule())

    assert (trainer.training, str(trainer.state.status.value)) == (False, "initializing")


class CannotCompute(Metric):
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0))

    def update(self) -> None:
        self.total = self.total + 1

    def compute(self) -> Any:
        raise RuntimeError("cannot compute")


def test_strategy_is_taken_down_and_trainer_usable_after_a_metric_failed(tmp_path):
    class Strategy(SingleDeviceStrategy):
        teardowns = 0

        def teardown(self) -> None:
            self.teardowns += 1
            super().teardown()

    class Logs(Small):
        def __init__(self) -> None:
            super().__init__()
            self.metric = CannotCompute()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.metric.update()
            self.log("metric", self.metric, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    strategy = Strategy("cpu")
    trainer = trainer_for(tmp_path, strategy=strategy, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="cannot compute"), pytest.raises(RuntimeError, match="cannot compute"):
        trainer.fit(Logs(), loader(), loader())
    assert strategy.teardowns == 1

    trainer.fit(Small(), loader(), loader())
    assert trainer.current_epoch == 1


def test_last_batch_and_its_outputs_are_let_go(tmp_path):
    class Returns(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            hidden = self.layer(batch[0])
            self.__dict__["hidden"] = weakref.ref(hidden)
            return {"loss": hidden.sum(), "hidden": hidden}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    module = Returns()
    trainer = trainer_for(tmp_path)
    trainer.fit(module, loader(), loader())
    gc.collect()

    assert module.__dict__["hidden"]() is None


def test_batch_is_let_go_after_an_error(tmp_path):
    class Breaks(Small):
        def backward(self, loss: Any) -> None:
            raise RuntimeError("broken")

    trainer = trainer_for(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(Breaks(), loader(), loader())

    optimization = trainer.fit_loop.optimization
    assert isinstance(optimization, AutomaticOptimization)
    assert (trainer.fit_loop.metrics.batch, optimization.last_loss) == (None, None)


def test_logging_while_a_checkpoint_is_written_is_refused(tmp_path):
    class Logs(Small):
        def on_train_epoch_end(self) -> None:
            self.trainer.save_checkpoint(tmp_path / "x.ckpt")

        def on_save_checkpoint(self, checkpoint: Any) -> None:
            self.log("late", 1.0)

    with pytest.raises(MisconfigurationException, match="on_save_checkpoint"):
        trainer_for(tmp_path).fit(Logs(), loader(), loader())


def test_strategy_that_restores_after_setup_is_asked_after_setup(tmp_path, checkpoint):
    class Late(SingleDeviceStrategy):
        calls: list[str]

        @property
        def restore_checkpoint_after_setup(self) -> bool:
            return True

        @property
        def lightning_restore_optimizer(self) -> bool:
            return False

        def setup(self, trainer: Any) -> None:
            self.calls = ["setup"]
            super().setup(trainer)

        def load_model_state_dict(self, *args: Any, **kwargs: Any) -> None:
            self.calls.append("weights")
            super().load_model_state_dict(*args, **kwargs)

        def load_optimizer_state_dict(self, checkpoint: Any) -> None:
            self.calls.append("optimizers")

    strategy = Late("cpu")
    trainer_for(tmp_path, strategy=strategy).fit(Small(), loader(), loader(), ckpt_path=checkpoint)

    assert strategy.calls == ["setup", "weights"]


def test_rows_of_validation_steps_go_on_after_a_resume(tmp_path):
    class Logs(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", 1.0, on_step=True, on_epoch=False)

    rows: list[list[int]] = []

    class SavesEpoch(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    class Records(DummyLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            assert step is not None
            rows[-1].append(step)

    for max_epochs, ckpt in ((2, None), (2, tmp_path / "one.ckpt")):
        rows.append([])
        callbacks = [SavesEpoch()] if ckpt is None else []
        trainer_for(tmp_path, max_epochs=max_epochs, logger=Records(), log_every_n_steps=1, callbacks=callbacks).fit(
            Logs(), loader(), loader(), ckpt_path=ckpt
        )

    assert rows == [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7]]


def test_dtype_is_not_noted_where_the_conversion_is_refused():
    module = Small()
    with pytest.raises(TypeError):
        module.to(torch.int32)

    assert module.dtype == torch.float32
