from __future__ import annotations

import pytest
import torch

from fulmen.callbacks.on_exception_checkpoint import OnExceptionCheckpoint


@pytest.fixture
def failing_class(model_class):
    class Fails(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 6:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    return Fails


def test_state_is_saved_when_training_breaks_off(quiet_trainer, failing_class, tmp_path):
    callback = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(callback).fit(failing_class())

    assert callback.ckpt_path == str(tmp_path / "on_exception.ckpt")
    assert torch.load(callback.ckpt_path, weights_only=True)["global_step"] == 6


def test_next_fit_goes_on_from_there_and_deletes_the_file(quiet_trainer, model_class, failing_class, tmp_path):
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(OnExceptionCheckpoint(tmp_path)).fit(failing_class())
    steps = []
    model = model_class()
    model.on_train_batch_start = lambda batch, batch_idx: steps.append(model.trainer.global_step)
    trainer = quiet_trainer(OnExceptionCheckpoint(tmp_path))
    trainer.fit(model)

    assert steps == list(range(6, 12))
    assert not (tmp_path / "on_exception.ckpt").exists()


def test_other_stages_leave_the_file_alone(quiet_trainer, model_class, tmp_path):
    (tmp_path / "on_exception.ckpt").write_text("")
    quiet_trainer(OnExceptionCheckpoint(tmp_path)).validate(model_class(), verbose=False)

    assert (tmp_path / "on_exception.ckpt").exists()


def test_empty_filename_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be empty"):
        OnExceptionCheckpoint(tmp_path, filename="")


def test_fast_dev_run_neither_resumes_from_nor_deletes_the_file(quiet_trainer, model_class, failing_class, tmp_path):
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(OnExceptionCheckpoint(tmp_path)).fit(failing_class())
    trainer = quiet_trainer(OnExceptionCheckpoint(tmp_path), fast_dev_run=True)
    trainer.fit(model_class())

    assert trainer.global_step == 1
    assert (tmp_path / "on_exception.ckpt").exists()


def test_error_before_training_begins_leaves_the_file_alone(quiet_trainer, model_class, failing_class, tmp_path):
    class Misspelt(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def configure_optimizers(self):
            raise AttributeError("a typo")

    callback = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(callback).fit(failing_class())
    with pytest.raises(AttributeError, match="a typo"):
        quiet_trainer(callback).fit(Misspelt())

    assert torch.load(callback.ckpt_path, weights_only=True)["global_step"] == 6


def test_error_in_validate_saves_nothing(quiet_trainer, model_class, tmp_path):
    class Fails(model_class):  # type: ignore[misc, valid-type]  # a fixture
        def validation_step(self, batch, batch_idx):
            raise ZeroDivisionError

    callback = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(callback).validate(Fails())

    assert list(tmp_path.glob("*.ckpt")) == []
