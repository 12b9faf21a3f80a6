"""Checkpoints of earlier versions."""

from __future__ import annotations

import pickle
import sys

import pytest

from fulmen.utilities.migration import LAYOUT_VERSION, migrate_checkpoint, pl_legacy_patch
from fulmen.utilities.warnings import PossibleUserWarning


def progress(number):
    counts = {"ready": number, "started": number, "processed": number, "completed": number}
    return {"total": counts, "current": counts}


def of_1_6():
    optimizer = {"optimizer": {"step": progress(3), "zero_grad": progress(3)}, "optimizer_position": 0}
    evaluation = {
        "state_dict": {},
        "dataloader_progress": progress(1),
        "epoch_loop.state_dict": {},
        "epoch_loop.batch_progress": progress(2),
    }
    return {
        "pytorch-lightning_version": "1.6.0",
        "epoch": 1,
        "global_step": 3,
        "callbacks": {},
        "loops": {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {},
                "epoch_loop.batch_progress": progress(5),
                "epoch_loop.scheduler_progress": progress(1),
                "epoch_loop.batch_loop.state_dict": {},
                "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
                "epoch_loop.batch_loop.optimizer_loop.optim_progress": optimizer,
                "epoch_loop.batch_loop.manual_loop.state_dict": {},
                "epoch_loop.batch_loop.manual_loop.optim_step_progress": progress(0),
                "epoch_loop.val_loop.state_dict": {},
                "epoch_loop.val_loop.dataloader_progress": progress(1),
                "epoch_loop.val_loop.epoch_loop.state_dict": {},
                "epoch_loop.val_loop.epoch_loop.batch_progress": progress(2),
                "epoch_loop.val_loop._results": {},
                "epoch_loop._results": {},
                "epoch_progress": progress(1),
            },
            "validate_loop": evaluation,
        },
    }


def test_loops_of_1_6_get_todays_keys():
    checkpoint, _ = migrate_checkpoint(of_1_6())

    assert checkpoint["loops"]["fit_loop"] == {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": 3},
        "epoch_loop.batch_progress": progress(5),
        "epoch_loop.scheduler_progress": progress(1),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": progress(3), "zero_grad": progress(3)}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": progress(0),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": progress(2),
        "epoch_progress": progress(1),
    }
    assert checkpoint["loops"]["validate_loop"] == {"state_dict": {}, "batch_progress": progress(2)}


def test_migration_notes_both_versions_and_what_it_did():
    checkpoint, applied = migrate_checkpoint(of_1_6())

    assert checkpoint["pytorch-lightning_version"] == LAYOUT_VERSION
    assert checkpoint["legacy_pytorch-lightning_version"] == "1.6.0"
    assert applied["1.6.5"] == ["count_batches_that_stepped"]


def test_migration_can_stop_at_a_version():
    checkpoint, applied = migrate_checkpoint(of_1_6(), target_version="1.9.0")

    assert list(applied) == ["1.6.5", "1.9.0"]
    assert checkpoint["pytorch-lightning_version"] == "1.9.0"


def test_todays_files_stay_untouched():
    checkpoint = {"pytorch-lightning_version": LAYOUT_VERSION, "epoch": 1}

    assert migrate_checkpoint(dict(checkpoint)) == (checkpoint, {})


@pytest.mark.parametrize("version", ["2.0.0", "2.3.0.post0", "2.6.0rc1"])
def test_files_of_2_x_only_change_their_version(version):
    checkpoint = {"pytorch-lightning_version": version, "epoch": 1, "loops": {"fit_loop": {"epoch_loop.x": 1}}}
    migrated, _ = migrate_checkpoint({**checkpoint})

    assert migrated == {
        **checkpoint,
        "pytorch-lightning_version": LAYOUT_VERSION,
        "legacy_pytorch-lightning_version": version,
    }


def test_newer_files_warn_and_stay_untouched():
    with pytest.warns(PossibleUserWarning, match=r"written by Lightning 9\.9\.9"):
        checkpoint, _ = migrate_checkpoint({"pytorch-lightning_version": "9.9.9"})

    assert checkpoint == {"pytorch-lightning_version": "9.9.9"}


def test_files_from_before_1_6_warn_about_their_counters():
    with pytest.warns(UserWarning, match="begins at step 0"):
        migrate_checkpoint({"pytorch-lightning_version": "1.5.0", "epoch": 1, "global_step": 2})


def test_a_file_without_version_is_refused():
    with pytest.raises(KeyError, match="no entry 'pytorch-lightning_version'"):
        migrate_checkpoint({"epoch": 1})


OLD_KEY = (
    "ModelCheckpoint{'monitor': %r, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1,"
    " 'train_time_interval': None, 'save_on_train_epoch_end': %r}"
)


def test_state_keys_of_1_8_lose_save_on_train_epoch_end():
    states = {OLD_KEY % (None, True): 1, OLD_KEY % ("x", None): 2, "Other": 3}
    checkpoint, _ = migrate_checkpoint({"pytorch-lightning_version": "1.8.0", "callbacks": states})

    assert checkpoint["callbacks"] == {
        OLD_KEY.replace(", 'save_on_train_epoch_end': %r", "") % None: 1,
        OLD_KEY.replace(", 'save_on_train_epoch_end': %r", "") % "x": 2,
        "Other": 3,
    }


def test_state_keys_that_would_collide_are_left_alone():
    states = {OLD_KEY % (None, True): 1, OLD_KEY % (None, None): 2}
    with pytest.warns(PossibleUserWarning, match="cannot be told whose state is whose"):
        checkpoint, _ = migrate_checkpoint({"pytorch-lightning_version": "1.8.0", "callbacks": dict(states)})

    assert checkpoint["callbacks"] == states


@pytest.mark.parametrize(
    ("version", "key"), [("1.8.0", "NativeMixedPrecisionPlugin"), ("2.0.9", "MixedPrecisionPlugin")]
)
def test_gradient_scaler_is_found_under_todays_name(version, key):
    checkpoint, _ = migrate_checkpoint({"pytorch-lightning_version": version, key: {"scale": 2.0}})

    assert checkpoint["MixedPrecision"] == {"scale": 2.0}
    assert key not in checkpoint


def test_apex_state_is_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="apex"):
        checkpoint, _ = migrate_checkpoint({"pytorch-lightning_version": "1.8.0", "amp_scaling_state": {"x": 1}})

    assert "amp_scaling_state" not in checkpoint


def test_pickles_of_old_files_can_be_read_inside_the_patch():
    data = b"\x80\x02cpytorch_lightning.utilities.argparse\n_gpus_arg_default\nq\x00."
    before = set(sys.modules)

    with pl_legacy_patch():
        placeholder = pickle.loads(data)
    assert placeholder("0,1") == "0,1"
    assert not {name for name in set(sys.modules) - before if name.startswith("pytorch_lightning")}
