"""What callbacks that change weights do for a reader of handwritten digits: `python examples/batteries.py`.

Each function trains small models and returns figures; the script prints them. It takes about a minute.
"""

import tempfile
from pathlib import Path

import torch
from digits import Digits, Reader
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, Trainer, seed_everything
from fulmen.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    KnowledgeDistillation,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)


class BadlyLabelled(Digits):
    """400 digits to train on, of which two fifths have a random label."""

    def train_dataloader(self) -> DataLoader:
        pictures, labels = self.train[:400]
        draws = torch.Generator().manual_seed(3)
        is_wrong = torch.rand(len(labels), generator=draws) < 0.4
        noise = torch.randint(10, labels.shape, generator=draws)
        return DataLoader(TensorDataset(pictures, torch.where(is_wrong, noise, labels)), batch_size=40, shuffle=True)


class TwoParts(Reader):
    """A reader with a backbone and a head."""

    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__(width, lr)
        self.backbone, self.head = self.net[:-1], self.net[-1]
        del self.net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.backbone(pictures))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=self.hparams.lr)


class Constant(Reader):
    """A reader whose learning rate stays large, so that its weights go on jumping about."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def train(model: Reader, *callbacks: Callback, data: Digits | None = None, seed: int = 1, **settings) -> Trainer:
    seed_everything(seed)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if not any(isinstance(each, ModelCheckpoint) for each in callbacks):
        quiet["enable_checkpointing"] = False
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = Trainer(**quiet, **{"max_epochs": 10, **settings}, callbacks=list(callbacks), log_every_n_steps=1)
    trainer.fit(model, datamodule=data or Digits(), ckpt_path=ckpt_path)
    return trainer


def test_accuracy(trainer: Trainer, model: Reader) -> float:
    [result] = trainer.test(model, datamodule=Digits(), verbose=False)
    return result["test_acc"]


def make(kind: type[Reader], seed: int = 1, **settings) -> Reader:
    seed_everything(seed)
    return kind(**settings)


def prune(folder: Path) -> dict[str, float]:
    """Prune half of the weights in the sixth of ten epochs, and look into the file."""
    model = make(Reader, width=8)
    weights = [(module, "weight") for module in model.net if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    pruning = ModelPruning("l1_unstructured", weights, amount=lambda epoch: 0.5 if epoch == 5 else 0.0,
                           use_lottery_ticket_hypothesis=False)  # fmt: skip
    checkpoint = ModelCheckpoint(folder / "pruned")
    trainer = train(model, pruning, checkpoint)
    state = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    names = [name for name, value in state.items() if name.endswith("weight") and value.ndim > 1]
    zeros = torch.cat([state[name].flatten() for name in names]) == 0
    dense = make(Reader, width=8)
    return {
        "share of zeros in the file": float(zeros.float().mean()),
        "test accuracy, pruned": test_accuracy(trainer, Reader.load_from_checkpoint(checkpoint.best_model_path)),
        "test accuracy, dense": test_accuracy(train(dense), dense),
    }


def average(folder: Path) -> dict[str, float]:
    """Train with an average that follows, interrupt that at half time, and resume."""
    whole, resumed, alone = (make(Constant, seed, width=8) for seed in (1, 2, 1))
    checkpoint = ModelCheckpoint(folder / "ema", every_n_train_steps=70, save_top_k=-1)  # in the fourth epoch
    trainer = train(whole, EMAWeightAveraging(decay=0.97), checkpoint)
    path = min((folder / "ema").glob("*.ckpt"), key=lambda each: each.stat().st_mtime)
    train(resumed, EMAWeightAveraging(decay=0.97), ModelCheckpoint(folder / "again"), ckpt_path=path)
    differing = sum(int((a != b).sum()) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    return {
        "numbers that differ after a resume": float(differing),
        "test accuracy, average": test_accuracy(trainer, whole),
        "test accuracy, last weights": test_accuracy(train(alone), alone),
    }


def average_at_the_end(folder: Path) -> dict[str, float]:
    """Average the weights of the last five of ten epochs."""
    averaged, alone = (make(Constant, width=8) for _ in range(2))
    trainer = train(averaged, StochasticWeightAveraging(0.05, swa_epoch_start=0.5, annealing_epochs=2))
    return {
        "test accuracy, average": test_accuracy(trainer, averaged),
        "test accuracy, last weights": test_accuracy(train(alone), alone),
    }


def distill(folder: Path) -> dict[str, float]:
    """Let a small student learn from bad labels, alone and with a teacher that had good ones; means of three runs."""
    teacher = make(Reader)
    figures = {"test accuracy, teacher": test_accuracy(train(teacher), teacher)}
    for name, alpha in (("alone", 0.0), ("distilled", 0.9)):
        accuracies = []
        for seed in range(3):
            student = make(Reader, seed, width=8, lr=1e-2)
            callback = KnowledgeDistillation(teacher, temperature=2.0, alpha=alpha)
            trainer = train(student, callback, data=BadlyLabelled(), seed=seed, max_epochs=15)
            accuracies.append(test_accuracy(trainer, student))
        figures[f"test accuracy, {name}"] = sum(accuracies) / len(accuracies)
    return figures


class Watch(Callback):
    """Notes by epoch whether the backbone has changed, and its learning rate as a share of the head's."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.changed: list[bool] = []
        self.ratios: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Reader) -> None:
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.ratios.append(rates[-1] / rates[0] if len(rates) > 1 else 0.0)
        if self.first is None:
            self.first = pl_module.backbone[0].weight.detach().clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Reader) -> None:
        self.changed.append(not torch.equal(pl_module.backbone[0].weight, self.first))


def finetune(folder: Path) -> dict[str, float]:
    """Train the head alone for three epochs, then the backbone as well."""
    model, watch = make(TwoParts, width=8), Watch()
    trainer = train(model, BackboneFinetuning(unfreeze_backbone_at_epoch=3), watch, max_epochs=8)
    return {
        "first epoch in which the backbone changes": float(watch.changed.index(True)),
        **{f"its learning rate in epoch {epoch}, as a share": ratio for epoch, ratio in enumerate(watch.ratios)},
        "test accuracy": test_accuracy(trainer, model),
    }


EXAMPLES = {
    "ModelPruning": prune,
    "EMAWeightAveraging": average,
    "StochasticWeightAveraging": average_at_the_end,
    "KnowledgeDistillation": distill,
    "BackboneFinetuning": finetune,
}


def main() -> dict[str, dict[str, float]]:
    """Run all and print their figures."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, example in EXAMPLES.items():
            figures[name] = example(Path(folder))
            print(name)
            for what, value in figures[name].items():
                print(f"    {what:<45} {value:.3f}")
    return figures


if __name__ == "__main__":
    main()
