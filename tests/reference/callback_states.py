"""Fit with callbacks that keep a state, and go on from a checkpoint of its middle; print the weights as JSON.

`python callback_states.py PACKAGE fit FOLDER` saves FOLDER/CASE.ckpt after the second of four epochs;
`python callback_states.py PACKAGE resume FOLDER` goes on from there.
"""

import importlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

package, task, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
pl: Any = importlib.import_module(package)
cb: Any = importlib.import_module(f"{package}.callbacks")
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh())
        self.head = torch.nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.backbone(batch[0])).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.head(self.backbone(batch[0])).pow(2).mean())

    def configure_optimizers(self):
        trained = [each for each in self.parameters() if each.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class SavesInTheMiddle(cb.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


CASES: dict[str, Any] = {
    "ema": lambda: [cb.EMAWeightAveraging(decay=0.8)],
    "swa": lambda: [cb.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=2)],
    "finetuning": lambda: [cb.BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)],
    "pruning": lambda: [cb.ModelPruning("l1_unstructured", amount=0.3, verbose=0)],
    "stopping": lambda: [cb.EarlyStopping("val_loss", patience=1, min_delta=0.01)],
    "saving": lambda: [cb.ModelCheckpoint(folder / f"best-{task}", "{epoch}", monitor="val_loss", save_top_k=2)],
}


def seen(callback: Any) -> list[Any]:
    """What a callback remembers that decides what it does next."""
    names = ("best_score", "wait_count", "stopped_epoch", "best_model_score", "current_score")
    values = [getattr(callback, name, None) for name in names]
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]


def train(case: str) -> dict[str, Any]:
    torch.manual_seed(1)
    net, callbacks = Net(), CASES[case]()
    saver = [SavesInTheMiddle(folder / f"{case}.ckpt")] if task == "fit" else []
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=case == "saving", default_root_dir=folder, num_sanity_val_steps=0,
        callbacks=[*callbacks, *saver],
    )  # fmt: skip
    samples = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(
        net,
        DataLoader(TensorDataset(samples), batch_size=4),
        DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2),
        ckpt_path=folder / f"{case}.ckpt" if task == "resume" else None,
    )
    weights = [value.flatten() for _, value in sorted(net.state_dict().items())]
    return {"steps": trainer.global_step, "weights": torch.cat(weights).tolist(), "seen": seen(callbacks[0])}


def outcome(case: str) -> Any:
    try:
        return train(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


sys.stdout.write(json.dumps({case: outcome(case) for case in sys.argv[4:] or CASES}) + "\n")
