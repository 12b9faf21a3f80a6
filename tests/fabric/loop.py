"""A training loop for any number of processes; run as a script it prints its result. `python loop.py WAY [DEVICES]`."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

from fulmen import Fabric

DataLoader: Any = torch.utils.data.DataLoader
WINDOW = 2
GLOBAL_BATCH_SIZE = 8


def train(fabric: Fabric) -> list[float]:
    """Train with accumulation and clipping; return mean losses over all processes, and all weights."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    samples = list(torch.randn(32, 4, generator=torch.Generator().manual_seed(1)))
    order = torch.Generator().manual_seed(2)
    loader = DataLoader(samples, batch_size=GLOBAL_BATCH_SIZE // fabric.world_size, shuffle=True, generator=order)
    batches = fabric.setup_dataloaders(loader)
    losses = []
    for _ in range(2):
        for idx, batch in enumerate(batches):
            is_stepping = (idx + 1) % WINDOW == 0
            with fabric.no_backward_sync(model, enabled=not is_stepping):
                loss = model(batch).square().mean()
                fabric.backward(loss / WINDOW)
            losses.append(fabric.all_reduce(loss.detach()).item())
            if is_stepping:
                fabric.clip_gradients(model, optimizer, max_norm=0.1)
                optimizer.step()
                optimizer.zero_grad()
    return [*losses, *(value for weight in model.parameters() for value in weight.flatten().tolist())]


def main(way: str, devices: int = 2) -> None:
    """Launch the loop in one of the ways there are."""
    torch.set_num_threads(1)
    if way == "command":
        fabric = Fabric()
        result = train(fabric)
    else:
        strategy = {"script": "ddp", "function": "ddp", "one": "auto"}.get(way, way)
        fabric = Fabric(accelerator="cpu", devices=devices, strategy=strategy)
        if way == "script":
            fabric.launch()
            result = train(fabric)
        else:
            result = fabric.launch(train)
    if fabric.is_global_zero:
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
