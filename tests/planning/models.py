"""Modules to plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fulmen import LightningModule

__all__ = ["Alternating", "Block", "Language"]


class Block(nn.Module):
    """Half a block of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(self.norm(x))))
        return x + y


class Language(LightningModule):
    """Blocks between an embedding and a head."""

    def __init__(
        self, width: int = 32, depth: int = 3, words: int = 64, checkpoints: bool = False, optimizer: str = "AdamW"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.hparams.checkpoints else layer(x)
        words: Tensor = self.head(x)
        return words

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self(batch).flatten(0, 1).float(), batch.flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.hparams.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Alternating(Language):
    """Optimizes twice in a step by itself, the blocks and then the head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        optimizers: Any = self.optimizers()
        schedulers: Any = self.lr_schedulers()
        for optimizer in optimizers:
            self.toggle_optimizer(optimizer)
            loss: Tensor = self(batch).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        for scheduler in schedulers:
            scheduler.step()
        return loss

    def configure_optimizers(self) -> Any:
        parts = [[*self.embedding.parameters(), *self.layers.parameters()], self.head.parameters()]
        optimizers = [torch.optim.AdamW(part, lr=1e-3) for part in parts]
        return optimizers, [torch.optim.lr_scheduler.StepLR(each, 1) for each in optimizers]
