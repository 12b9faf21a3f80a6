"""Small models and data sets for examples, tests and bug reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.utilities.lazy import lazy_exports

if TYPE_CHECKING:
    from fulmen.demos.boring_classes import BoringDataModule as BoringDataModule
    from fulmen.demos.boring_classes import BoringModel as BoringModel
    from fulmen.demos.boring_classes import DemoModel as DemoModel
    from fulmen.demos.lstm import LightningLSTM as LightningLSTM
    from fulmen.demos.lstm import SequenceSampler as SequenceSampler
    from fulmen.demos.lstm import SimpleLSTM as SimpleLSTM
    from fulmen.demos.transformer import LightningTransformer as LightningTransformer
    from fulmen.demos.transformer import Transformer as Transformer
    from fulmen.demos.wikitext import WikiText2 as WikiText2

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BoringDataModule": "fulmen.demos.boring_classes",
        "BoringModel": "fulmen.demos.boring_classes",
        "DemoModel": "fulmen.demos.boring_classes",
        "LightningLSTM": "fulmen.demos.lstm",
        "LightningTransformer": "fulmen.demos.transformer",
        "SequenceSampler": "fulmen.demos.lstm",
        "SimpleLSTM": "fulmen.demos.lstm",
        "Transformer": "fulmen.demos.transformer",
        "WikiText2": "fulmen.demos.wikitext",
    },
)
