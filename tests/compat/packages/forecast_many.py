"""neuralforecast: two models on a panel of series, each with a Trainer that the package makes."""

import logging

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import MLP, NHITS

from losses import Losses, report

PACKAGE = "neuralforecast"


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    time = np.arange(80)
    frame = pd.concat(
        pd.DataFrame({"unique_id": name, "ds": time, "y": np.sin(time / 6 + shift)}) for shift, name in enumerate("ab")
    )
    losses = Losses()
    settings = {
        "h": 4, "input_size": 12, "max_steps": 12, "random_seed": 7, "accelerator": "cpu", "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "callbacks": [losses], "val_check_steps": 6,
    }  # fmt: skip
    forecast = NeuralForecast(models=[MLP(hidden_size=16, num_layers=1, **settings), NHITS(**settings)], freq=1)
    forecast.fit(frame, val_size=4)
    predicted = forecast.predict()
    report(PACKAGE, losses.train, predicted[["MLP", "NHITS"]].to_numpy().sum())


if __name__ == "__main__":
    main()
