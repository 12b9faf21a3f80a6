"""Bars as users write and change them, and what stands on the screen while a run goes on."""

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from fulmen import Callback
from fulmen.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
from fulmen.callbacks.progress.rich_progress import RichProgressBarTheme
from tests.callbacks.progress.test_progress_bars import Calls, Endless, Module, both, data, make_trainer, on_terminal


class Slow(Module):
    """Slow enough for the bars to be drawn."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx)
        time.sleep(0.03)

    def training_step(self, batch, batch_idx):
        time.sleep(0.03)
        return super().training_step(batch, batch_idx)


def seen(screen, *texts):
    """Wait until a line has all texts; the terminal is read by a thread."""
    for _ in range(200):
        found = [line for line in screen.lines() if all(text in line for text in texts)]
        if found:
            return found
        time.sleep(0.01)
    return []


class Look(Callback):
    """Looks at the screen at one validation batch."""

    def __init__(self, screen, batch_idx, *texts):
        self.screen, self.batch_idx, self.texts = screen, batch_idx, texts
        self.found: list[str] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch_idx and not self.found:
            self.found = [line for text in self.texts for line in seen(self.screen, *text)]


# ---- while it runs
@both
def test_validation_stands_below_the_train_bar(tmp_path, monkeypatch, bar_class):
    with on_terminal(monkeypatch) as screen:
        look = Look(screen, 5, ("Epoch 0", "6/6"), ("Validation", "/8"))
        trainer = make_trainer(tmp_path, bar_class(refresh_rate=1), look, max_epochs=1, num_sanity_val_steps=0)
        trainer.fit(Slow(), data(6), data(8))

    assert len(look.found) == 2


@both
def test_sanity_check_has_a_bar_of_its_own(tmp_path, monkeypatch, bar_class):
    with on_terminal(monkeypatch) as screen:
        look = Look(screen, 6, ("Sanity Checking", "/7"))
        trainer = make_trainer(tmp_path, bar_class(refresh_rate=1), look, max_epochs=1, num_sanity_val_steps=7)
        trainer.fit(Slow(), data(1), data(20), None)

    assert len(look.found) == 1


@both
def test_resumed_epoch_shows_the_batches_done_before(tmp_path, monkeypatch, bar_class):
    def save(trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 4:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(tmp_path, bar_class(), Calls("on_train_batch_end", save)).fit(Module(), data(12), data(1))
    with on_terminal(monkeypatch) as screen:
        first: list[list[str]] = []

        def look(trainer, pl_module, batch, batch_idx):
            if not first:
                first.append(seen(screen, "Epoch 0", "5/12"))

        trainer = make_trainer(tmp_path, bar_class(), Calls("on_train_batch_start", look), max_epochs=1)
        trainer.fit(Module(), data(12), data(1), ckpt_path=tmp_path / "middle.ckpt")
        assert seen(screen, "Epoch 0", "12/12")

    assert len(first[0]) == 1


@both
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_of_unknown_length_is_counted(tmp_path, capsys, bar_class, stage):
    run = getattr(make_trainer(tmp_path, bar_class()), stage)
    run(Module(), torch.utils.data.DataLoader(Endless(), batch_size=None), **_quietly(stage))

    text = capsys.readouterr().out
    assert "7/?" in text or "7/--" in text


def _quietly(stage) -> dict[str, Any]:
    return {} if stage == "predict" else {"verbose": False}


# ---- tqdm, changed by its `init_..._tqdm`
def test_a_bar_made_by_the_user_is_the_one_that_is_shown(tmp_path, capsys):
    class Own(TQDMProgressBar):
        def init_train_tqdm(self):
            bar = super().init_train_tqdm()
            bar.bar_format = "MINE {n_fmt} of {total_fmt}{postfix}"
            return bar

    make_trainer(tmp_path, Own(), max_epochs=1).fit(Module(), data())

    assert "MINE 4 of 4, loss=3.000" in capsys.readouterr().out


def test_validation_bar_can_be_hidden_by_a_disabled_tqdm(tmp_path, monkeypatch):
    class Hidden(TQDMProgressBar):
        def init_validation_tqdm(self):
            return tqdm(disable=True)

        def init_sanity_tqdm(self):
            return tqdm(disable=True)

    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, Hidden(), max_epochs=1).fit(Slow(), data(), data(8))

    assert b"Valid" not in screen.written
    assert b"Sanity" not in screen.written
    assert any("Epoch 0" in line and "4/4" in line for line in screen.lines())


def test_description_set_in_a_hook_stays(tmp_path, capsys):
    class Own(TQDMProgressBar):
        def on_train_epoch_start(self, trainer, *_):
            super().on_train_epoch_start(trainer)
            self.train_progress_bar.set_description(f"running epoch {trainer.current_epoch}")

    make_trainer(tmp_path, Own()).fit(Module(), data())

    assert ["running epoch 0" in line for line in capsys.readouterr().out.splitlines()] == [True, False]


@both
def test_descriptions_can_be_overridden(tmp_path, capsys, bar_class):
    class Own(bar_class):  # type: ignore[misc, valid-type]  # a parameter
        @property
        def test_description(self):
            return "Examining"

    make_trainer(tmp_path, Own()).test(Module(), data(3), verbose=False)

    assert "Examining" in capsys.readouterr().out


# ---- on and off
@both
def test_disabled_bar_shows_nothing_until_it_is_enabled(tmp_path, capsys, bar_class):
    bar = bar_class()
    bar.disable()
    trainer = make_trainer(tmp_path, bar)
    trainer.predict(Module(), data(3))
    assert capsys.readouterr().out == ""

    bar.enable()
    trainer.predict(Module(), data(3))
    assert "3/3" in capsys.readouterr().out


def test_bar_from_scratch_gets_totals_descriptions_and_metrics(tmp_path):
    class Lines(ProgressBar):
        def __init__(self):
            super().__init__()
            self.enable = True  # type: ignore[assignment, method-assign]  # as in programs that people have
            self.lines: list[str] = []

        def disable(self):
            self.enable = False  # type: ignore[assignment, method-assign]  # the same

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            metrics = self.get_metrics(trainer, pl_module)
            self.lines.append(f"{self.train_description} {batch_idx + 1}/{self.total_train_batches} {metrics}")

    bar = Lines()
    make_trainer(tmp_path, bar, max_epochs=1).fit(Module(), data(2))

    assert bar.lines == ["Training 1/2 {'loss': 0.0}", "Training 2/2 {'loss': 1.0}"]
    assert vars(bar)["enable"] is True


# ---- rich
def test_rich_columns_can_be_replaced(tmp_path, monkeypatch):
    from rich.progress import MofNCompleteColumn, TextColumn

    class Own(RichProgressBar):
        def configure_columns(self, trainer):
            return [TextColumn("<{task.description}>"), MofNCompleteColumn()]

    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, Own(), max_epochs=1).fit(Module(), data())

    assert any("<Epoch 0/0> 4/4" in line for line in screen.lines())


def test_rich_theme_gives_format_and_delimiter_of_metrics(tmp_path, capsys):
    theme = RichProgressBarTheme(metrics_format=".1e", metrics_text_delimiter=" | ", description="bold red")
    make_trainer(tmp_path, RichProgressBar(theme=theme), max_epochs=1).fit(Module(), data())

    assert "loss: 3.0e+00 | " in capsys.readouterr().out


def test_rich_theme_colors_the_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    theme = RichProgressBarTheme(progress_bar="#112233", progress_bar_finished="#445566", description="#778899")
    with on_terminal(monkeypatch) as screen:
        trainer = make_trainer(tmp_path, RichProgressBar(refresh_rate=1, theme=theme), max_epochs=1)
        trainer.fit(Slow(), data(8))

    for red, green, blue in ((0x11, 0x22, 0x33), (0x44, 0x55, 0x66), (0x77, 0x88, 0x99)):
        assert b"38;2;%d;%d;%d" % (red, green, blue) in screen.written


def test_rich_bar_can_be_refreshed_and_given_more_tasks(tmp_path, monkeypatch):
    class Own(RichProgressBar):
        def on_train_start(self, trainer=None, pl_module=None):
            super().on_train_start(trainer, pl_module)
            assert self.progress is not None
            self.extra = self.progress.add_task("extra work", total=4)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert self.progress is not None
            self.progress.update(self.extra, completed=batch_idx + 1)
            self.refresh()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, Own(), max_epochs=1).fit(Slow(), data())

    assert any("extra work" in line and "4/4" in line for line in screen.lines())


# ---- a real notebook
NOTEBOOK = """
import torch
from torch.utils.data import DataLoader
from fulmen import LightningModule, Trainer
from fulmen.callbacks import {bar} as Bar

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum()
        self.log("train_loss", loss, prog_bar=True)
        if batch_idx == 2:
            print("a line of the user's")
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).sum(), prog_bar=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

settings = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
trainer = Trainer(callbacks=[Bar(refresh_rate=1)], max_epochs=2, log_every_n_steps=2, **settings)
trainer.fit(Module(), DataLoader(torch.zeros(6, 2)), DataLoader(torch.zeros(4, 2)))
"""
TABLE = "trainer.history"
PLOT = "trainer.history.plot()"


@both
@pytest.mark.slow
def test_fit_in_a_notebook_shows_bars_table_and_curves(tmp_path: Path, bar_class):
    for package in ("ipywidgets", "ipykernel", "matplotlib"):
        pytest.importorskip(package)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook()
    cells = [NOTEBOOK.format(bar=bar_class.__name__), TABLE, PLOT]
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook packages have some of their own
        nbclient.NotebookClient(notebook, timeout=110, kernel_name="python3").execute(cwd=str(tmp_path))

    fit, table, plot = (cell.outputs for cell in notebook.cells)
    printed = "".join(output.get("text", "") or output["data"].get("text/plain", "") for output in fit)
    widgets = [o for o in fit if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    shown = str(states).replace(r"\u2007", " ").replace("\u2007", " ")  # tqdm's blanks
    assert widgets
    assert "Epoch 1" in shown
    assert "6/6" in shown
    assert "train_loss" in shown
    assert "val_loss" in shown
    assert printed.count("a line of the user's") == 2
    assert "\x1b[" not in printed
    assert "History: 8 rows" in table[0]["data"]["text/plain"]
    assert "image/png" in plot[0]["data"]
