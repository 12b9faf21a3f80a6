"""`fulmen convert`: each kind of file into each other, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fulmen import Trainer
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from tests.cli.trained import Net, data
from tests.support import quiet


def weights_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_a_checkpoint_becomes_a_state_dict(fulmen, trained, tmp_path) -> None:
    ended = fulmen("convert", trained, "model.pt")
    model = Net()
    model.load_state_dict(weights_of(tmp_path / "model.pt"))

    assert ended.code == 0
    assert ended.out.startswith("model.pt: 9 tensors, 268 B (fulmen -> weights)\n")
    assert "left out: epoch, global_step" in ended.out
    torch.testing.assert_close(model.state_dict(), weights_of(trained)["state_dict"], rtol=0, atol=0)


def test_safetensors_and_back_keep_weights_step_and_hyperparameters(fulmen, trained, tmp_path) -> None:
    there = fulmen("convert", trained, "model.safetensors")
    back = fulmen("convert", "model.safetensors", "model.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "model.ckpt")

    assert (there.code, back.code) == (0, 0)
    assert weights_of(tmp_path / "model.ckpt")["global_step"] == 6
    assert dict(loaded.hparams) == {"width": 8, "lr": 0.1, "act": None}
    torch.testing.assert_close(loaded.state_dict(), weights_of(trained)["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(
        load_file(tmp_path / "model.safetensors"), dict(weights_of(trained)["state_dict"]), rtol=0, atol=0
    )
    predictions = Trainer(**quiet(tmp_path)).predict(Net(), data(), ckpt_path=tmp_path / "model.ckpt")
    assert predictions is not None
    assert len(predictions) == 3


@pytest.mark.filterwarnings("ignore:The folder of `ModelCheckpoint` changed")
def test_a_checkpoint_for_lightning_goes_without_what_only_fulmen_reads_and_resumes(fulmen, trained, tmp_path) -> None:
    ended = fulmen("convert", trained, "theirs.ckpt", "--to", "lightning")
    content = weights_of(tmp_path / "theirs.ckpt")
    callbacks = [EarlyStopping("loss"), ModelCheckpoint(tmp_path, save_last=True)]
    trainer = Trainer(**quiet(tmp_path, callbacks=callbacks, max_epochs=3, enable_checkpointing=True))
    trainer.fit(Net(), data(), ckpt_path=tmp_path / "theirs.ckpt")

    assert "left out, as only fulmen reads it" in ended.out
    assert "fulmen" not in content
    assert content["optimizer_states"]
    assert trainer.global_step == 9


def test_an_old_checkpoint_comes_into_the_layout_of_today(fulmen, tmp_path) -> None:
    old = {"pytorch-lightning_version": "1.8.0", "epoch": 1, "global_step": 6, "state_dict": {"w": torch.ones(2)},
           "loops": {"fit_loop": {"epoch_loop.batch_loop.manual_loop.state_dict": {}}}, "callbacks": {}}  # fmt: skip
    torch.save(old, tmp_path / "old.ckpt")
    ended = fulmen("convert", "old.ckpt", "new.ckpt")
    content = weights_of(tmp_path / "new.ckpt")

    assert ended.code == 0
    assert content["pytorch-lightning_version"] == "2.6.6"
    assert "changed for the layout of 2.0.0" in ended.out
    assert "epoch_loop.manual_optimization.state_dict" in content["loops"]["fit_loop"]


def test_weights_only_leaves_out_the_training_state(fulmen, trained, tmp_path) -> None:
    ended = fulmen("convert", trained, "w.ckpt", "--weights-only", "--dtype", "bf16")
    content = weights_of(tmp_path / "w.ckpt")

    assert "left out: optimizer_states, lr_schedulers, callbacks" in ended.out
    assert set(content["fulmen"]) <= {"version", "pickled_hparams"}
    assert content["state_dict"]["head.weight"].dtype == torch.bfloat16
    assert content["state_dict"]["encoder.1.num_batches_tracked"].dtype == torch.int64
    assert Net.load_from_checkpoint(tmp_path / "w.ckpt").hparams.width == 8


def test_prefixes_are_taken_off_and_put_on(fulmen, tmp_path) -> None:
    torch.save({"model._orig_mod.a": torch.ones(1), "model.b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "in.pt")
    ended = fulmen(
        "convert", "in.pt", "out.pt", "--strip-prefix", "model.", "--strip-prefix=_orig_mod.", "--add-prefix", "net.",
    )  # fmt: skip

    assert ended.code == 1
    assert "no weight's name begins with `--strip-prefix=_orig_mod.`" in ended.err
    ended = fulmen("convert", "in.pt", "out.pt", "--strip-prefix", "model._orig_mod.", "--strip-prefix", "model.")
    assert list(weights_of(tmp_path / "out.pt")) == ["a", "b", "c"]
    assert "renamed 2 of 3 weights" in ended.out
    fulmen("convert", "in.pt", "net.pt", "--add-prefix", "net.")
    assert list(weights_of(tmp_path / "net.pt"))[2] == "net.c"


def test_tied_weights_stay_tied_where_the_format_can_and_are_doubled_where_not(fulmen, tmp_path) -> None:
    weight = torch.ones(4, 4)
    torch.save({"a": weight, "b": weight, "c": weight[1]}, tmp_path / "in.pt")
    fulmen("convert", "in.pt", "out.pt", "--dtype", "float16")
    tensors = fulmen("convert", "in.pt", "out.safetensors")
    content = weights_of(tmp_path / "out.pt")

    assert content["a"].data_ptr() == content["b"].data_ptr()
    assert content["a"].dtype == torch.float16
    assert "though they share memory with others: b, c" in tensors.out
    assert set(load_file(tmp_path / "out.safetensors")) == {"a", "b", "c"}


def test_the_key_says_where_the_weights_are(fulmen, tmp_path) -> None:
    state = nn.Linear(1, 1).state_dict()
    torch.save({"ema": {"model": state}, "a": state, "b": state}, tmp_path / "in.pt")
    unclear = fulmen("convert", "in.pt", "out.pt")
    found = fulmen("convert", "in.pt", "out.pt", "--key", "ema.model")

    assert unclear.code == 1
    assert "Say where they are by `--key`" in unclear.err
    assert found.code == 0
    assert list(weights_of(tmp_path / "out.pt")) == ["weight", "bias"]


def test_objects_are_kept_by_trust_only(fulmen, tmp_path) -> None:
    content = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0, "loops": {}, "callbacks": {},
               "state_dict": {"b": torch.ones(1)}, "hyper_parameters": {"lr": 0.2, "act": nn.ReLU()}}  # fmt: skip
    torch.save(content, tmp_path / "in.ckpt")
    refused = fulmen("convert", "in.ckpt", "out.ckpt")
    without = fulmen("convert", "in.ckpt", "without.ckpt", "--weights-only")
    trusted = fulmen("convert", "in.ckpt", "trusted.ckpt", "--trust")

    assert refused.code == 1
    assert "`--trust` makes them" in refused.err
    assert not (tmp_path / "out.ckpt").exists()
    assert without.code == 0
    assert weights_of(tmp_path / "without.ckpt")["hyper_parameters"] == {"lr": 0.2}
    assert trusted.code == 0
    stored = weights_of(tmp_path / "trusted.ckpt")  # as this framework stores them: plain, and the rest closed
    assert stored["hyper_parameters"] == {"lr": 0.2}
    assert list(stored["fulmen"]["pickled_hparams"]["hyper_parameters"]) == ["act"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.pt", "out.xyz"], "does not follow from its ending '.xyz'"),
        (["nowhere.pt", "out.pt"], "there is no file or folder 'nowhere.pt'"),
        (["in.pt", "in.pt", "--overwrite"], "is the input itself"),
        (["in.pt", "there.pt"], "exists, and is not overwritten"),
        (["empty.pt", "out.pt"], "has no weights that could be found"),
        (["in.pt", "out.pt", "--key", "x"], "there are no weights under 'x'"),
        (["in.pt", "out.pt", "--strip-prefix", "a."], "two weights would both be called 'w'"),
        (["in.pt", "s3://bucket/out.pt"], "is no local path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_and_nothing_written(fulmen, tmp_path, words, message) -> None:
    torch.save({"w": torch.ones(1), "a.w": torch.ones(1)}, tmp_path / "in.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    (tmp_path / "there.pt").write_text("mine")
    ended = fulmen("convert", *words)

    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "out.pt").exists()
    assert (tmp_path / "there.pt").read_text() == "mine"


def test_dtype_leaves_states_of_optimizers_alone(fulmen, trained) -> None:
    ended = fulmen("convert", trained, "x.ckpt", "--dtype", "16")

    assert ended.code == 1
    assert "Add `--weights-only`" in ended.err
