"""pytorch-tabular: a classifier with category embeddings, trained by its own Trainer set-up."""

import tempfile

import numpy as np
import pandas as pd
from lightning.pytorch import seed_everything
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig

from losses import Losses, report

PACKAGE = "pytorch_tabular"


def main() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=200), "b": rng.normal(size=200), "c": rng.choice(["x", "y", "z"], 200)})
    frame["target"] = ((frame.a + (frame.c == "x")) > 0.3).astype(int)
    seed_everything(5)
    folder = tempfile.mkdtemp()
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=["a", "b"], categorical_cols=["c"]),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="16-8", learning_rate=0.01),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=32, max_epochs=3, accelerator="cpu", progress_bar="none", checkpoints_path=folder, seed=5,
            trainer_kwargs={"enable_model_summary": False, "default_root_dir": folder},
        ),
        verbose=False,
    )  # fmt: skip
    losses = Losses()
    model.fit(train=frame[:150], validation=frame[150:], callbacks=[losses])
    result = model.evaluate(frame[150:], verbose=False)
    report(PACKAGE, losses.train, result[0]["test_loss"])


if __name__ == "__main__":
    main()
