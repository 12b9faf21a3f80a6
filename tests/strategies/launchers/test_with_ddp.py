from __future__ import annotations

import pytest

from tests.distributed_harness import run_script

SCRIPT = """
    import os, signal, sys
    import torch
    from fulmen import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    HOW, WHO, STRATEGY = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def setup(self, stage):
            self.fault("setup")

        def training_step(self, batch, batch_idx):
            self.fault("train", batch_idx)
            return self.layer(batch[0]).sum()

        def validation_step(self, batch, batch_idx):
            self.fault("validate", batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def fault(self, where, batch_idx=3):
            if self.trainer.global_rank == WHO and batch_idx == 3 and HOW.startswith(where):
                if HOW.endswith("killed"):
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("boom in " + where)

    def main():
        loader = DataLoader(TensorDataset(torch.ones(16, 2)), batch_size=1)
        trainer = Trainer(accelerator="cpu", devices=2, strategy=STRATEGY, max_epochs=2, logger=False,
                          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                          num_sanity_val_steps=0)
        trainer.fit(Model(), loader, loader)

    if __name__ == "__main__":
        main()
"""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "who", "strategy", "words"),
    [
        ("train", 1, "ddp", "ValueError: boom in train"),
        ("validate", 0, "ddp", "ValueError: boom in validate"),
        ("setup", 1, "ddp_fork", "ValueError: boom in setup"),
        ("train_killed", 1, "ddp", "SIGKILL"),
        ("train_killed", 0, "ddp_spawn", "SIGKILL"),
    ],
)
def test_fault_in_a_run_of_the_trainer_ends_it(tmp_path, how, who, strategy, words):
    ended = run_script(SCRIPT, how, str(who), strategy, cwd=tmp_path, timeout=110)

    assert ended.returncode == 1
    assert f"Rank {who}" in ended.stderr or "Traceback" in ended.stderr
    assert words in "\n".join(ended.stderr.rstrip().splitlines()[-3:])
