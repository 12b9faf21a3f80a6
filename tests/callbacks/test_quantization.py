from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulmen import Trainer
from fulmen.callbacks import QuantizationAwareTraining
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.digits_reader import Reader as SgdReader
from tests.callbacks.digits_reader import loader, stopped_by_signal, train
from tests.support import quiet

# torchao takes several seconds to import
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torchao"),
]


def two_bits() -> Any:
    from torchao.quantization import (  # type: ignore[import-untyped]  # it has no types
        Int8DynamicActivationIntxWeightConfig,
        PerAxis,
    )

    dtype = torch.int2  # type: ignore[attr-defined]  # torch does not list it
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=PerAxis(0))


class Reader(SgdReader):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


def accuracy(tmp_path: Path, module: Reader, **arguments: Any) -> float:
    [result] = Trainer(**quiet(tmp_path)).test(module, loader(640, 1797, shuffle=False), verbose=False, **arguments)
    return result["val_acc"]


def trained(tmp_path: Path, *callbacks: Any, **arguments: Any) -> tuple[Reader, Trainer]:
    trainer = train(tmp_path, *callbacks, model=lambda: Reader(width=32), max_epochs=12, **arguments)
    module = trainer.lightning_module
    assert isinstance(module, Reader)
    return module, trainer


@pytest.mark.slow
def test_two_bits_are_enough_if_training_knows_of_them(tmp_path):
    plain, _ = trained(tmp_path)
    callback = QuantizationAwareTraining(two_bits(), start_epoch=6)
    module, _ = trained(tmp_path, callback)
    afterwards = accuracy(tmp_path, callback.convert(plain))
    aware = accuracy(tmp_path, callback.convert(module))

    assert accuracy(tmp_path, plain) > 0.9
    assert afterwards < 0.9
    assert aware > afterwards + 0.04


@pytest.mark.slow
def test_the_converted_model_computes_what_training_saw_and_is_smaller(tmp_path):
    callback = QuantizationAwareTraining()
    module, _ = trained(tmp_path, callback)
    converted = callback.convert(module)
    pictures = torch.rand(7, 64)
    torch.save(converted.state_dict(), tmp_path / "int8.pt")
    torch.save(module.state_dict(), tmp_path / "float.pt")
    loaded = Reader(width=32)
    loaded.load_state_dict(torch.load(tmp_path / "int8.pt", weights_only=True), assign=True)

    assert torch.equal(converted(pictures), module.eval()(pictures))
    assert torch.equal(loaded(pictures), converted(pictures))
    assert type(converted.net[0]) is nn.Linear
    assert type(converted.net[0].weight).__name__ == "IntxUnpackedToInt8Tensor"
    assert (tmp_path / "int8.pt").stat().st_size < 0.6 * (tmp_path / "float.pt").stat().st_size
    assert type(module.net[0].weight) is nn.Parameter  # it can be trained on


@pytest.mark.slow
def test_checkpoints_load_with_and_without_the_callback(tmp_path):
    callback = QuantizationAwareTraining()
    module, trainer = trained(tmp_path, callback)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    plain = Reader.load_from_checkpoint(tmp_path / "model.ckpt", width=32, weights_only=True)

    assert list(plain.state_dict()) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    pictures = torch.rand(7, 64)
    assert torch.equal(callback.convert(plain)(pictures), callback.convert(module)(pictures))


@pytest.mark.slow
def test_rounding_begins_with_the_start_epoch(tmp_path):
    from torchao.quantization.qat import FakeQuantizerBase  # type: ignore[import-untyped]  # it has no types

    rounds: list[bool] = []

    class Looks(Reader):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            [*quantizers] = (each for each in self.modules() if isinstance(each, FakeQuantizerBase))
            rounds.append(quantizers[0].enabled)

    train(
        tmp_path, QuantizationAwareTraining(start_epoch=2), model=Looks, max_epochs=4, limit_train_batches=2,
        log_every_n_steps=1,
    )  # fmt: skip

    assert rounds == [False] * 4 + [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumed_after_a_signal_equals_the_uninterrupted_one(tmp_path, epoch):
    settings: dict[str, Any] = {"max_epochs": 2, "model": Reader}
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()

    def callback() -> QuantizationAwareTraining:
        return QuantizationAwareTraining(two_bits(), start_epoch=1)

    path = stopped_by_signal(tmp_path / "part", callback(), batch_idx=7, epoch=epoch, **settings)
    resumed = train(tmp_path / "part", callback(), ckpt_path=path, **settings).lightning_module
    whole = train(tmp_path / "whole", callback(), **settings).lightning_module

    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_only_chosen_layers_are_replaced_and_none_is_an_error(tmp_path):
    module, _ = trained(tmp_path, QuantizationAwareTraining(filter_fn=lambda layer, name: name == "net.2"))

    assert [type(layer).__name__ for layer in module.net] == ["Linear", "ReLU", "FakeQuantizedLinear"]
    with pytest.raises(MisconfigurationException, match="no layer to quantize"):
        train(tmp_path, QuantizationAwareTraining(filter_fn=lambda layer, name: False))


def test_a_bad_start_is_refused():
    with pytest.raises(MisconfigurationException, match="start_epoch=-1"):
        QuantizationAwareTraining(start_epoch=-1)


def test_without_torchao_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "torchao.quantization", raising=False)

    with pytest.raises(ModuleNotFoundError, match=r"fulmen\[quantization\]"):
        QuantizationAwareTraining()
