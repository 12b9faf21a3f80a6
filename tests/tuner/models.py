"""A model whose steps run out of memory beyond a batch size, and a comparison of what a search must leave alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule

__all__ = ["Model", "ready_state"]


class Model(LightningModule):
    """Notes the size and the loss of each batch; draws random numbers everywhere."""

    def __init__(self, lr: float = 0.1, batch_size: int = 2, num_samples: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.lr = lr
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.limit = 10**9
        self.error: Any = None
        self.sizes: list[int] = []
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def _forward(self, batch: Any) -> torch.Tensor:
        self.sizes.append(len(batch[0]))
        if len(batch[0]) > self.limit:
            raise self.error() if callable(self.error) else self.error
        x = batch[0] + 0.1 * torch.rand(4, device=self.device)
        loss: torch.Tensor = (self.net(x) - batch[0].sum(1, keepdim=True)).square().mean()
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        loss = self._forward(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._forward(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._forward(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self._forward(batch)

    def _loader(self, **options: Any) -> DataLoader[Any]:
        data = TensorDataset(torch.linspace(-1, 1, self.num_samples * 4).reshape(-1, 4))
        return DataLoader(data, batch_size=self.batch_size, **options)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    test_dataloader = predict_dataloader = val_dataloader

    def configure_optimizers(self) -> Any:
        rates = [self.lr, self.lr / 10]
        layers = [self.net[0], self.net[3]]
        groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


def ready_state(model: Model) -> dict[str, Any]:
    """Everything of a module that a search could change, as comparable values."""
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "modes": [child.training for child in model.modules()],
        "plain": (model.sizes[:], model.losses[:], model.rates[:], model.lr, model.batch_size),
        "rng": torch.get_rng_state().tolist(),
    }
