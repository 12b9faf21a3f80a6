"""A word-level language model with an LSTM that carries its state from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from fulmen.core.module import LightningModule
from fulmen.demos.wikitext import WikiText2

__all__ = ["LightningLSTM", "SequenceSampler", "SimpleLSTM"]

_BATCH_SIZE = 20


class SimpleLSTM(nn.Module):
    """Embedding, LSTM and a linear layer over the vocabulary.

    Args:
        vocab_size: Number of words.
        ninp: Size of a word's embedding.
        nhid: Size of the LSTM's state.
        nlayers: Layers of the LSTM.
        dropout: Probability of dropout between the parts.
    """

    def __init__(
        self, vocab_size: int = 33278, ninp: int = 512, nhid: int = 512, nlayers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.nlayers = nlayers
        self.nhid = nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw embedding and output weights from [-0.1, 0.1); set the output bias to 0."""
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return log-probabilities of shape (batch * length, words) and the state after the last word."""
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        scores = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return F.log_softmax(scores, dim=1), hidden

    def init_hidden(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return a state of zeros, on the device and in the dtype of the weights."""
        weight = self.decoder.weight
        shape = (self.nlayers, batch_size, self.nhid)
        return weight.new_zeros(shape), weight.new_zeros(shape)


class SequenceSampler(Sampler[list[int]]):
    """Batches in which each row goes on where it ended in the batch before; what does not fill a batch is left out.

    Args:
        dataset: Blocks in order.
        batch_size: Rows of a batch.
    """

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.chunk_size = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for position in range(self.chunk_size):
            yield [row * self.chunk_size + position for row in range(self.batch_size)]

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(LightningModule):
    """Trains `SimpleLSTM` on WikiText-2 by truncated backpropagation through time.

    Args:
        vocab_size: Number of words.
    """

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=vocab_size)
        self.hidden: tuple[Tensor, Tensor] | None = None

    def on_train_epoch_end(self) -> None:
        """Forget the state: the next epoch begins with the first words."""
        self.hidden = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, and keep the state for the next batch without its graph."""
        input, target = batch
        if self.hidden is None:
            self.hidden = self.model.init_hidden(input.size(0))
        output, (state, cell) = self.model(input, self.hidden)
        self.hidden = (state.detach(), cell.detach())
        loss = F.nll_loss(output, target.reshape(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def prepare_data(self) -> None:
        """Fetch the data set."""
        WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return WikiText-2 in batches of 20 rows."""
        dataset = WikiText2()
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=_BATCH_SIZE))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=20.0)
