"""The WikiText-2 data set, as numbered words."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Dictionary", "WikiText2", "tokenize"]

_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/train.txt"
_END_OF_LINE = "<eos>"
_TIMEOUT_S = 30.0


class WikiText2(Dataset[tuple[Tensor, Tensor]]):
    """Consecutive blocks of words; the target of a block is the block one word later.

    Args:
        data_dir: Folder of the file `wikitext-2.txt`, a text with one sentence a line.
        block_size: Words in a block.
        download: Fetch the file if it is not there.

    Raises:
        FileNotFoundError: The file is not there and `download` is False.
        ConnectionError: It cannot be fetched.
    """

    def __init__(self, data_dir: Path = Path("data"), block_size: int = 35, download: bool = True) -> None:
        self.path = Path(data_dir) / "wikitext-2.txt"
        if not self.path.exists():
            if not download:
                raise FileNotFoundError(
                    f"There is no file {str(self.path)!r}, and `download` is False. Put the text there (one sentence a"
                    " line), or pass `download=True`."
                )
            self.download(self.path)
        self.data, self.dictionary = tokenize(self.path)
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """Number of different words."""
        return len(self.dictionary)

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index * self.block_size
        stop = start + self.block_size
        return self.data[start:stop], self.data[start + 1 : stop + 1]

    @staticmethod
    def download(destination: Path) -> None:
        """Fetch the text.

        Args:
            destination: The file to write.

        Raises:
            ConnectionError: It cannot be fetched.
        """
        try:
            with urllib.request.urlopen(_URL, timeout=_TIMEOUT_S) as response:
                text = response.read()
        except urllib.error.URLError as error:
            raise ConnectionError(
                f"WikiText-2 could not be fetched from {_URL} ({error.reason}). Without a network, put a text with one"
                f" sentence a line at {str(destination)!r}; the data set reads it instead."
            ) from error
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(text)


class Dictionary:
    """Numbers for words, in order of their first appearance."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """Return the number of a word, a new one for a new word."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(path: Path) -> tuple[Tensor, Dictionary]:
    """Read a text as numbers, with a word of its own for the end of each line.

    Args:
        path: The text file.

    Returns:
        The numbers in order, and the dictionary they come from.
    """
    dictionary = Dictionary()
    numbers = [dictionary.add_word(word) for word in _words(path)]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


def _words(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
            yield _END_OF_LINE
