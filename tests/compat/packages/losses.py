"""What the programs of this folder share: a callback that keeps the losses, and the line they print at the end."""

import json
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import Callback


class Losses(Callback):
    """Keeps the loss of each training batch, for all copies that a package makes of it."""

    train: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.train.append(float(loss))


def report(package: str, losses: list[float], last: Any) -> None:
    """Print what `run.py` compares.

    Args:
        package: Distribution that was tried.
        losses: Loss of each training batch.
        last: The last value of what the program trains for.
    """
    last = float(last.detach() if isinstance(last, torch.Tensor) else last)
    result = {"package": package, "version": version(package), "losses": losses, "last": last}
    print("RESULT " + json.dumps(result), flush=True)
