from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.profilers import XLAProfiler
from tests.support import quiet
from tests.xla_stand_in import install

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of a stand-in for `torch_xla.debug.profiler`, which this machine cannot install."""
    install(monkeypatch)
    noted: list[Any] = []

    class Mark:
        def __init__(self, name: str, **kwargs: Any) -> None:
            self.name = (type(self).__name__, name, *kwargs.values())

        def __enter__(self) -> None:
            noted.append(self.name)

        def __exit__(self, *exc_info: Any) -> None:
            noted.append("end")

    def start_server(port: int) -> str:
        noted.append(port)
        return "server"

    debug, profiler = ModuleType("torch_xla.debug"), ModuleType("torch_xla.debug.profiler")
    vars(profiler).update(
        start_server=start_server, Trace=type("Trace", (Mark,), {}), StepTrace=type("StepTrace", (Mark,), {})
    )
    monkeypatch.setitem(sys.modules, "torch_xla.debug", debug)
    monkeypatch.setitem(sys.modules, "torch_xla.debug.profiler", profiler)
    return noted


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_steps_and_backward_are_marked_and_the_port_is_opened_once(tmp_path, calls):
    trainer = Trainer(**quiet(tmp_path, profiler=XLAProfiler(port=9001), num_sanity_val_steps=0, limit_val_batches=2))
    data: Any = [torch.ones(4)] * 4
    trainer.fit(Model(), DataLoader(data[:2], 2), DataLoader(data, 2))
    strategy = "[Strategy]SingleDeviceStrategy"

    assert calls == [
        9001,
        ("Trace", f"{strategy}.training_step"), "end",
        ("Trace", f"{strategy}.backward"), "end",
        ("StepTrace", "validation_step", 0), "end",
        ("StepTrace", "validation_step", 1), "end",
    ]  # fmt: skip


def test_marks_left_by_an_error_are_ended(calls):
    profiler = XLAProfiler()
    profiler.start("[Strategy]S.training_step")
    profiler.start("[Callback]C.on_train_batch_end")
    profiler.teardown("fit")
    profiler.stop("[Strategy]S.training_step")

    assert calls == [9012, ("Trace", "[Strategy]S.training_step"), "end"]


def test_missing_package_is_named_with_its_extra():
    with pytest.raises(ModuleNotFoundError, match=r"XLAProfiler.*fulmen\[xla\]|fulmen\[xla\].*XLAProfiler"):
        XLAProfiler()


def test_wrong_port_is_refused():
    with pytest.raises(ValueError, match="`XLAProfiler\\(port=0\\)`"):
        XLAProfiler(port=0)
