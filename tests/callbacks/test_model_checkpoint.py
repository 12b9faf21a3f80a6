from __future__ import annotations

import logging
import math
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.callbacks.lambda_function import LambdaCallback
from fulmen.callbacks.model_checkpoint import ModelCheckpoint
from fulmen.core.callback import Callback
from fulmen.plugins.io.async_io import AsyncCheckpointIO
from fulmen.plugins.io.torch_io import TorchCheckpointIO
from fulmen.utilities.exceptions import MisconfigurationException


def names(folder):
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


def load(path):
    return torch.load(path, weights_only=True)


def step_of(path):
    return load(path)["global_step"]


def state_in(path, checkpoint):
    return load(path)["callbacks"][checkpoint.state_key]


# ---- settings


@pytest.mark.parametrize(
    "arguments",
    [
        {"save_top_k": 2},
        {"save_top_k": -2, "monitor": "v"},
        {"mode": "best"},
        {"every_n_epochs": -1},
        {"every_n_train_steps": -1},
        {"every_n_train_steps": 1, "every_n_epochs": 1},
        {"every_n_train_steps": 1, "train_time_interval": timedelta(1)},
    ],
)
def test_settings_that_cannot_work_are_refused(arguments):
    with pytest.raises(MisconfigurationException, match="ModelCheckpoint"):
        ModelCheckpoint(**arguments)


def test_links_are_refused_on_object_stores():
    with pytest.raises(ValueError, match="save_last"):
        ModelCheckpoint("s3://bucket/x", save_last="link")


def test_state_key_has_the_format_of_lightning():
    assert ModelCheckpoint(monitor="v", every_n_train_steps=5).state_key == (
        "ModelCheckpoint{'monitor': 'v', 'mode': 'min', 'every_n_train_steps': 5, 'every_n_epochs': 0,"
        " 'train_time_interval': None}"
    )
    assert ModelCheckpoint(train_time_interval=timedelta(seconds=5)).state_key == (
        "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 0,"
        " 'train_time_interval': datetime.timedelta(seconds=5)}"
    )


def test_zero_steps_switch_saving_off_altogether():
    assert ModelCheckpoint(every_n_train_steps=0).every_n_epochs == 0


def test_checkpoint_names():
    checkpoint = ModelCheckpoint(filename="{epoch}-{acc:.2f}")
    metrics = {"epoch": 2, "step": 7, "acc": torch.tensor(0.5)}

    assert checkpoint.format_checkpoint_name(metrics) == "epoch=2-acc=0.50.ckpt"
    assert checkpoint.format_checkpoint_name(metrics, ver=3) == "epoch=2-acc=0.50-v3.ckpt"
    assert checkpoint.format_checkpoint_name(metrics, "f", prefix="p") == "p-f.ckpt"
    assert ModelCheckpoint("/x").format_checkpoint_name(metrics) == os.path.join(
        os.path.realpath("/x"), "epoch=2-step=7.ckpt"
    )


# ---- which files are kept


def test_without_monitor_the_newest_file_is_kept(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "c")
    quiet_trainer(checkpoint).fit(model_class())

    assert names(tmp_path / "c") == {"epoch=2-step=12.ckpt"}
    assert checkpoint.best_model_path == str(tmp_path / "c" / "epoch=2-step=12.ckpt")
    assert checkpoint.best_model_score is None


def test_default_folder_is_below_the_root(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint()
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class())

    assert checkpoint.best_model_path == str(tmp_path / "checkpoints" / "epoch=0-step=4.ckpt")


def test_default_folder_is_beside_the_logs(quiet_trainer, model_class, tmp_path):
    from fulmen.loggers.csv_logs import CSVLogger

    checkpoint = ModelCheckpoint()
    logger = CSVLogger(tmp_path, name="n", version=3)
    quiet_trainer(checkpoint, max_epochs=1, logger=logger, log_every_n_steps=1).fit(model_class())

    assert checkpoint.best_model_path == str(tmp_path / "n" / "version_3" / "checkpoints" / "epoch=0-step=4.ckpt")


def test_the_best_files_are_kept(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
    quiet_trainer(checkpoint, max_epochs=4).fit(model_class([3.0, 1.0, 2.0, 5.0]))

    assert names(tmp_path) == {"epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"}
    assert checkpoint.best_model_path.endswith("epoch=1-step=8.ckpt")
    assert checkpoint.best_model_score == 1.0
    assert checkpoint.kth_value == 2.0


def test_max_mode_keeps_the_largest(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max")
    quiet_trainer(checkpoint).fit(model_class([1.0, 3.0, 2.0]))

    assert names(tmp_path) == {"epoch=1-step=8.ckpt"}


@pytest.mark.parametrize(("monitor", "expected"), [("step", {"11", "12"}), ("epoch", {"8", "12"})])
def test_counters_can_be_monitored_without_being_logged(quiet_trainer, model_class, tmp_path, monitor, expected):
    every = 1 if monitor == "step" else None
    checkpoint = ModelCheckpoint(tmp_path / "c", "{step}", monitor, mode="max", save_top_k=2, every_n_train_steps=every)
    quiet_trainer(checkpoint).fit(model_class())

    assert names(tmp_path / "c") == {f"step={step}.ckpt" for step in expected}


def test_an_equal_score_does_not_replace(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    quiet_trainer(checkpoint).fit(model_class([1.0]))

    assert names(tmp_path) == {"epoch=0-step=4.ckpt"}


def test_nan_is_the_worst_score(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
    quiet_trainer(checkpoint).fit(model_class([math.nan, 2.0, 4.0]))

    assert names(tmp_path) == {"epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"}


def test_metrics_of_the_training_epoch_can_be_monitored(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="epoch_loss", save_top_k=-1)
    trainer = quiet_trainer(checkpoint)
    trainer.fit(model_class())

    assert len(checkpoint.best_k_models) == 3
    assert checkpoint.best_model_path.endswith("epoch=2-step=12.ckpt")


def test_no_file_is_overwritten_when_all_are_kept_under_one_name(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="m", save_top_k=-1)
    quiet_trainer(checkpoint).fit(model_class())

    assert names(tmp_path) == {"m.ckpt", "m-v1.ckpt", "m-v2.ckpt"}
    assert [step_of(tmp_path / name) for name in ("m.ckpt", "m-v1.ckpt", "m-v2.ckpt")] == [4, 8, 12]


def test_one_name_is_used_again_by_the_file_that_replaces(quiet_trainer, model_class, tmp_path):
    quiet_trainer(ModelCheckpoint(tmp_path, filename="m")).fit(model_class())

    assert names(tmp_path) == {"m.ckpt"}
    assert step_of(tmp_path / "m.ckpt") == 12


def test_files_of_others_are_neither_overwritten_nor_deleted(quiet_trainer, model_class, tmp_path):
    (tmp_path / "m.ckpt").write_text("mine")
    (tmp_path / "last.ckpt").write_text("mine too")
    checkpoint = ModelCheckpoint(tmp_path, filename="m", save_last=True)
    with pytest.warns(UserWarning, match="not empty"):
        quiet_trainer(checkpoint).fit(model_class())

    assert names(tmp_path) == {"m.ckpt", "m-v1.ckpt", "last.ckpt", "last-v1.ckpt"}
    assert (tmp_path / "m.ckpt").read_text() == "mine"
    assert (tmp_path / "last.ckpt").read_text() == "mine too"


def test_without_version_counter_files_are_overwritten(quiet_trainer, model_class, tmp_path):
    (tmp_path / "m.ckpt").write_text("old")
    with pytest.warns(UserWarning, match="not empty"):
        quiet_trainer(ModelCheckpoint(tmp_path, filename="m", enable_version_counter=False)).fit(model_class())

    assert names(tmp_path) == {"m.ckpt"}
    assert step_of(tmp_path / "m.ckpt") == 12


def test_metrics_appear_in_names(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="x-{epoch:02d}-{val_loss:.2f}", monitor="val_loss")
    quiet_trainer(checkpoint).fit(model_class([0.5]))

    assert names(tmp_path) == {"x-epoch=00-val_loss=0.50.ckpt"}


def test_save_weights_only_leaves_the_optimizer_out(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=True)
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class())

    assert "optimizer_states" not in load(checkpoint.best_model_path)


def test_fast_dev_run_saves_nothing(quiet_trainer, model_class, tmp_path):
    quiet_trainer(ModelCheckpoint(tmp_path / "c", save_last=True), fast_dev_run=True).fit(model_class())

    assert not (tmp_path / "c").exists()


# ---- when


def test_every_n_epochs(quiet_trainer, model_class, tmp_path):
    quiet_trainer(ModelCheckpoint(tmp_path, every_n_epochs=2, save_top_k=-1), max_epochs=5).fit(model_class())

    assert names(tmp_path) == {"epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt"}


def test_every_n_train_steps(quiet_trainer, model_class, tmp_path):
    quiet_trainer(ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)).fit(model_class())

    assert {step_of(tmp_path / name) for name in names(tmp_path)} == {3, 6, 9, 12}


def test_steps_are_optimizer_steps(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    quiet_trainer(checkpoint, accumulate_grad_batches=2, max_epochs=2).fit(model_class())

    assert names(tmp_path) == {"epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"}


def test_steps_that_are_jumped_over_are_made_up_for(quiet_trainer, model_class, tmp_path):
    class TwoOptimizers(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.layer(batch[0]).sum())
                optimizer.step()

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1)
    quiet_trainer(checkpoint, max_epochs=2).fit(TwoOptimizers())

    assert {step_of(tmp_path / name) for name in names(tmp_path)} == {6, 10, 16}


def test_time_interval(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0), save_top_k=-1)
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class())
    assert {step_of(tmp_path / name) for name in names(tmp_path)} == {1, 2, 3, 4}


def test_time_interval_that_never_passes(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, train_time_interval=timedelta(days=1), save_top_k=-1)
    quiet_trainer(checkpoint).fit(model_class())

    assert names(tmp_path) == set()


def test_time_interval_waits_for_the_end_of_an_accumulation_window(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0), save_top_k=-1)
    quiet_trainer(checkpoint, max_epochs=1, accumulate_grad_batches=2).fit(model_class())

    assert {step_of(tmp_path / name) for name in names(tmp_path)} == {1, 2}


def test_fractional_validation_saves_at_each_validation(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    quiet_trainer(checkpoint, max_epochs=1, val_check_interval=0.5).fit(model_class([2.0, 1.0]))

    assert {path.rpartition("=")[2]: float(score) for path, score in checkpoint.best_k_models.items()} == {
        "2.ckpt": 2.0,
        "4.ckpt": 1.0,
    }


def test_validation_after_every_batch_is_not_mistaken_for_once_per_epoch(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    quiet_trainer(checkpoint, max_epochs=1, val_check_interval=1).fit(model_class([4.0, 3.0, 2.0, 1.0]))

    assert len(checkpoint.best_k_models) == 4


@pytest.mark.parametrize("without", [{"limit_val_batches": 0}, {}])
def test_rare_validation_that_never_comes_does_not_prevent_saving(quiet_trainer, model_class, tmp_path, without):
    epochs = 3 if without else 1
    checkpoint = ModelCheckpoint(tmp_path)
    quiet_trainer(checkpoint, check_val_every_n_epoch=2, max_epochs=epochs, **without).fit(model_class())

    assert names(tmp_path) == {f"epoch={epochs - 1}-step={4 * epochs}.ckpt"}


def test_rare_validation_saves_when_it_comes(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    quiet_trainer(checkpoint, check_val_every_n_epoch=2).fit(model_class([1.0]))

    assert names(tmp_path) == {"epoch=1-step=8.ckpt"}


def test_saving_at_validation_end_without_validation_warns(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_on_train_epoch_end=False)
    with pytest.warns(UserWarning, match="validates nothing"):
        quiet_trainer(checkpoint, limit_val_batches=0, max_epochs=1).fit(model_class())


# ---- the score belongs to the weights


def test_save_due_between_validations_waits_for_the_next_one(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="val_loss", save_top_k=5)
    quiet_trainer(checkpoint).fit(model_class([3.0, 2.0, 1.0]))

    saved = {step_of(path): float(score) for path, score in checkpoint.best_k_models.items()}
    assert saved == {4: 3.0, 8: 2.0, 12: 1.0}


def test_scores_are_those_of_the_weights_in_the_file(quiet_trainer, model_class, tmp_path):
    class Scored(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def validation_step(self, batch, batch_idx):
            self.log("weight", self.layer.weight.sum())

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, monitor="weight", save_top_k=9)
    quiet_trainer(checkpoint, val_check_interval=3, max_epochs=2).fit(Scored(batches=7))

    scored = {path: score for path, score in checkpoint.best_k_models.items() if math.isfinite(score)}
    assert len(scored) == 4
    for path, score in scored.items():
        assert load(path)["state_dict"]["layer.weight"].sum() == score


def test_keeping_all_does_not_wait_and_leaves_unscored_files_unranked(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="val_loss", save_top_k=-1)
    quiet_trainer(checkpoint).fit(model_class([3.0, 2.0, 1.0]))

    assert {step_of(tmp_path / name) for name in names(tmp_path)} == {3, 6, 9, 12}
    assert {step_of(path): float(score) for path, score in checkpoint.best_k_models.items()} == {12: 1.0}


def test_step_metrics_are_never_waited_for(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="batch", save_top_k=9)
    quiet_trainer(checkpoint).fit(model_class())

    assert {step_of(path): float(score) for path, score in checkpoint.best_k_models.items()} == {
        3: 2.0,
        6: 1.0,
        9: 0.0,
        12: 3.0,
    }


def test_step_trigger_waits_for_metrics_of_the_training_epoch(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="epoch_loss", save_top_k=9)
    quiet_trainer(checkpoint).fit(model_class())

    assert {step_of(path) for path in checkpoint.best_k_models} == {4, 8, 12}


def test_postponed_save_that_never_gets_a_score_is_written_at_the_end(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, monitor="val_loss")
    quiet_trainer(checkpoint, max_epochs=-1, max_steps=3).fit(model_class())

    assert [step_of(tmp_path / name) for name in names(tmp_path)] == [3]
    assert checkpoint.best_model_score == math.inf


def test_postponed_save_survives_a_resume(quiet_trainer, model_class, tmp_path):
    class Breaks(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                raise ZeroDivisionError

    arguments: dict[str, Any] = {"every_n_train_steps": 3, "monitor": "val_loss", "save_last": True}
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(ModelCheckpoint(tmp_path, **arguments), max_epochs=1).fit(Breaks())
    checkpoint = ModelCheckpoint(tmp_path, **arguments)
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class([2.0]), ckpt_path=tmp_path / "last.ckpt")

    assert step_of(checkpoint.best_model_path) == 4
    assert checkpoint.best_model_score == 2.0
    assert "postponed" not in checkpoint.state_dict()


def test_missing_monitor_is_an_error_once_validation_has_run(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_los")
    with pytest.raises(MisconfigurationException, match="Did you mean 'val_loss'"):
        quiet_trainer(checkpoint).fit(model_class())


def test_missing_monitor_without_validation_warns(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="missing_here")
    with pytest.warns(UserWarning, match="missing_here"):
        quiet_trainer(checkpoint, limit_val_batches=0).fit(model_class())

    assert names(tmp_path) == set()


def test_misspelt_monitor_is_reported_by_the_sanity_check(quiet_trainer, model_class, tmp_path):
    class Ends(Exception):
        pass

    def end(*_):
        raise Ends

    checkpoint = ModelCheckpoint(tmp_path, monitor="val_los")
    trainer = quiet_trainer(checkpoint, LambdaCallback(on_train_start=end), num_sanity_val_steps=1)
    with pytest.warns(UserWarning, match="Did you mean 'val_loss'"), pytest.raises(Ends):
        trainer.fit(model_class())


@pytest.mark.parametrize("monitor", ["val_loss", "epoch_loss", "train_loss_x"])
def test_sanity_check_says_nothing_about_names_that_may_come_from_training(monitor):
    from fulmen.callbacks.monitor import looks_misspelt

    assert monitor == "val_loss" or not looks_misspelt(monitor, {"val_loss"})


# ---- last


def test_last_is_the_newest_state_even_if_an_older_one_is_best(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    quiet_trainer(checkpoint).fit(model_class([1.0, 2.0, 3.0]))

    assert step_of(checkpoint.best_model_path) == 4
    assert step_of(checkpoint.last_model_path) == 12


def test_last_is_refreshed_at_every_trigger(quiet_trainer, model_class, tmp_path):
    seen = []
    look = LambdaCallback(on_train_epoch_start=lambda *_: seen.append(step_of(last) if last.exists() else None))
    last = tmp_path / "last.ckpt"
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True, save_top_k=0)
    quiet_trainer(look, checkpoint).fit(model_class([1.0, 2.0, 3.0]))

    assert seen == [None, 4, 8]


def test_last_does_not_wait_for_a_score(quiet_trainer, model_class, tmp_path):
    seen = []
    look = LambdaCallback(on_validation_start=lambda *_: seen.append(step_of(tmp_path / "last.ckpt")))
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="val_loss", save_last=True)
    quiet_trainer(look, checkpoint).fit(model_class())

    assert seen == [3, 6, 12]


def test_last_is_the_end_of_training(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_last=True)
    quiet_trainer(checkpoint).fit(model_class())

    assert step_of(checkpoint.best_model_path) == 10
    assert step_of(checkpoint.last_model_path) == 12


def test_last_can_be_a_template(quiet_trainer, model_class, tmp_path):
    class Named(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "last-{epoch}"

    quiet_trainer(Named(tmp_path, save_last=True, save_top_k=0)).fit(model_class())

    assert names(tmp_path) == {"last-epoch=2.ckpt"}


def test_last_link_leads_to_the_newest_file(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last="link")
    quiet_trainer(checkpoint).fit(model_class())

    assert os.readlink(tmp_path / "last.ckpt") == "epoch=2-step=12.ckpt"
    assert state_in(tmp_path / "last.ckpt", checkpoint)["last_model_path"] == str(tmp_path / "last.ckpt")


def test_last_link_becomes_a_file_when_the_newest_state_is_not_among_the_best(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last="link")
    quiet_trainer(checkpoint).fit(model_class([1.0, 2.0, 3.0]))

    assert not (tmp_path / "last.ckpt").is_symlink()
    assert step_of(tmp_path / "last.ckpt") == 12
    assert step_of(checkpoint.best_model_path) == 4


def test_last_and_best_never_share_a_file(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path, filename="last", monitor="val_loss", save_last=True, enable_version_counter=False
    )
    quiet_trainer(checkpoint).fit(model_class([1.0, 2.0]))

    assert checkpoint.best_model_path != checkpoint.last_model_path
    assert step_of(checkpoint.best_model_path) == 4
    assert step_of(checkpoint.last_model_path) == 12


# ---- written, then published, then deleted


class FailingTrainerSave:
    """Makes `trainer.save_checkpoint` fail from the n-th call on, as a full disk does."""

    def __init__(self, trainer, calls_before):
        self.save, self.left = trainer.save_checkpoint, calls_before
        trainer.save_checkpoint = self

    def __call__(self, path, weights_only=False):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device", path)
        self.save(path, weights_only)


def test_failed_write_publishes_and_deletes_nothing(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    trainer = quiet_trainer(checkpoint)
    FailingTrainerSave(trainer, calls_before=2)
    with pytest.raises(OSError, match="No space"):
        trainer.fit(model_class([2.0, 1.0]))

    assert names(tmp_path) == {"epoch=0-step=4.ckpt", "last.ckpt"}
    assert checkpoint.best_model_path == str(tmp_path / "epoch=0-step=4.ckpt")
    assert checkpoint.best_model_score == 2.0
    assert checkpoint.state_dict()["best_model_path"] == checkpoint.best_model_path


def test_failed_write_of_last_keeps_the_earlier_last(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    trainer = quiet_trainer(checkpoint)
    FailingTrainerSave(trainer, calls_before=3)
    with pytest.raises(OSError, match="No space"):
        trainer.fit(model_class([2.0, 1.0]))

    assert step_of(checkpoint.best_model_path) == 8
    assert step_of(checkpoint.last_model_path) == 4


def test_a_file_knows_itself_as_the_best(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class([2.0]))

    for path in (checkpoint.best_model_path, checkpoint.last_model_path):
        state = state_in(path, checkpoint)
        assert state["best_model_path"] == checkpoint.best_model_path
        assert state["last_model_path"] == checkpoint.last_model_path
        assert state["best_model_score"] == 2.0


def test_paths_are_published_only_when_the_file_is_there(quiet_trainer, model_class, tmp_path):
    seen = []
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=1)
    look = LambdaCallback(on_save_checkpoint=lambda *_: seen.append(checkpoint.best_model_path))
    quiet_trainer(look, checkpoint, max_epochs=2).fit(model_class([2.0, 1.0]))

    assert [os.path.basename(path) for path in seen] == ["", "epoch=0-step=4.ckpt"]


def test_unwritable_folder_is_an_error_before_training(quiet_trainer, model_class, tmp_path):
    (tmp_path / "file").write_text("")
    model = model_class()
    with pytest.raises(OSError, match="Nothing can be written there"):
        quiet_trainer(ModelCheckpoint(tmp_path / "file" / "c")).fit(model)

    assert model.trainer.global_step == 0


def test_loggers_are_told_after_the_file_is_written(quiet_trainer, model_class, tmp_path):
    from fulmen.loggers.csv_logs import CSVLogger

    class Recorder(CSVLogger):
        def __init__(self, folder):
            super().__init__(folder)
            self.told = []

        def after_save_checkpoint(self, checkpoint_callback):
            self.told.append(os.path.exists(checkpoint_callback.best_model_path))

    logger = Recorder(tmp_path)
    checkpoint = ModelCheckpoint(tmp_path / "c")
    quiet_trainer(checkpoint, logger=logger, max_epochs=2, log_every_n_steps=1).fit(model_class())

    assert logger.told == [True, True]


# ---- exceptions


def test_save_on_exception_writes_an_unranked_file(quiet_trainer, model_class, tmp_path):
    class Breaks(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_on_exception=True)
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(checkpoint).fit(Breaks())

    assert names(tmp_path) == {"epoch=0-step=4.ckpt", "epoch=1-step=6.ckpt"}
    assert checkpoint.best_model_path.endswith("epoch=0-step=4.ckpt")


def test_nothing_is_saved_on_exception_by_default(quiet_trainer, model_class, tmp_path):
    class Breaks(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quiet_trainer(ModelCheckpoint(tmp_path)).fit(Breaks())

    assert names(tmp_path) == set()


# ---- resume


def test_resumed_run_goes_on_with_the_files_of_the_first(quiet_trainer, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    quiet_trainer(first, max_epochs=2).fit(model_class([3.0, 2.0]))
    second = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    quiet_trainer(second, max_epochs=4).fit(model_class([1.0, 5.0]), ckpt_path=first.last_model_path)

    assert names(tmp_path) == {"epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt", "last.ckpt"}
    assert step_of(second.last_model_path) == 16
    assert second.best_model_score == 1.0


def test_a_file_knows_of_itself_when_it_is_resumed_from(quiet_trainer, model_class, tmp_path):
    arguments: dict[str, Any] = {"max_epochs": 3, "check_val_every_n_epoch": 2}
    quiet_trainer(ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2), **arguments).fit(model_class([3.0]))
    assert names(tmp_path) == {"epoch=1-step=8.ckpt"}

    again = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
    quiet_trainer(again, **arguments).fit(model_class([3.0]), ckpt_path=tmp_path / "epoch=1-step=8.ckpt")

    assert names(tmp_path) == {"epoch=1-step=8.ckpt"}


def test_a_save_that_waited_when_the_run_was_killed_at_its_end_is_made_up_for(quiet_trainer, model_class, tmp_path):
    class Killed(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "cut" / "at_the_end.ckpt")
            raise RuntimeError("killed before the checkpoint callback acts")

    def callback(folder):
        return ModelCheckpoint(folder, monitor="val_loss", every_n_train_steps=1, save_top_k=3, save_on_exception=False)

    arguments: dict[str, Any] = {"max_epochs": 1, "val_check_interval": 3}
    whole = callback(tmp_path / "whole")
    quiet_trainer(whole, **arguments).fit(model_class([3.0]))
    with pytest.raises(RuntimeError, match="killed"):
        quiet_trainer(Killed(), callback(tmp_path / "cut"), **arguments).fit(model_class([3.0]))
    again = callback(tmp_path / "cut")
    quiet_trainer(again, **arguments).fit(model_class([3.0]), ckpt_path=tmp_path / "cut" / "at_the_end.ckpt")

    assert names(tmp_path / "cut") - {"at_the_end.ckpt"} == names(tmp_path / "whole") >= {"epoch=0-step=4.ckpt"}
    assert sorted(again.best_k_models.values()) == sorted(whole.best_k_models.values())


def test_the_file_resumed_from_is_never_deleted(quiet_trainer, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="val_loss")
    quiet_trainer(first, max_epochs=1).fit(model_class([3.0]))
    second = ModelCheckpoint(tmp_path, monitor="val_loss")
    quiet_trainer(second, max_epochs=3).fit(model_class([2.0, 1.0]), ckpt_path=first.best_model_path)

    assert names(tmp_path) == {"epoch=0-step=4.ckpt", "epoch=2-step=12.ckpt"}


def test_files_in_another_folder_are_left_alone(quiet_trainer, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path / "a", monitor="val_loss")
    quiet_trainer(first, max_epochs=1).fit(model_class([3.0]))
    second = ModelCheckpoint(tmp_path / "b", monitor="val_loss")
    with pytest.warns(UserWarning, match="changed from"):
        quiet_trainer(second, max_epochs=2).fit(model_class([5.0]), ckpt_path=first.best_model_path)

    assert names(tmp_path / "a") == {"epoch=0-step=4.ckpt"}
    assert second.best_model_score == 5.0


def test_state_has_the_keys_of_lightning():
    assert set(ModelCheckpoint(monitor="v").state_dict()) == {
        "monitor",
        "best_model_score",
        "best_model_path",
        "current_score",
        "dirpath",
        "best_k_models",
        "kth_best_model_path",
        "kth_value",
        "last_model_path",
    }


def test_yaml_lists_the_scores(tmp_path):
    yaml = pytest.importorskip("yaml")
    checkpoint = ModelCheckpoint(tmp_path, monitor="v")
    checkpoint.best_k_models = {"a.ckpt": torch.tensor(0.5)}
    checkpoint.to_yaml()

    assert yaml.safe_load((tmp_path / "best_k_models.yaml").read_text()) == {"a.ckpt": 0.5}


def test_verbose_says_what_was_saved_with_a_short_score(tmp_path, quiet_trainer, model_class, caplog):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", filename="m", verbose=True)
    with caplog.at_level(logging.INFO, logger="fulmen"):
        quiet_trainer(checkpoint, max_epochs=1).fit(model_class([0.1]))

    assert "m.ckpt' (val_loss = 0.1)." in caplog.text


# ---- one callback, several runs


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_callback_that_served_another_run_saves_at_the_same_steps_again(quiet_trainer, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    quiet_trainer(checkpoint, max_epochs=1).fit(model_class())
    model = model_class()
    quiet_trainer(checkpoint, max_epochs=1).fit(model)

    for path in (checkpoint.best_model_path, checkpoint.last_model_path):
        assert torch.equal(load(path)["state_dict"]["layer.weight"], model.layer.weight)


def test_files_that_are_still_to_be_written_are_not_overwritten(quiet_trainer, model_class, tmp_path):
    may_write = threading.Event()

    class Waits(TorchCheckpointIO):
        def save_checkpoint(self, *args, **kwargs):
            assert may_write.wait(30)
            super().save_checkpoint(*args, **kwargs)

    class Lets(LambdaCallback):
        def on_train_end(self, trainer, pl_module):
            may_write.set()

    checkpoint = ModelCheckpoint(tmp_path, "same", save_top_k=-1, every_n_train_steps=2)
    quiet_trainer(checkpoint, Lets(), max_epochs=1, plugins=[AsyncCheckpointIO(Waits())]).fit(model_class())

    assert names(tmp_path) == {"same.ckpt", "same-v1.ckpt"}


def test_failed_start_writes_nothing_on_exception(quiet_trainer, model_class, tmp_path):
    class Misspelt(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def configure_optimizers(self):
            raise AttributeError("a typo")

    with pytest.raises(AttributeError, match="a typo"):
        quiet_trainer(ModelCheckpoint(tmp_path, save_on_exception=True, save_last=True)).fit(Misspelt())

    assert names(tmp_path) == set()
