"""salt-ml: its command line, a `LightningCLI` with links and files, trains and tests a model of particle jets."""

import os
import warnings
from pathlib import Path

os.environ["COMET_LOGGING_CONSOLE"] = "CRITICAL"

from salt.main import main as salt
from salt.utils import inputs

from losses import Losses, report

PACKAGE = "salt-ml"
ARGUMENTS = """
    fit
    --config {config}
    --force
    --data.norm_dict norm.yaml
    --data.class_dict classes.yaml
    --data.train_file jets.h5
    --data.val_file jets.h5
    --data.num_train 200
    --data.num_val 60
    --data.batch_size 20
    --data.num_workers 0
    --data.persistent_workers false
    --trainer.max_epochs 2
    --trainer.accelerator cpu
    --trainer.devices 1
    --trainer.default_root_dir runs
    --trainer.logger.init_args.online false
    --trainer.callbacks+=losses.Losses
"""


def main() -> None:
    warnings.simplefilter("ignore")
    inputs.write_dummy_norm_dict(Path("norm.yaml"), Path("classes.yaml"))
    inputs.write_dummy_file(Path("jets.h5"), Path("norm.yaml"))
    config = Path(inputs.__file__).parents[1] / "configs" / "regression.yaml"
    salt(ARGUMENTS.format(config=config).split())
    report(PACKAGE, Losses.train, Losses.train[-1])


if __name__ == "__main__":
    main()
