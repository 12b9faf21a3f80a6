"""pytorch-forecasting: a temporal fusion transformer on two sine waves."""

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer, seed_everything
from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet

from losses import Losses, report

PACKAGE = "pytorch-forecasting"


def main() -> None:
    time = np.arange(60)
    waves = [np.sin(time / 5 + shift) + 0.1 * np.cos(3 * time) for shift in (0, 1)]
    frame = pd.DataFrame(
        {
            "time": np.tile(time, 2),
            "group": np.repeat(["a", "b"], len(time)),
            "value": np.concatenate(waves),
        }
    )
    training = TimeSeriesDataSet(
        frame[frame.time < 50],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
    )
    validation = TimeSeriesDataSet.from_dataset(training, frame, predict=True, stop_randomization=True)
    seed_everything(1)
    model = TemporalFusionTransformer.from_dataset(
        training,
        hidden_size=4,
        attention_head_size=1,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
        learning_rate=0.03,
    )
    losses = Losses()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=0.1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[losses],
    )  # fmt: skip
    trainer.fit(
        model,
        training.to_dataloader(train=True, batch_size=16),
        validation.to_dataloader(train=False, batch_size=16),
    )
    report(PACKAGE, losses.train, trainer.callback_metrics["val_loss"])


if __name__ == "__main__":
    main()
