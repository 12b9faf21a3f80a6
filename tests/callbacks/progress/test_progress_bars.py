"""Both bars, seen as a person sees them: on a terminal, which `pyte` reads back, and in a file."""

import contextlib
import copy
import fcntl
import logging
import os
import pickle
import pty
import struct
import sys
import termios
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import rich
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
from fulmen.callbacks.progress.live import LiveProgressBar
from fulmen.loggers import CSVLogger

pyte = pytest.importorskip("pyte")

COLUMNS = 100
BARS = [TQDMProgressBar, RichProgressBar]
both = pytest.mark.parametrize("bar_class", BARS)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.log("loss", float(batch_idx), prog_bar=True)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", 0.25, prog_bar=True)

    def val_dataloader(self):
        return data(2)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch

    def on_train_epoch_end(self):
        self.log("late", float(self.current_epoch), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self):
        return iter(torch.zeros(7, 2))


class Screen:
    """A terminal: what was written to it, and what it shows."""

    def __init__(self) -> None:
        self.main, self.terminal = pty.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        self.stream = os.fdopen(self.terminal, "w", buffering=1)
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # raised when the other end closes
            while chunk := os.read(self.main, 65536):
                self.written += chunk

    def close(self) -> None:
        self.stream.close()
        self._reader.join(5)
        os.close(self.main)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._emulate().display if line.strip()]

    def cursor_hidden(self) -> bool:
        return bool(self._emulate().cursor.hidden)

    def _emulate(self) -> Any:
        screen = pyte.Screen(COLUMNS, 50)
        pyte.ByteStream(screen).feed(self.written)
        return screen


@contextlib.contextmanager
def on_terminal(monkeypatch) -> Iterator[Screen]:
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(rich, "_console", None)  # rich's global console, which notes the colors of its first stream
        patch.setattr(sys, "stdout", screen.stream)
        patch.setattr(sys, "stderr", screen.stream)
        yield screen
        assert sys.stdout is screen.stream
        assert sys.stderr is screen.stream
    screen.close()


def data(batches: int = 4) -> DataLoader[Any]:
    return DataLoader(list(torch.zeros(batches, 2)))  # type: ignore[arg-type]  # a list is dataset enough


def make_trainer(tmp_path, bar: ProgressBar, *callbacks: Callback, **kwargs: Any) -> Trainer:
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(default_root_dir=tmp_path, callbacks=[bar, *callbacks], accelerator="cpu", **{**settings, **kwargs})


class Calls(Callback):
    """Calls a function in one hook."""

    def __init__(self, hook: str, function: Any) -> None:
        setattr(self, hook, function)


# ---- on a terminal


@both
def test_terminal_shows_the_last_epoch_whole(tmp_path, monkeypatch, bar_class):
    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, bar_class()).fit(Module(), data())

    (line,) = [line for line in screen.lines() if "Epoch" in line]
    metrics = "".join(screen.lines()[screen.lines().index(line) :])  # rich puts them below where there is no room
    assert "Epoch 1" in line
    assert "4/4" in line
    assert "3.000" in metrics
    assert "late" in metrics
    assert not any("Validation" in line or "Sanity" in line for line in screen.lines())
    assert not screen.cursor_hidden()


@both
def test_terminal_keeps_every_epoch_with_leave(tmp_path, monkeypatch, bar_class):
    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, bar_class(leave=True), max_epochs=3).fit(Module(), data())

    epochs = [line for line in screen.lines() if "Epoch" in line]
    assert [f"Epoch {n}" in line and "4/4" in line for n, line in enumerate(epochs)] == [True, True, True]


@both
def test_print_and_log_records_stand_above_the_bar(tmp_path, monkeypatch, bar_class):
    def talk(trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            print("from", "print")  # noqa: T201 - that is the test
            trainer.print("from", "[bold]trainer[/bold]")
            logging.getLogger("elsewhere").error("from log")
            sys.stdout.write("half a line")

    with on_terminal(monkeypatch) as screen:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("elsewhere").addHandler(handler)
        make_trainer(tmp_path, bar_class(), Calls("on_train_batch_end", talk), max_epochs=1).fit(Module(), data())
        logging.getLogger("elsewhere").removeHandler(handler)
        assert handler.stream is sys.stderr

    lines = screen.lines()
    texts = ["from print", "from [bold]trainer[/bold]", "from log", "half a line"]
    assert [line for line in lines if "from" in line or "half" in line] == texts
    assert lines.index("half a line") < next(n for n, line in enumerate(lines) if "4/4" in line)


@both
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_terminal_is_clean_after_an_exception(tmp_path, monkeypatch, bar_class, error):
    def fail(trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            raise error("stop")

    with on_terminal(monkeypatch) as screen:
        with pytest.raises((SystemExit, RuntimeError)):
            make_trainer(tmp_path, bar_class(), Calls("on_train_batch_start", fail)).fit(Module(), data())
        screen.stream.write("prompt")

    assert screen.lines()[-1] == "prompt"
    assert "2/4" in "".join(screen.lines())
    assert not screen.cursor_hidden()


@both
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_terminal_shows_stages_by_themselves(tmp_path, monkeypatch, bar_class, stage):
    with on_terminal(monkeypatch) as screen:
        run = getattr(make_trainer(tmp_path, bar_class()), stage)
        run(Module(), [data(3), data(5)], **({} if stage == "predict" else {"verbose": False}))

    assert "DataLoader 1" in screen.lines()[-1]
    assert "5/5" in screen.lines()[-1]


@both
def test_unknown_length_is_counted_without_a_total(tmp_path, monkeypatch, bar_class):
    with on_terminal(monkeypatch) as screen:
        make_trainer(tmp_path, bar_class(), max_epochs=1).fit(Module(), DataLoader(Endless(), batch_size=None))

    text = "".join(screen.lines())
    assert "7/?" in text or "7/--" in text


@both
def test_many_short_epochs_are_drawn_a_few_times_only(tmp_path, monkeypatch, bar_class):
    drawn = []

    class Counting(bar_class):  # type: ignore[misc, valid-type]  # a parameter
        def _draw(self, *args: Any) -> None:
            drawn.append(args)
            super()._draw(*args)

    with on_terminal(monkeypatch):
        trainer = make_trainer(tmp_path, Counting(), max_epochs=50, num_sanity_val_steps=0)
        trainer.fit(Module(), data())

    assert len(drawn) < 50


# ---- in a file


@both
def test_file_gets_one_plain_line_an_epoch(tmp_path, capsys, bar_class):
    make_trainer(tmp_path, bar_class()).fit(Module(), data())

    lines = capsys.readouterr().out.splitlines()
    assert [f"Epoch {n}" in line and "4/4" in line and "late" in line for n, line in enumerate(lines)] == [True, True]
    assert not any(control in line for line in lines for control in "\r\x1b")


@both
def test_file_gets_one_line_a_loader(tmp_path, capsys, bar_class):
    make_trainer(tmp_path, bar_class()).predict(Module(), [data(3), data(5)])

    lines = capsys.readouterr().out.splitlines()
    assert [("3/3" in lines[0]), ("5/5" in lines[1])] == [True, True]
    assert len(lines) == 2


@both
def test_file_says_where_an_epoch_broke_off(tmp_path, capsys, bar_class):
    def fail(trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(tmp_path, bar_class(), Calls("on_train_batch_start", fail)).fit(Module(), data())

    assert "2/4" in capsys.readouterr().out


# ---- what is shown


@both
def test_get_metrics_can_be_overridden(tmp_path, capsys, bar_class):
    class Own(bar_class):  # type: ignore[misc, valid-type]  # a parameter
        def get_metrics(self, trainer, pl_module):
            metrics = super().get_metrics(trainer, pl_module)
            metrics.pop("loss", None)
            return {**metrics, "mine": "abc"}

    make_trainer(tmp_path, Own(), max_epochs=1).fit(Module(), data())

    text = capsys.readouterr().out
    assert "mine" in text
    assert "abc" in text
    assert " loss" not in text


@both
def test_version_of_the_logger_is_shown(tmp_path, capsys, bar_class):
    logger = CSVLogger(tmp_path)
    make_trainer(tmp_path, bar_class(), max_epochs=1, logger=logger, log_every_n_steps=1).fit(Module(), data())

    assert "v_num" in capsys.readouterr().out


@both
def test_a_logger_without_version_shows_none(tmp_path, capsys, bar_class):
    logger = CSVLogger(tmp_path)
    make_trainer(tmp_path, bar_class(), logger=logger, fast_dev_run=True).fit(Module(), data())

    assert "v_num" not in capsys.readouterr().out


@both
def test_metrics_are_read_on_redraws_only(tmp_path, monkeypatch, bar_class):
    reads = []

    class Reading(bar_class):  # type: ignore[misc, valid-type]  # a parameter
        def get_metrics(self, trainer, pl_module):
            reads.append(trainer.global_step)
            return super().get_metrics(trainer, pl_module)

    with on_terminal(monkeypatch):
        make_trainer(tmp_path, Reading(), max_epochs=1).fit(Module(), data(200))

    assert len(reads) < 20


@both
def test_refresh_rate_zero_shows_nothing(tmp_path, capsys, bar_class):
    bar = bar_class(refresh_rate=0)
    make_trainer(tmp_path, bar).fit(Module(), data())

    assert capsys.readouterr().out == ""
    assert bar.is_disabled


@both
def test_resumed_epoch_is_counted_from_where_it_stands(tmp_path, bar_class):
    class Noting(bar_class):  # type: ignore[misc, valid-type]  # a parameter
        def _restart(self, stage: str, description: str, total: int | float, done: int) -> None:
            if stage == "train":
                starts.append(done)
            super()._restart(stage, description, total, done)

    def save(trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    starts: list[int] = []
    make_trainer(tmp_path, Noting(), Calls("on_train_batch_end", save), max_epochs=1).fit(Module(), data())
    make_trainer(tmp_path, Noting(), max_epochs=2).fit(Module(), data(), ckpt_path=tmp_path / "middle.ckpt")

    assert starts == [0, 2, 0]


@both
def test_bar_can_be_copied_and_pickled_after_a_run(tmp_path, bar_class):
    bar = bar_class()
    make_trainer(tmp_path, bar, max_epochs=1).fit(Module(), data())
    bar._trainer = None

    assert isinstance(pickle.loads(pickle.dumps(bar)), bar_class)
    assert copy.deepcopy(bar).refresh_rate == bar.refresh_rate


@both
def test_second_process_shows_nothing(bar_class):
    class OtherRank:
        is_global_zero = False

    bar: LiveProgressBar = bar_class()
    bar.setup(OtherRank(), Module(), "fit")  # type: ignore[arg-type]  # any object with a rank will do

    assert bar.is_disabled


# ---- in a notebook

NOTEBOOK = """
import torch
from torch.utils.data import DataLoader
from fulmen import LightningModule, Trainer
from fulmen.callbacks import {bar} as Bar

class Module(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch

settings = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu")
bar = Bar()
Trainer(callbacks=[bar], **settings).predict(Module(), DataLoader(torch.zeros(3, 2)), return_predictions=False)
print("plain:", bar._plain)
"""


@both
@pytest.mark.slow
def test_notebook_shows_a_widget(bar_class):
    pytest.importorskip("ipywidgets")
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(NOTEBOOK.format(bar=bar_class.__name__))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook packages have some of their own
        nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()

    outputs = notebook.cells[0].outputs
    widget = "application/vnd.jupyter.widget-view+json"
    assert sum(widget in output.get("data", {}) for output in outputs) == 1
    assert any("plain: False" in output.get("text", "") for output in outputs)
