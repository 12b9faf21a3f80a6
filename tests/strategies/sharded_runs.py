"""What each rank runs for the tests of what strategies with divided weights share, beside DDP and one device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulmen as L
from fulmen.strategies import ModelParallelStrategy
from fulmen.utilities.exceptions import MisconfigurationException

__all__ = ["batch_norm", "caught", "colwise_alone", "early", "early_in_fabric", "made_late", "scalar"]

PLAN: Any = {"net.0": "colwise", "net.2": "rowwise"}


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def data(size: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(size, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator))


class Net(L.LightningModule):
    """A classifier; its optimizer is made in the constructor, as some programs do."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 4)]
        self.net = nn.Sequential(*layers)
        self.own = torch.optim.AdamW(self.parameters(), lr=0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]  # modules return Any

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.own


class Normalized(Net):
    """The same with statistics of batches, validated."""

    def __init__(self) -> None:
        super().__init__(norm=True)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[0]))


def strategy_named(name: str) -> dict[str, Any]:
    if name == "one":
        return {"devices": 1}
    if name == "tensor":
        chosen: Any = ModelParallelStrategy(1, 2, parallelize=PLAN, save_distributed_checkpoint=False)
    elif name == "data":
        chosen = ModelParallelStrategy(2, 1, parallelize=lambda module, mesh: None)
    else:
        chosen = name
    return {"devices": world(), "strategy": chosen}


def trainer(folder: Path, name: str, **kwargs: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **strategy_named(name), **{"max_epochs": 1, **kwargs},
    )  # fmt: skip


def whole(module: nn.Module) -> dict[str, Tensor]:
    state = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in module.state_dict().items()}
    return {name: value.detach().clone() for name, value in state.items()}


def batch_size(name: str) -> int:
    return 8 if name in ("one", "tensor") else 4


def early(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights after training with an optimizer that is older than the parts of the module."""
    L.seed_everything(2, verbose=False)
    module = Net()
    trainer(folder, name).fit(module, DataLoader(data(64), batch_size(name)))
    return whole(module)


def early_in_fabric(name: str) -> dict[str, Tensor]:
    """The same, with module and optimizer set up one after the other."""
    L.seed_everything(2, verbose=False)
    fabric = L.Fabric(accelerator="cpu", **strategy_named(name))
    fabric.launch()
    plain = Net()
    model = fabric.setup_module(plain)
    optimizer = fabric.setup_optimizers(plain.own)
    for x, y in fabric.setup_dataloaders(DataLoader(data(64), batch_size(name))):
        fabric.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    return whole(plain)


def batch_norm(folder: Path, name: str) -> list[float]:
    """The last validation within fit, and one of the same weights afterwards."""
    L.seed_everything(2, verbose=False)
    module, run = Normalized(), trainer(folder, name, max_epochs=2)
    run.fit(module, DataLoader(data(64), batch_size(name)), DataLoader(data(24), batch_size(name)))
    inside = float(run.callback_metrics["val_loss"])
    after = run.validate(module, DataLoader(data(24), batch_size(name)), verbose=False)[0]["val_loss"]
    predictions: Any = module.eval()(data(8)[:][0]) if name != "fsdp" else torch.zeros(1)
    return [inside, float(after), float(predictions.sum())]


def caught(folder: Path) -> str:
    """What every rank sees of a checkpoint that is not there; then all train."""
    run = trainer(folder, "fsdp")
    try:
        run.fit(Net(), DataLoader(data(16), 4), ckpt_path=folder / "nothing.ckpt")
    except FileNotFoundError as error:
        trainer(folder, "fsdp").fit(Net(), DataLoader(data(16), 4))
        return str(error)
    return "no error"


class MadeLate(Net):
    """Its layers are made on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            with torch.device("meta"):
                self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def made_late(folder: Path, name: str) -> list[dict[str, Tensor]]:
    """Weights after training, and those that are loaded from the checkpoint."""
    L.seed_everything(2, verbose=False)
    module, run = MadeLate(), trainer(folder, name)
    run.fit(module, DataLoader(data(64), batch_size(name)))
    run.save_checkpoint(folder / f"{name}.ckpt")
    loaded = MadeLate.load_from_checkpoint(folder / f"{name}.ckpt")
    return [whole(module), whole(loaded)]


class Scaled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def scalar(folder: Path) -> str:
    """What is said of a parameter that cannot be divided."""
    try:
        trainer(folder, "fsdp").fit(Scaled(), DataLoader(data(16), 4))
    except MisconfigurationException as error:
        return str(error)
    return "no error"


def colwise_alone(folder: Path) -> str:
    """What is said of a plan whose outputs nobody takes."""
    strategy = ModelParallelStrategy(1, 2, parallelize={"net.0": "colwise"})
    run = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_progress_bar=False)
    try:
        run.fit(Net(), DataLoader(data(16), 4))
    except RuntimeError as error:
        return str(error)
    return "no error"
