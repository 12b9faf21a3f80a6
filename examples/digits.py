"""Train a small CNN to read handwritten digits: `make demo`, or `python examples/digits.py --help`.

1 797 pictures of 8 x 8 pixels come with scikit-learn, so nothing is downloaded. Training takes about ten seconds on two
CPU cores; the best epoch by validation is tested on pictures that training never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_parts import convolution, jiggle, plot_confusion, plot_curves
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer, seed_everything
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, WarmupLR
from fulmen.loggers import CSVLogger, TensorBoardLogger


class Digits(LightningDataModule):
    """1 257 pictures to train on, 180 to validate, 360 to test."""

    def setup(self, stage: str) -> None:
        digits = load_digits()
        pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(42))
        data = TensorDataset(pictures[order], torch.tensor(digits.target)[order])
        self.test = TensorDataset(*data[:360])
        self.val = TensorDataset(*data[360:540])
        self.train = TensorDataset(*data[540:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=180)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=360)


class Reader(LightningModule):
    """Four convolutions and a linear layer."""

    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *convolution(1, width),
            *convolution(width, width),
            nn.MaxPool2d(2),
            *convolution(width, 2 * width),
            *convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * width, 10),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(pictures)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pictures, digits = batch
        loss = F.cross_entropy(self(jiggle(pictures)), digits, label_smoothing=0.05)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str = "val") -> None:
        pictures, digits = batch
        scores = self(pictures)
        self.log(f"{stage}_loss", F.cross_entropy(scores, digits))
        self.log(f"{stage}_acc", (scores.argmax(1) == digits).float().mean(), prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN to read handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=Path("demo_output"), help="where everything is written")
    arguments = parser.parse_args()
    folder: Path = arguments.folder

    seed_everything(7)
    data, model = Digits(), Reader()
    csv_logger = CSVLogger(folder, name="csv")
    best = ModelCheckpoint(folder / "checkpoints", monitor="val_acc", mode="max", filename="{epoch}-{val_acc:.3f}")
    trainer = Trainer(
        max_epochs=arguments.max_epochs,
        logger=[csv_logger, TensorBoardLogger(folder, name="tensorboard")],
        callbacks=[WarmupLR(40), EarlyStopping("val_acc", mode="max", patience=10), best],
        default_root_dir=folder,
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)
    [result] = trainer.test(model, datamodule=data, ckpt_path="best")
    metrics = Path(csv_logger.log_dir) / "metrics.csv"
    plot_curves(metrics, folder / "curves.png")
    pictures, digits = data.test.tensors
    plot_confusion(digits, model.eval()(pictures).argmax(1), folder / "confusion.png")
    print(f"\ntest accuracy of the best epoch: {result['test_acc']:.1%}")
    print(f"best checkpoint:   {best.best_model_path}\nmetrics as CSV:    {metrics}")
    print(f"learning curves:   {folder / 'curves.png'}\nconfusion matrix:  {folder / 'confusion.png'}")
    print(f"curves, live:      tensorboard --logdir {folder / 'tensorboard'}")


if __name__ == "__main__":
    main()
