"""litgpt: its pre-training program, on Fabric, with accumulation, clipping, checkpoints and validation."""

import csv
import os
import sys
import warnings
from pathlib import Path

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # the program compiles its model, which takes longer than training here

import torch
from litgpt.__main__ import main as litgpt
from litgpt.data import DataModule
from torch.utils.data import DataLoader, Dataset

from losses import report

PACKAGE = "litgpt"
ARGUMENTS = """
    pretrain pythia-14m
    --out_dir out
    --precision 32-true
    --devices 1
    --logger_name csv
    --data pretrain_language.Sequences
    --model_config.name tiny
    --model_config.block_size 32
    --model_config.vocab_size 64
    --model_config.padded_vocab_size 64
    --model_config.n_layer 2
    --model_config.n_head 4
    --model_config.n_embd 32
    --train.save_interval 8
    --train.log_interval 1
    --train.global_batch_size 8
    --train.micro_batch_size 4
    --train.max_tokens 6144
    --train.max_norm 1.0
    --train.min_lr 1e-4
    --train.lr_warmup_steps 2
    --train.tie_embeddings true
    --eval.interval 4
    --eval.max_iters 2
    --optimizer {"class_path":"torch.optim.AdamW","init_args":{"lr":3e-3}}
"""


class Counting(Dataset):
    """Sequences that go up, or down, from a random token."""

    def __init__(self, num_sequences: int, length: int, seed: int) -> None:
        first = torch.randint(0, 64, (num_sequences, 1), generator=torch.Generator().manual_seed(seed))
        step = 1 - 2 * (first % 2)
        self.sequences = (first + step * torch.arange(length)) % 64

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, idx: int) -> torch.Tensor:
        return self.sequences[idx]


class Sequences(DataModule):
    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None, **kwargs) -> None:
        self.batch_size, self.length = batch_size, max_seq_length + 1

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Counting(96, self.length, seed=0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Counting(16, self.length, seed=1), batch_size=self.batch_size)


def main() -> None:
    warnings.simplefilter("ignore")
    sys.argv[1:] = ARGUMENTS.split()
    litgpt()
    rows = list(csv.DictReader(Path("out/logs/csv/version_0/metrics.csv").read_text().splitlines()))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    last = [float(row["val_loss"]) for row in rows if row["val_loss"]][-1]
    assert Path("out/step-00000008/lit_model.pth").is_file()
    report(PACKAGE, losses, last)


if __name__ == "__main__":
    main()
