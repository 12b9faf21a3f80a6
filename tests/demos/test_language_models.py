from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen import Trainer
from fulmen.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from fulmen.demos.transformer import LightningTransformer, PositionalEncoding, Transformer
from fulmen.demos.wikitext import Dictionary, WikiText2, tokenize
from tests.support import quiet


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data` of the current one, with a small text."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "wikitext-2.txt").write_text("the cat sat\n\non the mat\n" * 30)
    monkeypatch.chdir(tmp_path)
    return folder


def test_words_are_numbered_in_order_of_appearance(text: Path) -> None:
    numbers, dictionary = tokenize(text / "wikitext-2.txt")

    assert numbers[:8].tolist() == [0, 1, 2, 3, 3, 4, 0, 5]
    assert dictionary.idx2word == ["the", "cat", "sat", "<eos>", "on", "mat"]
    assert Dictionary().add_word("first") == 0


def test_target_is_the_input_one_word_later(text: Path) -> None:
    dataset = WikiText2(text, block_size=5)
    inputs, target = dataset[1]

    assert inputs[1:].tolist() == target[:-1].tolist()
    assert target[-1] == dataset.data[10]
    assert len(dataset) == (len(dataset.data) - 1) // 5
    assert len(list(dataset)) == len(dataset)  # type: ignore[call-overload]  # by the old protocol: until IndexError
    assert dataset.vocab_size == 6


def test_missing_file_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Put the text there"):
        WikiText2(tmp_path, download=False)


def test_failing_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)

    with pytest.raises(ConnectionError, match="Without a network, put a text"):
        WikiText2(tmp_path)


def test_rows_of_sequence_batches_go_on() -> None:
    sampler = SequenceSampler(range(23), 4)

    assert list(sampler) == [[0, 5, 10, 15], [1, 6, 11, 16], [2, 7, 12, 17], [3, 8, 13, 18], [4, 9, 14, 19]]
    assert len(sampler) == 5


def test_lstm_carries_its_state_over_batches_and_drops_it_after_the_epoch(text: Path, tmp_path: Path) -> None:
    dataset = WikiText2(text, block_size=5)
    model = LightningLSTM(dataset.vocab_size)
    model.model = SimpleLSTM(dataset.vocab_size, ninp=4, nhid=4, nlayers=2)
    seen = []
    model.model.register_forward_pre_hook(lambda module, args: seen.append(float(args[1][0].abs().sum())))
    trainer = Trainer(**quiet(tmp_path))
    trainer.fit(model, DataLoader(dataset, batch_sampler=SequenceSampler(dataset, 4)))

    assert seen[0] == 0.0
    assert all(value > 0 for value in seen[1:])
    assert model.hidden is None
    assert "train_loss" in trainer.callback_metrics


def test_transformer_trains(text: Path, tmp_path: Path) -> None:
    dataset = WikiText2(text, block_size=5)
    model = LightningTransformer(dataset.vocab_size)
    model.model = Transformer(dataset.vocab_size, ninp=8, nhead=2, nhid=8, nlayers=1)
    trainer = Trainer(**quiet(tmp_path, max_steps=2))
    trainer.fit(model, DataLoader(dataset, batch_size=3))

    assert trainer.global_step == 2


def test_transformer_does_not_see_later_targets() -> None:
    model = Transformer(11, ninp=8, nhead=2, nhid=8, nlayers=1).eval()
    inputs, target = torch.randint(11, (1, 6)), torch.randint(11, (1, 6))
    changed = target.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 11

    torch.testing.assert_close(model(inputs, target)[:-1], model(inputs, changed)[:-1])


@pytest.mark.parametrize("dim", [7, 8])
def test_positions_are_told_apart(dim: int) -> None:
    encoded = PositionalEncoding(dim, dropout=0.0)(torch.zeros(1, 50, dim))[0]

    assert len({tuple(row.tolist()) for row in encoded}) == 50
