"""`fit(ckpt_path="auto")`: one argument for jobs that are restarted."""

from __future__ import annotations

import os
import shutil
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.checkpoint.paths import INTERRUPTED_NAME
from fulmen.loggers import CSVLogger
from tests.support import quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*is smaller than the logging interval",
    "ignore:The checkpoint folder",
    "ignore:The folder of `ModelCheckpoint`",
)


class Model(LightningModule):
    def __init__(self, lr=0.1, width=2, stop_at=None):
        super().__init__()
        self.save_hyperparameters(ignore=["stop_at"])
        self.layer = torch.nn.Linear(4, width)
        self.stop_at = stop_at
        self.began_at = None

    def on_train_start(self):
        self.began_at = self.global_step

    def forward(self, batch):
        return self.layer(batch[0])

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_at:
            raise KeyError("the machine is taken away")
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


def loader():
    return DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=1)


def trainer_in(folder, *callbacks, **changes):
    settings = {"max_epochs": 3, "callbacks": list(callbacks), "enable_checkpointing": bool(callbacks), **changes}
    return Trainer(**quiet(folder, **settings))


def start(folder, *callbacks, stop_at=None, model=None, **changes):
    """Start the job once more; return the step at which it began."""
    model = model or Model(stop_at=stop_at)
    trainer = trainer_in(folder, *callbacks, **changes)
    try:
        trainer.fit(model, loader(), ckpt_path="auto")
    except KeyError:
        assert stop_at is not None
    return model.began_at


def every_step(folder=None, **changes):
    return ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, **changes)


def damage(path):
    with open(path, "r+b") as file:
        file.truncate(300)


def test_first_start_is_fresh_and_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert start(tmp_path, every_step(tmp_path / "c")) == 0


def test_restarted_job_goes_on_where_it_was(tmp_path):
    began = [start(tmp_path, every_step(tmp_path / "c"), stop_at=stop_at) for stop_at in (3, 7, None)]

    assert began == [0, 3, 7]


def test_restarted_job_without_any_settings_finds_its_earlier_versions(tmp_path):
    began = []
    for stop_at in (3, 7, None):
        saver = every_step()
        began.append(start(tmp_path, saver, stop_at=stop_at, logger=CSVLogger(tmp_path)))

    assert began == [0, 3, 7]
    assert sorted(path.name for path in (tmp_path / "lightning_logs").iterdir()) == [f"version_{i}" for i in range(3)]


def test_experiment_of_another_name_is_not_found(tmp_path):
    start(tmp_path, every_step(), stop_at=3, logger=CSVLogger(tmp_path, name="a"))

    assert start(tmp_path, every_step(), logger=CSVLogger(tmp_path, name="b")) == 0


def test_versions_with_other_hyperparameters_are_other_runs(tmp_path):
    start(tmp_path, every_step(), stop_at=3, logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="a run with other hyperparameters: lr=0.1, here 0.2"):
        assert start(tmp_path, every_step(), model=Model(lr=0.2), logger=CSVLogger(tmp_path)) == 0


def test_given_folder_is_the_run_whatever_its_hyperparameters(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=3)

    assert start(tmp_path, every_step(tmp_path / "c"), model=Model(lr=0.2)) == 3


def test_checkpoint_that_does_not_fit_is_named_with_the_way_out(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=3)
    with pytest.raises(
        RuntimeError, match=r"(?s)found `.*step=3\.ckpt`, which does not fit.*size mismatch.*start anew"
    ):
        start(tmp_path, every_step(tmp_path / "c"), model=Model(width=3))


def test_damaged_files_are_passed_over_and_named(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=3)
    damage(tmp_path / "c/epoch=0-step=3.ckpt")
    with pytest.warns(UserWarning, match=r"passed over.*step=3\.ckpt` \(damaged\).*step=2\.ckpt` is used"):
        assert start(tmp_path, every_step(tmp_path / "c")) == 2


def test_flipped_bit_is_damage(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=3)
    path = tmp_path / "c/epoch=0-step=3.ckpt"
    content = bytearray(path.read_bytes())
    at = content.find(torch.load(path, weights_only=True)["state_dict"]["layer.bias"].numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step=3\.ckpt` \(damaged\)"):
        assert start(tmp_path, every_step(tmp_path / "c")) == 2


def test_only_damaged_files_start_anew_with_a_warning(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=2)
    for path in (tmp_path / "c").glob("*.ckpt"):
        damage(path)
    with pytest.warns(UserWarning, match="Nothing is left, so the run starts anew"):
        assert start(tmp_path, every_step(tmp_path / "c")) == 0


def test_files_with_weights_only_are_for_evaluation(tmp_path):
    start(tmp_path, every_step(tmp_path / "c", save_weights_only=True), stop_at=3)
    with pytest.warns(UserWarning, match="weights only, from which training cannot go on"):
        assert start(tmp_path, every_step(tmp_path / "c", save_weights_only=True), stop_at=1) == 0
    trainer = trainer_in(tmp_path, every_step(tmp_path / "c"))
    trainer.predict(Model(), loader(), ckpt_path="auto")

    assert os.path.basename(trainer.ckpt_path).startswith("epoch=0-step=")


def test_weights_that_are_not_finite_are_passed_over(tmp_path):
    trainer = trainer_in(tmp_path, every_step(tmp_path / "c"), max_steps=2)
    model = Model()
    trainer.fit(model, loader())
    with torch.no_grad():
        model.layer.bias[0] = float("nan")
    trainer.save_checkpoint(tmp_path / "c/by_hand.ckpt")
    os.utime(tmp_path / "c/by_hand.ckpt", (2e9, 2e9))
    with pytest.warns(UserWarning, match=r"by_hand\.ckpt` \(its weights are not finite, beginning with `layer\.bias`"):
        assert start(tmp_path, every_step(tmp_path / "c")) == 2


def test_interrupt_exception_and_cluster_files_count(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=4)
    files = {step: tmp_path / f"c/epoch=0-step={step}.ckpt" for step in (1, 2, 3)}
    for source, target in (
        (files[1], tmp_path / "hpc_ckpt_1.ckpt"),
        (files[2], tmp_path / "e/on_exception.ckpt"),
        (files[3], tmp_path / "c2" / INTERRUPTED_NAME),
    ):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    found = []
    for name in (f"c2/{INTERRUPTED_NAME}", "e/on_exception.ckpt", "hpc_ckpt_1.ckpt"):
        trainer = trainer_in(tmp_path, every_step(tmp_path / "c2"), OnExceptionCheckpoint(tmp_path / "e"))
        trainer.predict(Model(), loader(), ckpt_path="auto")
        found.append(os.path.relpath(trainer.ckpt_path, tmp_path))
        (tmp_path / name).unlink()

    assert found == [f"c2/{INTERRUPTED_NAME}", "e/on_exception.ckpt", "hpc_ckpt_1.ckpt"]


def test_clocks_of_machines_do_not_matter_within_a_run(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=4)
    start(tmp_path, every_step(tmp_path / "c"), stop_at=6)
    for step in (1, 4):
        path = next((tmp_path / "c").glob(f"*step={step}.ckpt"))
        os.utime(path, (2e9, 2e9))  # by a clock that is ahead, or copied later

    assert start(tmp_path, every_step(tmp_path / "c")) == 6


def test_run_begun_anew_in_the_folder_is_newer_than_one_that_came_farther(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=9)
    for path in (tmp_path / "c").iterdir():
        os.utime(path, (1e9, 1e9))
    with pytest.raises(KeyError):
        trainer_in(tmp_path, every_step(tmp_path / "c")).fit(Model(stop_at=3), loader())

    assert start(tmp_path, every_step(tmp_path / "c")) == 3


def test_run_that_was_turned_back_by_hand_goes_on_from_there(tmp_path):
    start(tmp_path, every_step(tmp_path / "c"), stop_at=9)
    with pytest.raises(KeyError):
        trainer_in(tmp_path, every_step(tmp_path / "c")).fit(
            Model(stop_at=5), loader(), ckpt_path=tmp_path / "c/epoch=0-step=2.ckpt"
        )

    assert start(tmp_path, every_step(tmp_path / "c")) == 5


def test_subfolders_are_searched_only_if_names_have_them(tmp_path):
    saver = every_step(tmp_path / "c", filename="{epoch}/at-{step}")
    start(tmp_path, saver, stop_at=3)

    assert start(tmp_path, every_step(tmp_path / "c"), stop_at=1) == 0
    for path in (tmp_path / "c").glob("*.ckpt"):
        path.unlink()
    assert start(tmp_path, every_step(tmp_path / "c", filename="{epoch}/at-{step}")) == 3


def test_evaluation_without_any_checkpoint_says_so(tmp_path):
    with pytest.warns(UserWarning, match="The weights in memory are used"):
        trainer_in(tmp_path, every_step(tmp_path / "c")).predict(Model(), loader(), ckpt_path="auto")


def test_objects_of_others_are_not_made_while_looking(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "c").mkdir()
    torch.save({"global_step": 5, "x": Evil()}, tmp_path / "c/evil.ckpt")
    with pytest.raises(Exception, match="evil"):
        start(tmp_path, every_step(tmp_path / "c"))

    assert not (tmp_path / "made").exists()
