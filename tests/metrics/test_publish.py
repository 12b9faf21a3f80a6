"""What becomes visible, when, and what it costs."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.core.callback import Callback
from fulmen.core.module import LightningModule
from fulmen.loggers.logger import Logger
from fulmen.trainer.trainer import Trainer
from tests.support import PACKAGE_FOLDER, quiet


class Rows(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int | None]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))


class Net(LightningModule):
    """Trains on single numbers; the subclasses log."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("loss", batch.mean())
        return torch.as_tensor(self.layer(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Validated(Net):
    """The same with a validation that logs under the same name."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", batch.mean() + 100)


def loader(count: int = 10, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(torch.arange(count, dtype=torch.float32).view(-1, 1), batch_size=batch_size)  # type: ignore[arg-type]  # a tensor can be indexed


class Calls:
    """Counts the calls of the package's Python functions inside the `with` block."""

    def __enter__(self) -> Calls:
        self.names: list[str] = []
        sys.setprofile(self._note)
        return self

    def __exit__(self, *args: Any) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE_FOLDER)):
            self.names.append(frame.f_code.co_name)


@pytest.mark.parametrize(
    "options", [{}, {"on_epoch": True}, {"on_epoch": True, "reduce_fx": "sum"}, {"prog_bar": True}]
)
def test_logging_a_number_again_costs_at_most_four_calls(tmp_path, options: dict[str, Any]) -> None:
    costs: list[list[str]] = []

    class Counts(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.layer(batch).mean()
            self.log("first", loss, **options)  # the batch's size is found once
            with Calls() as calls:
                self.log("loss", loss, **options)
            costs.append(calls.names)
            return torch.as_tensor(loss)

    Trainer(**quiet(tmp_path)).fit(Counts(), loader())

    assert [len(names) <= 4 for names in costs[1:]] == [True, True], costs[1:]


def test_a_step_without_a_due_row_reads_no_metric(tmp_path) -> None:
    class Profiled(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.calls = Calls().__enter__()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 7:  # the row of the next one is due
                self.calls.__exit__()

    callback = Profiled()
    Trainer(**quiet(tmp_path, logger=Rows(), log_every_n_steps=9, callbacks=[callback])).fit(Net(), loader(40))

    assert callback.calls.names.count("_taken") == 8
    assert not {"publish_step", "send", "refresh"} & set(callback.calls.names)


def test_nan_is_shown_as_it_is(tmp_path) -> None:
    rows = Rows()

    class Nan(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            for reduction in ("mean", "sum", "min", "max"):
                value = torch.tensor(float("nan") if batch_idx == 1 else 1.0)
                self.log(reduction, value, on_step=False, on_epoch=True, reduce_fx=reduction, prog_bar=True)
            return torch.as_tensor(self.layer(batch).mean())

    trainer = Trainer(**quiet(tmp_path, logger=rows, log_every_n_steps=1))
    trainer.fit(Nan(), loader())

    shown: list[Any] = [rows.rows[0][0], trainer.callback_metrics, trainer.progress_bar_metrics]
    assert [metrics[name] != metrics[name] for metrics in shown for name in ("mean", "sum", "min", "max")] == [
        True
    ] * 12


def test_values_of_a_validation_stay_readable_until_the_next_batch(tmp_path) -> None:
    seen: list[tuple[str, float]] = []

    class Reads(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(("validation", float(trainer.callback_metrics["loss"])))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(("epoch", float(trainer.callback_metrics["loss"])))

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen.append(("batch", float(trainer.callback_metrics["loss"])))

    arguments = quiet(tmp_path, max_epochs=1, num_sanity_val_steps=0, val_check_interval=2, callbacks=[Reads()])
    Trainer(**arguments).fit(Validated(), loader(16), loader(4))

    batch = [1.5, 5.5, 9.5, 13.5]
    assert seen == [
        ("batch", batch[0]), ("batch", batch[1]), ("validation", 101.5),
        ("batch", batch[2]), ("batch", batch[3]), ("validation", 101.5), ("epoch", 101.5),
    ]  # fmt: skip


def test_a_sanity_check_leaves_nothing_behind(tmp_path) -> None:
    rows = Rows()
    seen: list[list[int]] = []

    class Reads(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            dictionaries = trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics
            seen.append([*map(len, dictionaries), len(rows.rows)])

    Trainer(**quiet(tmp_path, logger=rows, log_every_n_steps=1, num_sanity_val_steps=2, callbacks=[Reads()])).fit(
        Validated(), loader(), loader(6)
    )

    assert seen == [[0, 0, 0, 0]]


def test_what_a_run_logged_is_readable_after_it_and_gone_in_the_next(tmp_path) -> None:
    seen: list[dict[str, Any]] = []

    class Reads(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(dict(trainer.callback_metrics))

    trainer = Trainer(**quiet(tmp_path, callbacks=[Reads()]))
    module = Net()
    trainer.fit(module, loader())
    after = dict(trainer.callback_metrics)
    trainer.fit(module, loader())

    assert after == {"loss": torch.tensor(8.5)}
    assert seen == [{}, {}]


def test_rows_take_a_metric_named_step_as_their_place(tmp_path) -> None:
    rows = Rows()

    class Steps(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("step", 10.0 * batch_idx)
            return super().training_step(batch, batch_idx)

    Trainer(**quiet(tmp_path, logger=rows, log_every_n_steps=1)).fit(Steps(), loader())

    assert rows.rows == [({"loss": 1.5}, 0), ({"loss": 5.5}, 10), ({"loss": 8.5}, 20)]


def test_each_logger_gets_every_row(tmp_path) -> None:
    loggers = [Rows(), Rows()]
    Trainer(**quiet(tmp_path, logger=loggers, log_every_n_steps=2, num_sanity_val_steps=0)).fit(
        Validated(), loader(16), loader(4)
    )

    assert loggers[0].rows == loggers[1].rows
    assert loggers[0].rows == [
        ({"loss": 5.5, "epoch": 0}, 1),
        ({"loss": 13.5, "epoch": 0}, 3),
        ({"loss": 101.5, "epoch": 0}, 3),
    ]


def test_barebones_says_once_that_nothing_is_logged(tmp_path) -> None:
    trainer = Trainer(barebones=True, accelerator="cpu", devices=1, max_epochs=1, default_root_dir=tmp_path)

    with pytest.warns(UserWarning, match="`self.log` does nothing under `Trainer\\(barebones=True\\)`"):
        trainer.fit(Net(), loader())

    assert trainer.callback_metrics == {}
