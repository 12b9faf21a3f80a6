"""A word-level language model with torch's Transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.core.module import LightningModule
from fulmen.demos.wikitext import WikiText2

__all__ = ["LightningTransformer", "PositionalEncoding", "Transformer"]


class PositionalEncoding(nn.Module):
    """Adds sines and cosines of the position, then dropout.

    Args:
        dim: Size of an embedding.
        dropout: Probability of dropout.
        max_len: Longest sequence.
    """

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dim = dim
        self.max_len = max_len
        self.pe: Tensor | None = None  # made at the first forward, on its device; not a weight

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding to `x` of shape (batch, length, dim)."""
        if self.pe is None or self.pe.device != x.device:
            self.pe = self._encoding(x.device)
        out: Tensor = self.dropout(x + self.pe[: x.size(1)])
        return out

    def _encoding(self, device: torch.device) -> Tensor:
        position = torch.arange(self.max_len, device=device).unsqueeze(1)
        rate = torch.exp(torch.arange(0, self.dim, 2, device=device) * (-math.log(10000.0) / self.dim))
        encoding = torch.zeros(self.max_len, self.dim, device=device)
        encoding[:, 0::2] = torch.sin(position * rate)
        encoding[:, 1::2] = torch.cos(position * rate)[:, : self.dim // 2]
        return encoding


class Transformer(nn.Module):
    """Embedding with positions, encoder and decoder, and a linear layer over the vocabulary.

    Args:
        vocab_size: Number of words.
        ninp: Size of an embedding.
        nhead: Heads of the attention.
        nhid: Size of the feed-forward layers.
        nlayers: Layers of encoder and of decoder.
        dropout: Probability of dropout.
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)
        self.ninp = ninp
        self.vocab_size = vocab_size
        self.src_mask: Tensor | None = None

    def generate_square_subsequent_mask(self, size: int) -> Tensor:
        """Return a mask of shape (size, size) that hides later positions: 0 where visible, else minus infinity."""
        return torch.full((size, size), float("-inf")).triu(diagonal=1)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log-probabilities of shape (batch * length, words) for each word of `target`."""
        length = inputs.size(1)
        if mask is None:
            if self.src_mask is None or self.src_mask.size(0) != length or self.src_mask.device != inputs.device:
                self.src_mask = self.generate_square_subsequent_mask(length).to(inputs.device)
            mask = self.src_mask
        source, goal = self._embed(inputs), self._embed(target)
        output = self.transformer(source, goal, tgt_mask=mask)
        return F.log_softmax(self.decoder(output), dim=-1).view(-1, self.vocab_size)

    def _embed(self, words: Tensor) -> Tensor:
        out: Tensor = self.pos_encoder(self.embedding(words) * math.sqrt(self.ninp))
        return out


class LightningTransformer(LightningModule):
    """Trains `Transformer` on WikiText-2.

    Args:
        vocab_size: Number of words.
    """

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return log-probabilities of shape (batch * length, words)."""
        out: Tensor = self.model(inputs, target)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        inputs, target = batch
        return F.nll_loss(self(inputs, target), target.reshape(-1))

    def prepare_data(self) -> None:
        """Fetch the data set."""
        WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return WikiText-2, one block a batch."""
        return DataLoader(WikiText2())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)
