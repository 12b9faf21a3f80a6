"""How far it is from the user's call to the user's code: frames in a traceback, Python calls in a step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen import Callback, LightningModule, Trainer
from tests.support import PACKAGE_FOLDER, framework_frames, quiet

MOST_CALLS_IN_A_BARE_STEP = 20


class Marker(Exception):
    """Raised by the user's code."""


class Model(LightningModule):
    def __init__(self, raises_in: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.raises_in = raises_in

    def at(self, place: str) -> None:
        if place == self.raises_in:
            raise Marker

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.at("training_step")
        return self(batch).sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.at("validation_step")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.at("test_step")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.at("predict_step")

    def configure_optimizers(self) -> Any:
        self.at("configure_optimizers")
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Raising(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    def fail(self, *_: Any) -> None:
        raise Marker


def data() -> DataLoader[Any]:
    return DataLoader(torch.ones(8, 4), batch_size=2)  # type: ignore[arg-type]  # a tensor is a dataset


@pytest.mark.parametrize(
    ("method", "place", "most"),
    [
        ("fit", "training_step", 6),
        ("fit", "validation_step", 6),
        ("validate", "validation_step", 6),
        ("test", "test_step", 6),
        ("predict", "predict_step", 6),
        ("fit", "configure_optimizers", 6),
    ],
)
def test_an_error_in_a_step_shows_few_framework_frames(method: str, place: str, most: int, tmp_path: Path) -> None:
    loaders = (data(), data()) if method == "fit" else (data(),)
    with pytest.raises(Marker) as caught:
        getattr(Trainer(**quiet(tmp_path)), method)(Model(place), *loaders)

    assert framework_frames(caught.tb) <= most


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_train_batch_end", "on_train_epoch_start", "on_train_start"]
)
def test_an_error_in_a_callback_shows_few_framework_frames(hook: str, tmp_path: Path) -> None:
    trainer = Trainer(**quiet(tmp_path, callbacks=[Raising(hook)]))
    with pytest.raises(Marker) as caught:
        trainer.fit(Model(), data(), data())

    assert framework_frames(caught.tb) <= (4 if "batch" in hook or hook == "on_train_start" else 5)


def test_a_bare_training_step_makes_few_python_calls(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counting(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                sys.setprofile(count)
            if batch_idx == 3:
                sys.setprofile(None)
            return super().training_step(batch, batch_idx)

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE_FOLDER):
            calls.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)

    Trainer(**quiet(tmp_path)).fit(Counting(), data(), data())

    assert 5 <= len(calls) <= MOST_CALLS_IN_A_BARE_STEP, calls
