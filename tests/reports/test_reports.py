"""The HTML report: what it says of runs, also of broken ones."""

import html
import html.parser
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.cli import main
from fulmen.loggers import CSVLogger, JSONLogger, TensorBoardLogger
from fulmen.reports import read_run, write_report
from fulmen.reports.chart import DrawnCurve, chart, number_text, ticks
from fulmen.reports.environment import command_line, environment, git_commit
from fulmen.reports.metrics_files import Curve
from fulmen.reports.run_file import RUN_FILE, put_run, read_runs
from tests.support import quiet


class Model(LightningModule):
    def __init__(self, lr=0.1, nested=None, fails_at=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        if self.global_step == self.hparams.fails_at:
            raise RuntimeError("the <data> is bad")
        loss = self.layer(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def data():
    return DataLoader(list(torch.ones(4, 2)))  # type: ignore[arg-type]  # a list is dataset enough


def train(tmp_path, logger=None, **hparams):
    logger = logger or CSVLogger(tmp_path, name="demo")
    saving = ModelCheckpoint(monitor="val_loss", save_last=True)
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": True}
    trainer = Trainer(**quiet(tmp_path, logger=logger, callbacks=[saving], **settings))
    trainer.fit(Model(**hparams), data(), data())
    return trainer


class Text(html.parser.HTMLParser):
    """The text of a page, its tags, and those that were not closed."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self.open, self.links = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split()).replace(" ,", ",")


def page_of(path):
    page = Text(Path(path).read_text())
    assert page.open == []
    return page


def folder_with(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


# ---- a real run
def test_report_of_a_run_says_what_happened(tmp_path):
    trainer = train(tmp_path, nested={"depth": 3})
    trainer.validate(trainer.lightning_module, data(), verbose=False)
    path = trainer.report()
    page = page_of(path)

    assert path == Path(trainer.log_dir) / "report.html"
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import", path.read_text())
    for expected in (
        "demo/version_0 finished", "Model · max_epochs=2 reached", "2 epochs", "8 steps", "3 parameters",
        "best val_loss", "train_loss", "nested.depth 3", "lr 0.1", f"torch {torch.__version__}", "epoch=1-step=8.ckpt",
        "last.ckpt", "best", "precision 32-true", "fit finished", "validate finished",
    ):  # fmt: skip
        assert expected in page.text
    assert page.tags.count("polyline") >= 2


def test_the_shell_command_writes_the_same_page(tmp_path, capsys):
    trainer = train(tmp_path)
    main(["report", trainer.log_dir, "-o", str(tmp_path / "sub/page.html")])

    assert capsys.readouterr().out.strip() == str(tmp_path / "sub/page.html")
    assert (tmp_path / "sub/page.html").read_bytes() == trainer.report(tmp_path / "other.html").read_bytes()


def test_failed_run_shows_its_error(tmp_path):
    with pytest.raises(RuntimeError, match="data"):
        train(tmp_path, fails_at=5)
    page = page_of(write_report(tmp_path / "demo/version_0"))

    assert "version_0 failed" in page.text
    assert "RuntimeError: the <data> is bad" in page.text


def test_interrupted_run_and_its_resumption_are_both_told(tmp_path):
    with pytest.raises(RuntimeError, match="data"):
        train(tmp_path, CSVLogger(tmp_path, name="demo", version=0), fails_at=5)
    logger = CSVLogger(tmp_path, name="demo", version=0)
    saving = ModelCheckpoint(monitor="val_loss", save_last=True)
    settings = {"max_epochs": 3, "log_every_n_steps": 1, "enable_checkpointing": True}
    trainer = Trainer(**quiet(tmp_path, logger=logger, callbacks=[saving], **settings))
    (checkpoint,) = (tmp_path / "demo/version_0/checkpoints").glob("epoch*")
    trainer.fit(Model(), data(), data(), ckpt_path=checkpoint)

    runs = read_run(str(trainer.log_dir)).runs
    assert [run["status"] for run in runs] == ["failed", "finished"]
    assert [run["steps"] for run in runs] == [5, 12]
    assert checkpoint.name in page_of(trainer.report()).text


def test_run_that_was_killed_has_no_end(tmp_path):
    trainer = train(tmp_path)
    run = {key: value for key, value in trainer.notes.runs[-1].items() if key in ("id", "method", "started", "model")}
    put_run(trainer.log_dir, {**run, "status": "running"})
    page = page_of(write_report(trainer.log_dir))

    assert "no end recorded" in page.text
    assert "still running, or was ended from outside" in page.text
    assert "last epoch" in page.text
    assert "last.ckpt" in page.text


def test_report_without_any_logger_is_made_from_memory(tmp_path):
    trainer = Trainer(**quiet(tmp_path, log_every_n_steps=1))
    trainer.fit(Model(), data(), data())
    page = page_of(trainer.report(tmp_path / "page.html"))

    assert "train_loss" in page.text
    assert "lr 0.1" in page.text
    assert "max_epochs=1 reached" in page.text


def test_report_with_tensorboard_only_has_curves_from_memory(tmp_path):
    pytest.importorskip("tensorboard")
    trainer = train(tmp_path, TensorBoardLogger(tmp_path))

    assert "val_loss" in read_run_text(trainer.report())
    assert [run["status"] for run in read_runs(trainer.log_dir)] == ["finished"]


def read_run_text(path):
    return page_of(path).text


def test_report_of_json_lines_equals_that_of_csv(tmp_path):
    torch.manual_seed(0)
    csv = read_run(str(train(tmp_path / "csv").log_dir))
    torch.manual_seed(0)
    logger = JSONLogger(tmp_path / "lines", name="demo")
    train(tmp_path / "lines", logger)
    lines = read_run(logger.log_dir)

    assert {name: (curve.steps, curve.values) for name, curve in lines.curves.items()} == {
        name: (curve.steps, curve.values) for name, curve in csv.curves.items()
    }
    assert dict(lines.hparams).keys() == dict(csv.hparams).keys()
    assert lines.problems == []


def test_fast_dev_run_leaves_no_notes(tmp_path):
    trainer = Trainer(**quiet(tmp_path, logger=CSVLogger(tmp_path), fast_dev_run=True))
    trainer.fit(Model(), data(), data())

    assert list(tmp_path.rglob(RUN_FILE)) == []


def test_nothing_run_is_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="nothing was run"):
        Trainer(**quiet(tmp_path)).report()


# ---- several runs
def test_runs_are_compared_in_the_same_panels(tmp_path):
    for lr in (0.1, 0.01):
        train(tmp_path, CSVLogger(tmp_path, name="demo"), lr=lr)
    path = write_report([tmp_path / "demo/version_0", tmp_path / "demo/version_1"], tmp_path / "both.html")
    page = page_of(path)

    assert "2 runs compared" in page.text
    assert "lr 0.1 0.01" in page.text
    assert "<b>0.01</b>" in path.read_text()
    (panel,) = re.findall(r"<h3>loss</h3>.*?</svg></div>|<h3>loss</h3>.*?readout", path.read_text())
    labels = json.loads(html.unescape(re.findall(r'data-curves="([^"]*)"', panel)[0]))
    assert [each[0] for each in labels] == [
        "demo/version_0: train_loss", "demo/version_0: val_loss",
        "demo/version_1: train_loss", "demo/version_1: val_loss",
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "run").mkdir(parents=True)
        folder_with(tmp_path / place / "run", metrics__csv="step,loss\n1,2\n")
    page = page_of(write_report([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "b/run"]))

    assert f"{tmp_path}/a/run" in page.text
    assert page.text.count(f"{tmp_path}/b/run") >= 2


# ---- what is broken or hostile
def test_broken_rows_are_counted_and_left_out(tmp_path):
    text = "epoch,loss,step\n0,1.0,0\n0,abc,1\n0,0.5,2,9,9\n0,0.25,3\n0,0.1"
    run = read_run(folder_with(tmp_path, metrics__csv=text))

    assert run.curves["loss"].values == [1.0, 0.25]
    assert run.problems == ["2 rows of `metrics.csv` could not be read", "1 cell of `metrics.csv` could not be read"]


def test_broken_lines_are_counted_and_left_out(tmp_path):
    lines = ['{"step": 0, "loss": 1}', '{"step": 1, "lo', "[1]", "", '{"step": 2, "loss": "NaN"}', '{"other": 1}']
    run = read_run(folder_with(tmp_path, metrics__jsonl="\n".join(lines)))

    assert run.curves["loss"].steps == [0, 2]
    assert math.isnan(run.curves["loss"].values[1])
    assert run.problems == ["2 rows of `metrics.jsonl` could not be read"]


def test_values_that_are_not_finite_are_marked(tmp_path):
    text = "step,loss\n" + "".join(f"{n},{value}\n" for n, value in enumerate(["1", "nan", "inf", "0.5", "-inf", "2"]))
    path = write_report(folder_with(tmp_path, metrics__csv=text))

    assert path.read_text().count("&times;</text>") == 3
    assert "6 (3 not finite)" in page_of(path).text


@pytest.mark.parametrize("values", ["nan,nan", "1e308,-1e308", "5e-324,0", "1e300,1e-300", "7,7", "0,0", "-3", "inf"])
def test_extreme_values_make_a_whole_page(tmp_path, values):
    rows = "".join(f"{n},{value}\n" for n, value in enumerate(values.split(",")))
    page = write_report(folder_with(tmp_path, metrics__csv=f"step,loss\n{rows}")).read_text()

    page_of(tmp_path / "report.html")
    for name in ("points", "cx", "cy", "x", "y"):
        assert not any("nan" in place or "inf" in place for place in re.findall(rf' {name}="([^"]*)"', page))


def test_names_and_values_cannot_inject_anything(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x>"
    quoted = evil.replace('"', '""')
    folder_with(
        tmp_path,
        metrics__csv=f'step,"{quoted}"\n1,2\n2,3\n',
        hparams__yaml=f"{json.dumps(evil)}: {json.dumps(evil)}\n",
        run_notes__json=json.dumps({"runs": [{"id": 1, "method": evil, "status": evil, "error": evil, "model": evil,
                                   "started": evil, "environment": {evil: evil}, "steps": evil}]}),
    )  # fmt: skip
    (tmp_path / f"{evil.replace('/', '')}.ckpt").write_text("")
    page = page_of(write_report(tmp_path))

    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert evil in page.text
    assert "parts of run_notes.json are broken" in page.text


def test_parts_that_are_missing_are_left_out(tmp_path):
    page = page_of(write_report(folder_with(tmp_path, hparams__yaml="lr: 0.1\n")))

    assert "there is no metrics.csv or metrics.jsonl, so there are no curves" in page.text
    assert "lr 0.1" in page.text
    assert "end not recorded" in page.text
    assert "Checkpoints" not in page.text


def test_broken_notes_and_settings_are_said(tmp_path):
    folder_with(
        tmp_path, metrics__csv="step,a\n0,1\n", run_notes__json="{", hparams__yaml="lr: !!python/name:os.x\nb: 2"
    )
    run = read_run(tmp_path)

    assert "`run_notes.json` is broken" in run.problems
    assert run.hparams == [("lr", "!!python/name:os.x"), ("b", "2")]


_DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "notes",
    [
        '{"seconds": NaN, "steps": Infinity}',
        f'{{"steps": 1{"0" * 400}, "parameters": 1e400}}',
        '{"started": "0001-01-01T00:00:00"}',
        '{"checkpoints": {"best": {"a": 1}}}',
        '{"checkpoints": {"best": 5, "last": "a.ckpt"}}',
        '{"checkpoints": {"last": "a\\u0000b"}}',
        '{"checkpoints": {"scores": "abc"}}',
        f'{{"checkpoints": {{"monitor": "x", "best": "a.ckpt", "best_score": 1{"0" * 400}}}}}',
        _DEEP,
    ],
)
def test_notes_of_any_content_make_a_whole_page(tmp_path, notes):
    notes = f'{{"runs": [{notes[:-1]}, "id": "1", "method": "fit", "status": "failed"}}]}}' if notes != _DEEP else notes
    page = page_of(write_report(folder_with(tmp_path, metrics__csv="step,a\n0,1\n", run_notes__json=notes)))

    assert "fit failed" in page.text or "run_notes.json is broken" in page.text


@pytest.mark.parametrize(
    "row", [f'{{"step": 1, "a": 1{"0" * 400}}}', f'{{"step": 1, "a": {_DEEP}', f'{{"step": 1{"0" * 400}, "a": 1}}']
)
def test_lines_of_any_content_make_a_whole_page(tmp_path, row):
    page_of(write_report(folder_with(tmp_path, metrics__jsonl=f'{{"step": 0, "a": 2}}\n{row}\n')))

    assert read_run(tmp_path).curves["a"].values[0] == 2


def test_cell_that_is_too_long_is_left_out_with_its_row(tmp_path):
    run = read_run(folder_with(tmp_path, metrics__csv=f"step,a\n0,1\n1,{'1' * 200_000}\n2,3\n"))

    assert run.curves["a"].values == [1, 3]
    assert run.problems == ["1 row of `metrics.csv` could not be read"]


@pytest.mark.parametrize("text", ["a: &a {x: *a}\n", "a: 99999-99-99\n", "a: 2001-13-45\n", "- 1\n", "a: " + _DEEP])
def test_settings_of_any_content_make_a_whole_page(tmp_path, text):
    page_of(write_report(folder_with(tmp_path, hparams__yaml=text, metrics__csv="step,a\n0,1\n")))


def test_folders_that_only_the_notes_name_are_not_walked_through(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/big").write_text("x" * 5000)
    notes = {"runs": [{"id": "1", "method": "fit", "checkpoints": {"best": str(tmp_path / "other")}}]}
    run = read_run(folder_with(tmp_path, run_notes__json=json.dumps(notes)))

    assert [(each.name, each.size) for each in run.checkpoints] == [("other", None)]


def test_folder_without_a_run_is_an_error_that_helps(tmp_path, capsys):
    (tmp_path / "version_3").mkdir()
    with pytest.raises(ValueError, match=r"version_3.*pass one of them"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nowhere")])
    assert "fulmen report: error: There is no folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one"):
        write_report([])


def test_checkpoint_that_is_gone_is_listed_as_such(tmp_path):
    trainer = train(tmp_path)
    best = Path(trainer.checkpoint_callback.best_model_path)
    best.unlink()

    assert f"{best.name} best" in page_of(trainer.report()).text
    assert "no longer there" in page_of(trainer.report()).text


# ---- parts
def test_many_points_are_thinned_with_their_extremes():
    values = [math.sin(n / 50) for n in range(50_000)]
    values[12_345] = 9.0
    picture = chart("loss", [DrawnCurve("loss", Curve([float(n) for n in range(50_000)], values), 0)])

    assert len(picture) < 60_000
    assert '"9"' in html.unescape(picture)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 300, [0, 100, 200, 300]),
        (5, 5, [5]),
        (-1e9, 1e9, [-1e9, -5e8, 0, 5e8, 1e9]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high, 5) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.12345, "0.1235"), (1e-5, "1e-5"), (123456.0, "1.235e5"), (math.nan, "NaN"), (-math.inf, "-inf")],
)
def test_numbers_are_short(value, text):
    assert number_text(value) == text


def test_secrets_are_left_out_of_the_command():
    words = ["/home/me/train.py", "--lr=0.1", "--api-key", "abc", "--token=def", "--name", "x"]

    assert command_line(words) == "train.py --lr=0.1 --api-key *** --token=*** --name x"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("logger.api_key=abc", "logger.api_key=***"),
        ("+wandb.token=abc", "+wandb.token=***"),
        ("--trainer.logger.init_args.api_key=abc", "--trainer.logger.init_args.api_key=***"),
        ('--config={"lr": 1, "api_key": "abc"}', '--config={"lr": 1, "api_key": ***'),
        ("--tracking_uri=https://me:abc@host/x", "--tracking_uri=https://***@host/x"),
        ("https://host/x?token=abc", "https://host/x?token=***"),
        ("--pwd=abc", "--pwd=***"),
        ("data/keys.csv", "data/keys.csv"),
    ],
)
def test_secrets_are_found_in_whatever_form_they_are_given(word, shown):
    assert command_line(["train.py", word, "last"]) == f"train.py {shown} last"


def test_environment_is_told_where_nothing_can_be_read(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "git commit" not in environment()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_bytes(b"\xff\xfe")
    assert git_commit(tmp_path) is None
    monkeypatch.setattr("sys.argv", [])
    assert command_line() == ""


def test_commit_is_read_from_all_forms_of_a_repository(tmp_path):
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\naaa refs/heads/main\n")
    assert git_commit(tmp_path) == "aaa"
    (git / "refs/heads/main").write_text("bbb\n")
    (tmp_path / "sub").mkdir()
    assert git_commit(tmp_path / "sub") == "bbb"
    (git / "worktrees/w").mkdir(parents=True)
    (git / "worktrees/w/HEAD").write_text("ref: refs/heads/main\n")
    (git / "worktrees/w/commondir").write_text("../..\n")
    (tmp_path / "sub/.git").write_text("gitdir: ../.git/worktrees/w\n")
    assert git_commit(tmp_path / "sub") == "bbb"
    (git / "HEAD").write_text("ccc\n")
    assert git_commit(tmp_path) == "ccc"


def test_environment_names_no_person_and_no_machine():
    import getpass
    import socket

    text = json.dumps(environment())
    assert getpass.getuser() not in text or getpass.getuser() in "Linux root"
    assert socket.gethostname() not in text
