"""Hardware of others: by name, by device, from installed packages."""

from __future__ import annotations

import sys

import pytest
import torch

from fulmen.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from fulmen.accelerators.registry import AcceleratorNames
from fulmen.demos.boring_classes import BoringModel
from fulmen.trainer import Trainer
from fulmen.utilities.exceptions import MisconfigurationException
from tests.support import quiet

PACKAGE = """
from fulmen.accelerators import CPUAccelerator

class Abacus(CPUAccelerator):
    @staticmethod
    def name():
        return "abacus"
"""


class Loom(CPUAccelerator):
    """Hardware of a user that notes what it is asked to do."""

    calls: list[str] = []  # noqa: RUF012 - one list for all objects is what the test reads

    def setup_device(self, device):
        self.calls.append(f"setup_device {device}")
        super().setup_device(device)

    def setup(self, trainer):
        self.calls.append("setup")

    def teardown(self):
        self.calls.append("teardown")

    @staticmethod
    def name():
        return "loom"


@pytest.fixture
def loom():
    AcceleratorRegistry.register("loom", Loom, description="weaves")
    Loom.calls.clear()
    yield "loom"
    AcceleratorRegistry.remove("loom")


def test_a_registered_accelerator_trains(loom, tmp_path):
    trainer = Trainer(**quiet(tmp_path, accelerator=loom, devices="auto", max_steps=2))

    trainer.fit(BoringModel())

    assert type(trainer.accelerator) is Loom
    assert trainer.global_step == 2
    assert Loom.calls == ["setup_device cpu", "setup", "teardown"]


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """A package that offers an accelerator by an entry point, as pip would install it."""
    (tmp_path / "abacus_plugin.py").write_text(PACKAGE)
    info = tmp_path / "abacus_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fulmen.accelerators]\nabacus = abacus_plugin:Abacus\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("abacus_plugin", None)


def test_installed_packages_offer_theirs(installed_package):
    names = AcceleratorNames()

    assert names.names() == ["abacus"]
    assert "abacus" in names
    assert "abacus_plugin" not in sys.modules  # not before its name is used

    assert names.get("abacus").name() == "abacus"
    assert names["abacus"]["description"] == "from abacus_plugin:Abacus"
    assert len(names) == 1


def test_what_is_registered_goes_before_packages(installed_package):
    names = AcceleratorNames()
    names.register("abacus", Loom)

    assert type(names.get("abacus")) is Loom


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", CPUAccelerator), ("cuda:1", CUDAAccelerator), ("mps", MPSAccelerator)]
)
def test_a_device_has_an_accelerator(device, kind):
    assert type(AcceleratorRegistry.for_device(torch.device(device))) is kind


def test_a_device_without_accelerator_says_how_to_add_one():
    with pytest.raises(MisconfigurationException, match=r"for the device `xpu`.*register it"):
        AcceleratorRegistry.for_device(torch.device("xpu"))


def test_availability_is_asked_without_making_the_object():
    names = AcceleratorNames()
    names.register("never made", CUDAAccelerator, speed=3)  # would raise: it takes no argument
    names.register("by a function", lambda: CPUAccelerator())

    assert names.is_available("never made") == (torch.cuda.device_count() > 0)
    assert names.is_available("by a function")
