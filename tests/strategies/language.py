"""A small language model, whole and divided, for tests of tensor parallel training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer, seed_everything

__all__ = [
    "HEADS",
    "LENGTH",
    "PLAN",
    "SEQUENCE_PLAN",
    "WIDTH",
    "WORDS",
    "Language",
    "Net",
    "fit",
    "loader",
    "seeded",
    "whole_weights",
]

WORDS, WIDTH, HEADS, LENGTH = 32, 16, 4, 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.q_norm = nn.RMSNorm(WIDTH // HEADS)
        self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, -1, WIDTH // HEADS) for layer in (self.wq, self.wk, self.wv))
        mixed = F.scaled_dot_product_attention(
            self.q_norm(q).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), Mlp()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, is_tied: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Block(dropout) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if is_tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return out


PLAN: dict[str, Any] = {
    "**.wq": "colwise",
    "**.wk": "colwise",
    "**.wv": "colwise",
    "**.wo": "rowwise",
    "**.q_norm": "local",
    "**.up": "colwise",
    "**.down": "rowwise",
    "**.words": "vocabulary",
    "**.head": "vocabulary",
}
SEQUENCE_PLAN: dict[str, Any] = {
    **PLAN,
    "**.norm1": "sequence",
    "**.norm2": "sequence",
    "**.norm": "sequence",
    "**.dropout": "sequence",
    "**.attn": "gather",
    "**.places": "replicate",
}


class Language(LightningModule):
    """Predicts the next word."""

    def __init__(self, dropout: float = 0.0, is_tied: bool = True) -> None:
        super().__init__()
        self.net: Any = Net(dropout, is_tied)
        self.seen: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        return F.cross_entropy(self.net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        out: Tensor = self.net(batch[:, :-1]).argmax(-1)
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader(strategy: Any, size: int = 20) -> DataLoader[Tensor]:
    """Return batches of 8 samples over all processes; the last one has 4."""
    samples = torch.randint(0, WORDS, (size, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    return DataLoader(samples, batch_size=8 // strategy.data_parallel_size, shuffle=False)  # type: ignore[arg-type]


def fit(
    module: LightningModule, strategy: Any, *, devices: int, epochs: int, ckpt_path: str | None = None, **kwargs: Any
) -> Trainer:
    """Train with accumulation and clipping."""
    settings: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": 2,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": epochs,
        **kwargs,
    }
    trainer = Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=epochs, **settings)
    trainer.fit(module, loader(trainer.strategy), loader(trainer.strategy, 12), ckpt_path=ckpt_path)
    return trainer


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights, put together; all ranks must call it."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.state_dict().items()
    }


def seeded(**kwargs: Any) -> Language:
    """Return the same module wherever it is called."""
    seed_everything(3, verbose=False)
    return Language(**kwargs)
