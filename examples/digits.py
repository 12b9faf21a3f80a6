"""Train a small CNN to read handwritten digits: `make demo`, or `python examples/digits.py --help`.

The 1 797 pictures of 8 x 8 pixels come with scikit-learn. The best epoch by validation is tested on unseen pictures.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer, seed_everything
from fulmen.callbacks import EarlyStopping, ModelCheckpoint, WarmupLR
from fulmen.loggers import CSVLogger, TensorBoardLogger


class Digits(LightningDataModule):
    def setup(self, stage: str) -> None:
        digits = load_digits()
        pictures = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(42))
        data = TensorDataset(pictures[order], torch.tensor(digits.target)[order])
        self.test, self.val, self.train = (TensorDataset(*data[a:b]) for a, b in ((0, 360), (360, 540), (540, None)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=180)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=360)


class Reader(LightningModule):
    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.net = nn.Sequential()
        for inputs, outputs in ((1, width), (width, width), (width, 2 * width), (2 * width, 2 * width)):
            self.net.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            self.net.extend([nn.BatchNorm2d(outputs), nn.ReLU()] + [nn.MaxPool2d(2)] * (inputs == outputs))
        self.net.extend([nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * width, 10)])

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(pictures)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(jiggle(batch[0])), batch[1], label_smoothing=0.05)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str = "val") -> None:
        pictures, digits = batch
        scores = self(pictures)
        accuracy = (scores.argmax(1) == digits).float().mean()
        self.log_dict({f"{stage}_loss": F.cross_entropy(scores, digits), f"{stage}_acc": accuracy}, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def jiggle(pictures: Tensor) -> Tensor:
    """Turn each picture by up to 0.2 radians, and shift it by up to a pixel."""
    turn, right, down = torch.rand(3, len(pictures)).sub(0.5).mul(torch.tensor([[0.4], [0.5], [0.5]]))
    matrices = torch.stack([turn.cos(), -turn.sin(), right, turn.sin(), turn.cos(), down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def draw(metrics: str, digits: Tensor, guesses: Tensor, folder: Path) -> None:
    """Write learning curves and confusion matrix as PNG files."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    rows = list(csv.DictReader(Path(metrics).read_text().splitlines()))
    for name, axis in (("train_loss", axes[0]), ("val_loss", axes[0]), ("val_acc", axes[1])):
        axis.plot([float(row[name]) for row in rows if row[name]], marker=".", label=name)
        axis.legend(title="by epoch")
    figure.savefig(folder / "curves.png", dpi=120)
    ConfusionMatrixDisplay.from_predictions(digits, guesses, cmap="Blues").figure_.savefig(folder / "confusion.png")


def main(max_epochs: int, folder: Path) -> None:
    seed_everything(7)
    data, model, csv_logger = Digits(), Reader(), CSVLogger(folder, name="csv")
    best = ModelCheckpoint(folder / "checkpoints", monitor="val_acc", mode="max", filename="{epoch}-{val_acc:.3f}")
    trainer = Trainer(
        max_epochs=max_epochs,
        logger=[csv_logger, TensorBoardLogger(folder, name="tensorboard")],
        callbacks=[WarmupLR(40), EarlyStopping("val_acc", mode="max", patience=10), best],
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)
    [result] = trainer.test(model, datamodule=data, ckpt_path="best")

    (pictures, digits), metrics = data.test.tensors, f"{csv_logger.log_dir}/metrics.csv"
    draw(metrics, digits, model.eval()(pictures).argmax(1), folder)
    print(f"\ntest accuracy of the best epoch: {result['test_acc']:.1%}")
    print(f"best checkpoint:   {best.best_model_path}\nmetrics as CSV:    {metrics}")
    print(f"learning curves:   {folder}/curves.png\nconfusion matrix:  {folder}/confusion.png")
    print(f"curves, live:      tensorboard --logdir {folder}/tensorboard")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a small CNN to read handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=25)
    parser.add_argument("--folder", type=Path, default=Path("demo_output"), help="where everything is written")
    main(**vars(parser.parse_args()))
