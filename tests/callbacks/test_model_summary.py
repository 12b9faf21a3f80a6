import io
import logging
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelSummary, RichModelSummary
from fulmen.callbacks.results_table import print_results
from fulmen.utilities.warnings import PossibleUserWarning


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.example_input_array = torch.zeros(3, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, *callbacks, **kwargs):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": 1}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), accelerator="cpu", **{**settings, **kwargs})
    trainer.fit(Module(), DataLoader(TensorDataset(torch.zeros(4, 2))))
    return trainer


def test_summary_is_logged_as_fit_begins(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, ModelSummary())

    assert "layer | Linear | 3 " in caplog.text
    assert "[3, 2]" in caplog.text
    assert "Total params" in caplog.text


def test_rich_summary_is_printed_as_fit_begins(tmp_path, capsys):
    fit(tmp_path, RichModelSummary(header_style="bold"))

    text = capsys.readouterr().out
    assert "layer" in text
    assert "[3, 2]" in text
    assert "Total params: 3" in text


@pytest.mark.parametrize("summary_class", [ModelSummary, RichModelSummary])
def test_depth_zero_shows_nothing(tmp_path, capsys, caplog, summary_class):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, summary_class(max_depth=0))

    assert "Params" not in caplog.text + capsys.readouterr().out


def test_summarize_can_be_overridden(tmp_path):
    class Own(ModelSummary):
        @staticmethod
        def summarize(*args, **kwargs):
            got.append((args, kwargs))

    got: list[tuple[Any, ...]] = []
    fit(tmp_path, Own(max_depth=2, mine=1))

    ((args, kwargs),) = got
    assert dict(args[0])["Name"] == ["layer"]
    assert args[1:3] == (3, 3)
    assert args[3] == pytest.approx(12e-6)
    assert args[4] == {"train": 1, "eval": 0}
    assert kwargs == {"total_flops": 12, "mine": 1}


def test_example_runs_in_the_precision_of_the_trainer(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, ModelSummary(), precision="64-true")

    assert "[3, 1]" in caplog.text


def test_mixed_precision_says_which_size_is_meant(tmp_path):
    with pytest.warns(PossibleUserWarning, match="32-bit"):
        fit(tmp_path, ModelSummary(), precision="bf16-mixed")


# ---- the table of results


def table(results, monkeypatch, columns=80) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    file = io.StringIO()
    print_results(results, "test", file)
    return file.getvalue().splitlines()


def test_results_stand_in_a_column_for_each_loader(monkeypatch):
    lines = table([{"b": 1.0, "a/dataloader_idx_0": 0.5}, {"b": 2.0, "a/dataloader_idx_1": 0.25}], monkeypatch)

    assert [cell.strip() for cell in lines[1].split("┃")] == ["", "Test metric", "DataLoader 0", "DataLoader 1", ""]
    assert [cell.strip() for cell in lines[3].split("│")] == ["", "a", "0.5", "0.25", ""]
    assert [cell.strip() for cell in lines[4].split("│")] == ["", "b", "1", "2", ""]


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_results_fit_the_terminal(monkeypatch, columns):
    results = [{"a_name_" * 10: 1 / 3, "only": float(idx)} for idx in range(7)]
    lines = table(results, monkeypatch, columns)

    assert max(map(len, lines)) <= columns
    assert all(f"DataLoader {idx}" in "".join(lines) for idx in range(7))


def test_results_are_shown_with_the_digits_of_single_precision(monkeypatch):
    results = [{"accuracy": 0.9850000143051147, "loss": 1.23456789e-8, "samples": 12}]
    lines = table(results, monkeypatch)

    assert [line.split("│")[2].strip() for line in lines[3:6]] == ["0.985", "1.23457e-08", "12"]
    assert results[0]["accuracy"] == 0.9850000143051147


def test_no_metrics_print_nothing(monkeypatch):
    assert table([{}], monkeypatch) == []


def test_results_reach_a_file_without_box_characters(tmp_path):
    with (tmp_path / "log.txt").open("w", encoding="ascii") as file:
        print_results([{"loss": 0.5}], "validate", file)

    assert "Validate metric" in (tmp_path / "log.txt").read_text()
