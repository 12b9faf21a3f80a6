from __future__ import annotations

import pytest

from fulmen.demos.mnist_datamodule import MNISTDataModule
from fulmen.utilities.lazy import is_installed


@pytest.mark.skipif(is_installed("torchvision"), reason="shows what happens without torchvision")
def test_missing_torchvision_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fulmen\[vision\]'"):
        MNISTDataModule().prepare_data()


def test_ten_classes() -> None:
    assert MNISTDataModule().num_classes == 10
