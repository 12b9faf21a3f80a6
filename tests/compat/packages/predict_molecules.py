"""chemprop: a message passing network on molecules, trained and tested."""

import warnings

import numpy as np
from chemprop import data, featurizers, models, nn
from lightning import pytorch as pl

from losses import Losses, report

PACKAGE = "chemprop"
SMILES = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCCl", "CNC", "C1CCCCC1", "CC=O", "CCOC", "OCCO", "CC#N"] * 3


def main() -> None:
    warnings.simplefilter("ignore")
    pl.seed_everything(11)
    points = [data.MoleculeDatapoint.from_smi(smiles, np.array([float(len(smiles))])) for smiles in SMILES]
    dataset = data.MoleculeDataset(points, featurizers.SimpleMoleculeMolGraphFeaturizer())
    scaler = dataset.normalize_targets()
    output = nn.UnscaleTransform.from_standard_scaler(scaler)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=32), nn.MeanAggregation(), nn.RegressionFFN(input_dim=32, output_transform=output)
    )
    loader = data.build_dataloader(dataset, batch_size=8, num_workers=0, seed=2)
    losses = Losses()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[losses],
    )  # fmt: skip
    trainer.fit(model, loader, data.build_dataloader(dataset, batch_size=8, num_workers=0, shuffle=False))
    last = trainer.callback_metrics["val_loss"]
    predictions = trainer.predict(model, data.build_dataloader(dataset, batch_size=8, num_workers=0, shuffle=False))
    assert len(predictions) == 5
    report(PACKAGE, losses.train, last)


if __name__ == "__main__":
    main()
