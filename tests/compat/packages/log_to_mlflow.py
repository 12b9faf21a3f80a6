"""mlflow: its autologger follows a run by patching `Trainer.fit`, and is read back."""

import tempfile
from pathlib import Path

import mlflow
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from losses import Losses, report

PACKAGE = "mlflow"


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main() -> None:
    seed_everything(3)
    x = torch.randn(64, 3)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    folder = Path(tempfile.mkdtemp())
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.create_experiment("compat", artifact_location=(folder / "files").as_uri())
    mlflow.set_experiment("compat")
    mlflow.pytorch.autolog(
        log_models=False, checkpoint=True, checkpoint_monitor="val_loss", checkpoint_save_freq="epoch"
    )
    losses = Losses()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[losses, EarlyStopping("val_loss", patience=5)],
    )  # fmt: skip
    with mlflow.start_run() as run:
        trainer.fit(Net(), DataLoader(data, 16, shuffle=True), DataLoader(data, 32))
    kept = mlflow.MlflowClient().get_run(run.info.run_id).data
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    assert len(history) == 3, history
    assert kept.params["optimizer_name"] == "Adam", kept.params
    report(PACKAGE, losses.train, kept.metrics["val_loss"])


if __name__ == "__main__":
    main()
