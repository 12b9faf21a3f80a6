"""Train with Hydra for the configuration and the LightningCLI for the objects, also on several processes.

    python examples/hydra_train.py trainer.max_steps=4 model.out_dim=5
    python examples/hydra_train.py trainer.devices=2 trainer.strategy=ddp_spawn
    python examples/hydra_train.py trainer.devices=2 trainer.strategy=ddp
    python examples/hydra_train.py -m model.out_dim=5,6     # a sweep, with any of these

Hydra composes the configuration and the CLI checks it against the signatures and makes the objects. The processes of
`ddp_spawn` get the objects, so nobody reads the command line or runs this function again. With `strategy=ddp` each
process runs the script again, in the folder that Hydra made for the first: a run has one folder, and so has a sweep.

Needs: pip install 'fulmen[cli]' hydra-core
"""

from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fulmen import LightningDataModule
from fulmen.cli import LightningCLI
from fulmen.demos.boring_classes import DemoModel, RandomDataset


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(RandomDataset(32, 64))


@dataclass
class Config:
    """What the command line can change; more can be added to each part with `+trainer.precision=bf16-mixed`."""

    seed_everything: int = 1
    trainer: dict[str, Any] = field(
        default_factory=lambda: {
            "max_steps": 4,
            "devices": 1,
            "strategy": "auto",
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    )
    model: dict[str, Any] = field(default_factory=lambda: {"out_dim": 3})


ConfigStore.instance().store(name="config", node=Config)


@hydra.main(version_base=None, config_name="config")
def train(config: Any) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    cli = LightningCLI(DemoModel, Data, args=settings, run=False, parser_kwargs={}, save_config_callback=None)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if cli.trainer.is_global_zero:
        print(f"out_dim={cli.model.l1.out_features}")
        print(f"{cli.trainer.world_size} processes, {cli.trainer.global_step} steps")


if __name__ == "__main__":
    train()
