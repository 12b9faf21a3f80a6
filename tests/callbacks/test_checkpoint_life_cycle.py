"""Checkpoints as transactions: what a broken save leaves, what is deleted, what a resumed run goes on with."""

from __future__ import annotations

import os
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.callbacks.checkpoint_files import NameClaims, is_inside, sweep_claims
from fulmen.callbacks.lambda_function import LambdaCallback
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.plugins.io.async_io import AsyncCheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.utilities.finite import first_non_finite

pytestmark = pytest.mark.filterwarnings(
    "ignore:The checkpoint folder",
    "ignore:.*states of callbacks",
    "ignore:.*is smaller than the logging interval",
    "ignore:.*not have many workers",
)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if not path.is_dir()}


def load(path):
    return torch.load(path, weights_only=True)


def step_of(path):
    return load(path)["global_step"]


# ---- written, then linked and deleted


class Gate(TorchCheckpointIO):
    """Writes a file only when it is let."""

    def __init__(self, fails_at=()):
        self.may_write = threading.Event()
        self.num_writes = 0
        self.fails_at = fails_at

    def save_checkpoint(self, *args, **kwargs):
        assert self.may_write.wait(30)
        self.num_writes += 1
        if self.num_writes in self.fails_at:
            raise OSError(28, "No space left on device")
        super().save_checkpoint(*args, **kwargs)


def test_link_and_deletions_wait_for_a_file_that_is_written_in_the_background(quiet_trainer, model_class, tmp_path):
    gate, seen = Gate(), []
    gate.may_write.set()

    class Watches(LambdaCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.strategy.checkpoint_io.wait()
                gate.may_write.clear()

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                seen.append((names(tmp_path / "c"), os.readlink(tmp_path / "c/last.ckpt")))
                gate.may_write.set()

    saver = ModelCheckpoint(tmp_path / "c", save_last="link")
    quiet_trainer(Watches(), saver, plugins=[AsyncCheckpointIO(gate)]).fit(model_class())

    (before, link), after = seen[0], names(tmp_path / "c")
    assert {name for name in before if not name.startswith(".")} == {"epoch=0-step=4.ckpt", "last.ckpt"}
    assert link == "epoch=0-step=4.ckpt"
    assert after == {"epoch=2-step=12.ckpt", "last.ckpt"}
    assert step_of(saver.last_model_path) == 12


def test_failed_write_in_the_background_deletes_and_links_nothing(quiet_trainer, model_class, tmp_path):
    gate = Gate(fails_at=(2,))
    gate.may_write.set()
    saver = ModelCheckpoint(tmp_path / "c", save_last="link")
    with pytest.raises(OSError, match="No space"):
        quiet_trainer(saver, plugins=[AsyncCheckpointIO(gate)]).fit(model_class())

    assert "epoch=0-step=4.ckpt" in names(tmp_path / "c")
    assert os.path.exists(tmp_path / "c/last.ckpt")
    assert not [name for name in names(tmp_path / "c") if name.startswith(".")]


class Crash(BaseException):
    """Nothing runs after it, as after kill -9."""


class CrashesAfter(TorchCheckpointIO):
    """Ends the run between two of its file operations."""

    def __init__(self, operations):
        self.left = operations

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise Crash

    def save_checkpoint(self, *args, **kwargs):
        self._count()
        super().save_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, path):
        self._count()
        super().remove_checkpoint(path)

    def publish(self, action):
        self._count()
        super().publish(action)


@pytest.mark.parametrize("save_last", [True, "link"])
def test_run_can_be_resumed_from_whatever_a_crash_between_file_operations_leaves(
    quiet_trainer, model_class, tmp_path, save_last
):
    arguments: dict[str, Any] = {"monitor": "val_loss", "save_top_k": 1, "save_last": save_last}
    for operations in range(2, 100):
        folder = tmp_path / str(operations)
        crashes = CrashesAfter(operations)
        try:
            quiet_trainer(ModelCheckpoint(folder, **arguments), max_epochs=2, plugins=[crashes]).fit(
                model_class([3.0, 2.0])
            )
        except Crash:
            pass
        else:
            assert operations > 6
            break
        left = names(folder)
        trainer = quiet_trainer(saver := ModelCheckpoint(folder, **arguments), max_epochs=3)
        trainer.fit(model_class([0.5]), ckpt_path="auto")

        assert trainer.ckpt_path is not None
        assert step_of(saver.best_model_path) <= step_of(saver.last_model_path) == 12
        assert {saver.best_model_path, saver.last_model_path} <= {str(folder / name) for name in names(folder)}
        strays = names(folder) - {os.path.basename(saver.best_model_path), "last.ckpt"}
        assert len(strays - {os.path.basename(trainer.ckpt_path)}) <= 1, (left, strays)
        assert not [name for name in names(folder) if name.startswith(".")]


# ---- whose files


def test_foreign_files_stay(quiet_trainer, model_class, tmp_path):
    foreign = {"epoch=0-step=4.ckpt", "last.ckpt", "notes.txt", "sub/epoch=1-step=8.ckpt"}
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    quiet_trainer(saver).fit(model_class([3.0, 2.0, 1.0]))

    assert {name for name in foreign if (tmp_path / name).read_text() == "mine"} == foreign
    assert names(tmp_path) - foreign == {"epoch=2-step=12.ckpt", "last-v1.ckpt"}


def attacked(path, key, state):
    checkpoint = load(path)
    checkpoint["callbacks"][key].update(state)
    torch.save(checkpoint, path)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "other extension", "folder"])
def test_state_of_an_untrusted_checkpoint_deletes_nothing_outside_of_the_folder(
    quiet_trainer, model_class, tmp_path, kind
):
    folder, outside = tmp_path / "run/c", tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim.ckpt"
    victim.write_text("precious")
    saver = ModelCheckpoint(folder, monitor="val_loss", save_last=True)
    quiet_trainer(saver, max_epochs=1).fit(model_class([3.0]))
    (folder / "link").symlink_to(outside)
    (folder / "notes.txt").write_text("precious")
    path = {
        "parent": f"{folder}/../../outside/victim.ckpt",
        "absolute": str(victim),
        "link": f"{folder}/link/victim.ckpt",
        "other extension": str(folder / "notes.txt"),
        "folder": f"{folder}/../c",
    }[kind]
    worst = {path: torch.tensor(100.0)}
    attacked(
        saver.best_model_path,
        saver.state_key,
        {
            "best_k_models": worst,
            "kth_best_model_path": path,
            "kth_value": torch.tensor(100.0),
            "best_model_path": path,
            "last_model_path": path,
            "schedule": {"unscored": [path, 8]},
        },
    )
    again = ModelCheckpoint(folder, monitor="val_loss", save_last=True)
    with pytest.warns(UserWarning, match="names files as its own that cannot be"):
        quiet_trainer(again).fit(model_class([2.0, 1.0]), ckpt_path=saver.best_model_path)

    assert victim.read_text() == "precious"
    assert (folder / "notes.txt").read_text() == "precious"
    assert os.path.islink(folder / "link")
    assert again.best_model_path == str(folder / "epoch=2-step=12.ckpt")


@pytest.mark.parametrize(
    "state",
    [
        {"best_k_models": [1, 2], "best_model_path": 7},
        {"best_k_models": {3: "x"}, "kth_best_model_path": "absent.ckpt"},
        {"best_model_score": "high", "current_score": [1]},
    ],
)
def test_state_of_the_wrong_kind_is_not_gone_on_with(quiet_trainer, model_class, tmp_path, state):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss")
    quiet_trainer(saver, max_epochs=1).fit(model_class([3.0]))
    attacked(saver.best_model_path, saver.state_key, state)
    again = ModelCheckpoint(tmp_path, monitor="val_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(again).fit(model_class([2.0, 1.0]), ckpt_path=saver.best_model_path)

    assert again.best_model_score == 1.0
    assert step_of(again.best_model_path) == 12


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("a.ckpt", True),
        ("sub/a.ckpt", True),
        ("sub/../a.ckpt", True),
        ("../a.ckpt", False),
        ("sub/../../a.ckpt", False),
        ("", False),
        (".", False),
        ("a\0.ckpt", False),
    ],
)
def test_what_is_inside_of_a_folder(tmp_path, path, inside):
    (tmp_path / "c/sub").mkdir(parents=True)

    assert is_inside(f"{tmp_path}/c/{path}", f"{tmp_path}/c") is inside
    assert not is_inside(f"s3://c/{path}", f"{tmp_path}/c")


def test_what_is_inside_of_a_remote_folder():
    assert is_inside("s3://b/c/a.ckpt", "s3://b/c/")
    assert not is_inside("s3://b/c/../a.ckpt", "s3://b/c")
    assert not is_inside("s3://b/cc/a.ckpt", "s3://b/c")


# ---- names that two runs want at once


def test_name_reserved_by_another_run_is_not_taken(quiet_trainer, model_class, tmp_path):
    other = NameClaims()
    assert other.claim(str(tmp_path / "epoch=0-step=4.ckpt"))
    saver = ModelCheckpoint(tmp_path)
    quiet_trainer(saver, max_epochs=1).fit(model_class())
    other.release_all()

    assert names(tmp_path) == {"epoch=0-step=4-v1.ckpt"}


def test_reservation_of_a_run_that_was_killed_holds_nobody_up_and_is_cleared_away(tmp_path):
    claims = NameClaims()
    assert claims.claim(str(tmp_path / "a.ckpt"))
    (stale,) = tmp_path.iterdir()
    content = stale.stat().st_ino
    os.close(claims._locks.pop(str(tmp_path / "a.ckpt")))  # what the kernel does with a dead process
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == [content]
    claims, next_run = NameClaims(), NameClaims()
    assert next_run.claim(str(tmp_path / "a.ckpt"))
    assert not claims.claim(str(tmp_path / "a.ckpt"))
    sweep_claims(str(tmp_path))
    assert names(tmp_path) != set()  # held
    os.close(next_run._locks.pop(str(tmp_path / "a.ckpt")))
    sweep_claims(str(tmp_path))

    assert names(tmp_path) == set()


def test_file_that_is_there_is_not_reserved(tmp_path):
    (tmp_path / "a.ckpt").write_text("")
    claims = NameClaims()

    assert not claims.claim(str(tmp_path / "a.ckpt"))
    assert names(tmp_path) == {"a.ckpt"}


# ---- bad numbers


class Spoils(LambdaCallback):
    """Makes a weight NaN in some epochs, as a loss that exploded does."""

    def __init__(self, *epochs, value=float("nan")):
        super().__init__()
        self.epochs, self.value, self.kept = epochs, value, None

    def on_train_batch_start(self, trainer, pl_module, *_):
        if self.kept is not None:
            pl_module.layer.weight.data.copy_(self.kept)
            self.kept = None

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.current_epoch in self.epochs and trainer.is_last_batch:
            self.kept = pl_module.layer.weight.detach().clone()
            pl_module.layer.weight.data[0, 1] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_never_replace_the_best_or_the_last(quiet_trainer, model_class, tmp_path, value):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    with pytest.warns(UserWarning, match=r"Epoch 1, step 8: the weights are not finite.*`layer\.weight`") as caught:
        quiet_trainer(Spoils(1, 2, value=value), saver).fit(model_class([3.0, 2.0, 1.0]))

    assert sum("not finite" in str(each.message) for each in caught) == 1
    assert names(tmp_path) == {"epoch=0-step=4.ckpt", "last.ckpt"}
    assert saver.best_model_score == 3.0
    assert step_of(tmp_path / "last.ckpt") == 4


def test_saving_goes_on_once_the_weights_are_finite_again(quiet_trainer, model_class, tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last="link")
    with pytest.warns(UserWarning, match="not finite"):
        quiet_trainer(Spoils(1), saver).fit(model_class())

    assert names(tmp_path) == {"epoch=2-step=12.ckpt", "last.ckpt"}


def test_exception_saves_no_weights_that_are_not_finite(quiet_trainer, model_class, tmp_path):
    class Breaks(Spoils):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise ZeroDivisionError

    saver = ModelCheckpoint(tmp_path, save_on_exception=True, save_last=True)
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(ZeroDivisionError):
        quiet_trainer(Breaks(1), saver).fit(model_class())

    assert names(tmp_path) == {"epoch=0-step=4.ckpt", "last.ckpt"}


def test_infinite_buffers_are_no_reason_not_to_save(quiet_trainer, model_class, tmp_path):
    model = model_class()
    model.register_buffer("mask", torch.full((2, 2), -float("inf")))
    saver = ModelCheckpoint(tmp_path)
    quiet_trainer(saver).fit(model)

    assert step_of(saver.best_model_path) == 12


@pytest.mark.parametrize(("mode", "bad"), [("min", -float("inf")), ("max", float("inf")), ("min", float("nan"))])
def test_score_that_is_not_finite_never_beats_a_finite_one(quiet_trainer, model_class, tmp_path, mode, bad):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", mode=mode)
    quiet_trainer(saver).fit(model_class([2.0, bad, bad]))

    assert saver.best_model_score == 2.0
    assert names(tmp_path) == {"epoch=0-step=4.ckpt"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_first_non_finite_names_the_tensor(dtype):
    big = torch.full((3,), 60000.0).to(dtype)  # whose sum or square would overflow

    assert first_non_finite([("big", big), ("none", torch.empty(0)), ("int", torch.ones(2, dtype=torch.int64))]) is None
    bad = big.clone()
    bad[1] = float("nan")
    assert first_non_finite([("a", big), ("b", bad), ("c", bad)]) == "b"
    assert first_non_finite([("lazy", torch.nn.LazyLinear(2).weight), ("meta", torch.ones(2, device="meta"))]) is None


# ---- before any work is lost


@pytest.mark.parametrize("what", ["checkpoints", "logs"])
def test_folder_that_cannot_be_written_is_named_before_data_is_loaded(quiet_trainer, model_class, tmp_path, what):
    from fulmen.loggers import CSVLogger

    (tmp_path / "file").write_text("")
    bad, loaded = tmp_path / "file/in", []

    class Model(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def setup(self, stage):
            loaded.append(stage)

    saver = ModelCheckpoint(bad if what == "checkpoints" else tmp_path / "c")
    logger = CSVLogger(bad) if what == "logs" else False
    with pytest.raises(OSError, match=r"Nothing can be written there(.|\n)*file/in"):
        quiet_trainer(saver, logger=logger).fit(Model())

    assert loaded == []


def test_nothing_is_made_where_nothing_is_saved(quiet_trainer, model_class, tmp_path):
    quiet_trainer(ModelCheckpoint(tmp_path / "a"), fast_dev_run=True).fit(model_class())
    quiet_trainer(ModelCheckpoint(tmp_path / "b", save_top_k=0)).fit(model_class())
    quiet_trainer(ModelCheckpoint(tmp_path / "c")).validate(model_class())

    assert names(tmp_path) == set()
    assert not {"a", "b", "c"} & set(os.listdir(tmp_path))


# ---- inside an accumulation window


def test_save_due_inside_a_window_waits_for_its_end(quiet_trainer, model_class, tmp_path):
    started = []
    look = LambdaCallback(on_save_checkpoint=lambda trainer, *_: started.append(trainer.fit_loop.has_started_window))
    saver = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, save_last=True)
    quiet_trainer(look, saver, max_epochs=1, val_check_interval=3, accumulate_grad_batches=4).fit(
        model_class([3.0, 2.0, 1.0], batches=12)
    )

    assert started
    assert not any(started)
    # validated after batches 3, 6, 9 and 12; the window ends after 4, 8 and 12
    assert {(step_of(path), float(score)) for path, score in saver.best_k_models.items()} == {
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    }


# ---- going on


class Stops(Exception):
    pass


TRIGGERS: dict[str, dict[str, Any]] = {
    "steps": {"every_n_train_steps": 3},
    "epochs": {"every_n_epochs": 2},
    "validations": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "train metric": {"every_n_train_steps": 2, "monitor": "batch", "mode": "max"},
}


def run(quiet_trainer, model_class, folder, arguments, stop_at=None, ckpt_path=None):
    class Model(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def training_step(self, batch, batch_idx):
            if self.global_step == stop_at:
                raise Stops
            return super().training_step(batch, batch_idx)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["validations"] = self.validations

        def on_load_checkpoint(self, checkpoint):
            self.validations = checkpoint["validations"]

    saver = ModelCheckpoint(folder / "c", **arguments)
    to_resume = ModelCheckpoint(folder / "each", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(saver, to_resume, max_epochs=4, val_check_interval=0.5)
    trainer.fit(Model([5.0, 3.0, 4.0, 1.0, 2.0, 6.0, 0.5, 0.7]), ckpt_path=ckpt_path)
    return saver


@pytest.mark.filterwarnings("ignore:`ModelCheckpoint.monitor")
@pytest.mark.parametrize("step", [6, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 9, 11, 14))])
@pytest.mark.parametrize("keep", [-1, 2])
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_resumed_run_keeps_the_files_that_an_uninterrupted_one_keeps(
    quiet_trainer, model_class, tmp_path, trigger, keep, step
):
    arguments = {"monitor": "val_loss", "save_top_k": keep, "save_last": True, **TRIGGERS[trigger]}
    expected = run(quiet_trainer, model_class, tmp_path / "whole", arguments)
    broken = tmp_path / "broken"
    with pytest.raises(Stops):
        run(quiet_trainer, model_class, broken, arguments, stop_at=step)
    ckpt_path = broken / f"each/step={step}.ckpt"
    state = load(ckpt_path)["callbacks"][expected.state_key]
    known = {*state["best_k_models"], state["last_model_path"], state["schedule"]["unscored"][0]}
    for path in (broken / "c").iterdir():  # what was saved after the file was
        if step_of(path) >= step and str(path) not in known:
            path.unlink()
    actual = run(quiet_trainer, model_class, broken, arguments, ckpt_path=ckpt_path)

    kept = [{(step_of(path), float(s)) for path, s in each.best_k_models.items()} for each in (actual, expected)]
    assert kept[0] == kept[1]
    assert names(broken / "c") == names(tmp_path / "whole/c")
    assert step_of(actual.last_model_path) == step_of(expected.last_model_path) == 16


def test_score_of_an_earlier_validation_is_not_given_to_later_weights_after_a_resume(
    quiet_trainer, model_class, tmp_path
):
    each = ModelCheckpoint(tmp_path / "each", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    arguments: dict[str, Any] = {"monitor": "val_loss", "every_n_train_steps": 3, "save_top_k": 2}
    quiet_trainer(each, ModelCheckpoint(tmp_path / "a", **arguments), max_epochs=2).fit(model_class([2.0, 1.0]))
    saver = ModelCheckpoint(tmp_path / "a", **arguments)
    quiet_trainer(saver, max_epochs=3).fit(model_class([5.0, 4.0]), ckpt_path=tmp_path / "each/step=5.ckpt")

    assert {step_of(path) for path in saver.best_k_models} <= {4, 8, 12}  # where validation was


def test_files_that_are_gone_are_no_longer_kept_after_a_resume(quiet_trainer, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=3)
    quiet_trainer(first).fit(model_class([1.0, 3.0, 2.0]))
    path = first.best_model_path
    newest = str(tmp_path / "epoch=2-step=12.ckpt")
    os.unlink(path)
    again = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=3)
    quiet_trainer(again, max_epochs=4).fit(model_class([2.5]), ckpt_path=newest)

    assert again.best_model_path == newest
    assert all(os.path.exists(path) for path in again.best_k_models)


def test_interval_of_time_goes_on_where_it_was(quiet_trainer, model_class, tmp_path):
    hour = timedelta(hours=1)
    saver = ModelCheckpoint(tmp_path / "a", train_time_interval=hour)
    by_hand = ModelCheckpoint(tmp_path / "b", every_n_train_steps=1)
    quiet_trainer(saver, by_hand, max_epochs=1).fit(model_class())
    assert names(tmp_path) == {"b/epoch=0-step=4.ckpt"}
    attacked(by_hand.best_model_path, saver.state_key, {"schedule": {"elapsed_s": 3600.0}})
    again = ModelCheckpoint(tmp_path / "a", train_time_interval=hour)
    quiet_trainer(again, by_hand, max_epochs=2).fit(model_class(), ckpt_path=by_hand.best_model_path)

    assert names(tmp_path / "a") == {"epoch=1-step=5.ckpt"}
