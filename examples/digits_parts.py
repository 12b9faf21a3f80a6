"""Parts of `digits.py` that have nothing to do with the Trainer."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import matplotlib as mpl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

mpl.use("Agg")  # write files; needs no display

import matplotlib.pyplot as plt


def convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Return a 3 x 3 convolution that keeps the size, normalization and rectifier."""
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


def jiggle(pictures: Tensor) -> Tensor:
    """Turn by up to 12 degrees, scale by up to 10 %, shift by up to a pixel."""
    angle, scale, shift = torch.rand(4, len(pictures)).mul(2).sub(1).split([1, 1, 2])
    angle, scale = angle[0] * math.radians(12), 1 + 0.1 * scale[0]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrices = torch.stack([cos, -sin, shift[0] / 4, sin, cos, shift[1] / 4], dim=1)
    grid = F.affine_grid(matrices.view(-1, 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def plot_curves(metrics_csv: Path, target: Path) -> None:
    """Write the losses and the accuracy over the epochs as a PNG file."""
    with metrics_csv.open() as lines:
        rows = list(csv.DictReader(lines))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, names in zip(axes, (["train_loss", "val_loss"], ["val_acc"]), strict=True):
        for name in names:
            points = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(target, dpi=120)
    plt.close(figure)


def plot_confusion(digits: Tensor, guesses: Tensor, target: Path) -> None:
    """Write how often each digit was read as which as a PNG file."""
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((digits, guesses), torch.tensor(1), accumulate=True)
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.imshow(counts, cmap="Blues")
    for row, column in counts.nonzero().tolist():
        count = int(counts[row, column])
        axis.text(column, row, str(count), ha="center", va="center", color="white" if count > 20 else "black")
    axis.set(xlabel="read as", ylabel="digit", xticks=range(10), yticks=range(10))
    figure.savefig(target, dpi=120)
    plt.close(figure)
