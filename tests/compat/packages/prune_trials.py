"""optuna-integration: its callback prunes trials of a study by what the Trainer logs."""

import logging

import optuna
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from optuna_integration import PyTorchLightningPruningCallback
from torch.utils.data import DataLoader, TensorDataset

from losses import Losses, report

PACKAGE = "optuna-integration"


class Net(LightningModule):
    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self.layers(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def main() -> None:
    optuna.logging.set_verbosity(logging.WARNING)
    x = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True).sin())
    losses = Losses()

    def objective(trial: optuna.Trial) -> float:
        seed_everything(trial.number)
        model = Net(trial.suggest_int("width", 2, 16), trial.suggest_float("lr", 1e-4, 0.5, log=True))
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[losses, PyTorchLightningPruningCallback(trial, monitor="val_loss")],
        )  # fmt: skip
        trainer.fit(model, DataLoader(data, 16, shuffle=True), DataLoader(data, 32))
        return float(trainer.callback_metrics["val_loss"])

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=1), pruner=optuna.pruners.MedianPruner(n_startup_trials=2)
    )
    study.optimize(objective, n_trials=8)
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert pruned, "no trial was pruned"
    report(PACKAGE, losses.train, study.best_value)


if __name__ == "__main__":
    main()
