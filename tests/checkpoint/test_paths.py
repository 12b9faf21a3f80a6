"""Which file `ckpt_path` means."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from fulmen.checkpoint.paths import newest_hpc_checkpoint, resolve_ckpt_path
from fulmen.utilities.exceptions import DamagedFileError


class Saves:
    """A checkpoint callback, as far as names of files are concerned."""

    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath=None, best_model_path=""):
        self.dirpath = None if dirpath is None else str(dirpath)
        self.best_model_path = best_model_path


class SavesOnException:
    def __init__(self, path):
        self.ckpt_path = str(path)


def trainer_with(*callbacks, root=".", fast_dev_run=False):
    return SimpleNamespace(
        callbacks=list(callbacks),
        checkpoint_callbacks=[callback for callback in callbacks if isinstance(callback, Saves)],
        fast_dev_run=fast_dev_run,
        default_root_dir=str(root),
    )


def resolve(trainer, ckpt_path, *, fn="fit", model_provided=True, **kwargs):
    return resolve_ckpt_path(trainer, ckpt_path, fn=fn, model_provided=model_provided, **kwargs)


def checkpoint(path, *, age_s, damaged=False):
    torch.save({"x": torch.arange(100)}, path)
    if damaged:
        with open(path, "r+b") as file:
            file.truncate(200)
    now = 1_000_000_000
    os.utime(path, (now - age_s, now - age_s))
    return str(path)


# ---- a path


def test_a_path_is_itself(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", age_s=0)

    assert resolve(trainer_with(), path) == path
    assert resolve(trainer_with(), tmp_path / "a.ckpt") == path
    assert resolve(trainer_with(), "s3://bucket/a.ckpt") == "s3://bucket/a.ckpt"


def test_an_absent_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Checkpoint file not found"):
        resolve(trainer_with(), tmp_path / "absent.ckpt")


def test_the_path_assigned_to_the_trainer_is_used_unless_one_is_passed(tmp_path):
    assigned = checkpoint(tmp_path / "a.ckpt", age_s=0)
    passed = checkpoint(tmp_path / "b.ckpt", age_s=0)

    assert resolve(trainer_with(), None, set_by_user=assigned) == assigned
    with pytest.warns(UserWarning, match="The argument is used"):
        assert resolve(trainer_with(), passed, set_by_user=assigned) == passed


# ---- none


def test_nothing_is_loaded_by_default(tmp_path):
    assert resolve(trainer_with(Saves(tmp_path, "best.ckpt")), None) is None
    assert resolve(trainer_with(Saves(tmp_path, "best.ckpt")), None, fn="validate") is None


def test_without_a_model_the_best_one_is_meant():
    with pytest.warns(UserWarning, match="was called without a model"):
        path = resolve(trainer_with(Saves(best_model_path="best.ckpt")), None, fn="test", model_provided=False)

    assert path == "best.ckpt"


def test_a_fit_that_broke_down_goes_on_by_itself(tmp_path):
    path = tmp_path / "on_exception.ckpt"
    trainer = trainer_with(SavesOnException(path))

    assert resolve(trainer, None) is None
    checkpoint(path, age_s=0)
    assert resolve(trainer, None) == str(path)


# ---- best


def test_best_is_that_of_the_first_callback():
    with pytest.warns(UserWarning, match="found 2 checkpoint callbacks"):
        path = resolve(trainer_with(Saves(best_model_path="a"), Saves(best_model_path="b")), "best")

    assert path == "a"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (trainer_with(), "is set but `ModelCheckpoint` is not configured"),
        (trainer_with(Saves()), "is not configured to save the best model"),
        (trainer_with(Saves(), fast_dev_run=True), "with `fast_dev_run=True`"),
    ],
)
def test_no_best_file_is_an_error(trainer, message):
    with pytest.raises(ValueError, match=message):
        resolve(trainer, "best", fn="validate")


# ---- last


def test_last_is_the_newest_of_all_callbacks(tmp_path):
    (tmp_path / "other").mkdir()
    checkpoint(tmp_path / "last.ckpt", age_s=30)
    checkpoint(tmp_path / "epoch=9.ckpt", age_s=0)
    newest = checkpoint(tmp_path / "other" / "last-v1.ckpt", age_s=10)
    trainer = trainer_with(Saves(tmp_path), Saves(tmp_path / "other"), Saves())

    assert resolve(trainer, "last") == newest
    on_exception = checkpoint(tmp_path / "stop.ckpt", age_s=5)
    assert resolve(trainer_with(*trainer.callbacks, SavesOnException(on_exception)), "last") == on_exception


def test_last_can_have_a_template_as_name(tmp_path):
    path = checkpoint(tmp_path / "epoch=3-newest.ckpt", age_s=0)
    callback = Saves(tmp_path)
    callback.CHECKPOINT_NAME_LAST = "{epoch}-newest"

    assert resolve(trainer_with(callback), "last") == path


def test_folder_names_are_taken_literally(tmp_path):
    (tmp_path / "run[1]").mkdir()
    path = checkpoint(tmp_path / "run[1]" / "last.ckpt", age_s=0)

    assert resolve(trainer_with(Saves(tmp_path / "run[1]")), "last") == path


def test_no_last_file_starts_fresh_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        assert resolve(trainer_with(Saves(tmp_path)), "last") is None


def test_last_passes_over_damaged_files(tmp_path):
    whole = checkpoint(tmp_path / "last.ckpt", age_s=10)
    checkpoint(tmp_path / "last-v1.ckpt", age_s=0, damaged=True)

    with pytest.warns(UserWarning, match=r"passed over: .*last-v1\.ckpt"):
        assert resolve(trainer_with(Saves(tmp_path)), "last") == whole


def test_a_damaged_last_file_gives_way_to_the_newest_whole_one_beside_it(tmp_path):
    checkpoint(tmp_path / "last.ckpt", age_s=0, damaged=True)
    checkpoint(tmp_path / "epoch=1.ckpt", age_s=20)
    newest = checkpoint(tmp_path / "epoch=2.ckpt", age_s=10)

    with pytest.warns(UserWarning, match="The newest whole one is used"):
        assert resolve(trainer_with(Saves(tmp_path)), "last") == newest


def test_only_damaged_files_are_an_error(tmp_path):
    checkpoint(tmp_path / "last.ckpt", age_s=0, damaged=True)

    with pytest.raises(DamagedFileError, match="All checkpoints that could be the last one are damaged"):
        resolve(trainer_with(Saves(tmp_path)), "last")


def test_a_link_that_leads_nowhere_is_passed_over(tmp_path):
    whole = checkpoint(tmp_path / "last-v1.ckpt", age_s=0)
    (tmp_path / "last.ckpt").symlink_to("gone.ckpt")

    with pytest.warns(UserWarning, match=r"passed over: .*last\.ckpt"):
        assert resolve(trainer_with(Saves(tmp_path)), "last") == whole


# ---- hpc


def test_hpc_is_the_highest_number(tmp_path):
    for number in (2, 10, 9):
        checkpoint(tmp_path / f"hpc_ckpt_{number}.ckpt", age_s=number)
    checkpoint(tmp_path / "hpc_ckpt_x.ckpt", age_s=0)

    assert resolve(trainer_with(root=tmp_path), "hpc") == str(tmp_path / "hpc_ckpt_10.ckpt")


def test_no_hpc_file_is_an_error(tmp_path):
    assert newest_hpc_checkpoint(str(tmp_path / "absent")) is None
    with pytest.raises(ValueError, match="no HPC checkpoint was found"):
        resolve(trainer_with(root=tmp_path), "hpc")
