"""darts: a recurrent network that forecasts a series with quantiles, with early stopping."""

import warnings

import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel
from darts.utils.likelihood_models.torch import QuantileRegression
from pytorch_lightning.callbacks import EarlyStopping

from losses import Losses, report

PACKAGE = "darts"


def main() -> None:
    warnings.simplefilter("ignore")
    steps = np.arange(240, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 0.05, len(steps)).astype(np.float32)
    series = TimeSeries.from_values(np.sin(steps / 6) + noise)
    train, val = series[:180], series[160:]
    model = BlockRNNModel(
        input_chunk_length=16, output_chunk_length=4, model="LSTM", hidden_dim=12, batch_size=32, n_epochs=4,
        dropout=0.1, likelihood=QuantileRegression([0.1, 0.5, 0.9]), random_state=3, optimizer_kwargs={"lr": 0.01},
        pl_trainer_kwargs={
            "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [Losses(), EarlyStopping("val_loss", patience=3)],
        },
    )  # fmt: skip
    model.fit(train, val_series=val)
    forecast = model.predict(4, series=train, num_samples=20)
    assert forecast.values().shape == (4, 1)
    report(PACKAGE, Losses.train, float(forecast.all_values().mean()))


if __name__ == "__main__":
    main()
