"""Pipeline parallelism with a Fabric: each process has some of the layers, and batches flow through them in parts.

`torch.distributed.pipelining` runs forward and backward passes of all parts in an order that keeps the processes busy,
so it takes the place of a `training_step`; the Fabric starts the processes and loads the data.

    python examples/pipeline.py            two processes on CPUs; the last line compares with one process
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Fabric

NUM_STAGES, NUM_PARTS = 2, 4
MAX_NORM = 1.0


def make_layers() -> list[nn.Sequential]:
    """Return the layers of all stages; each process makes them alike, and keeps its own."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()),
        nn.Sequential(nn.Linear(64, 4)),
    ]


def make_loader() -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of a function to be learned."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1920, 16, generator=generator)
    return DataLoader(
        TensorDataset(x, torch.stack([x.sin().sum(1), x[:, 0] * x[:, 1], x[:, 2], x.abs().mean(1)], 1)), 32
    )


def clip(stage: nn.Module) -> None:
    """Clip by the norm of all gradients, of which each process has some."""
    parameters = list(stage.parameters())
    total = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None]).square()
    dist.all_reduce(total)
    torch.nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, total.sqrt())


def train_in_stages(fabric: Fabric) -> tuple[nn.Module, list[float]]:
    """Return this process' stage and, on the last one, the losses."""
    rank = fabric.global_rank
    stage = make_layers()[rank].to(fabric.device)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=0.01)
    place = PipelineStage(stage, rank, NUM_STAGES, fabric.device)
    schedule = Schedule1F1B(place, n_microbatches=NUM_PARTS, loss_fn=nn.functional.mse_loss)
    losses = []
    for x, y in fabric.setup_dataloaders(make_loader(), use_distributed_sampler=False):  # all stages see all batches
        if rank == 0:
            schedule.step(x)
        else:
            of_parts: list[Tensor] = []
            schedule.step(target=y, losses=of_parts)
            losses.append(torch.stack(of_parts).mean().item())
        clip(stage)
        optimizer.step()
        optimizer.zero_grad()
    return stage, losses


def train_whole() -> list[float]:
    """Return the losses of one process that has all layers."""
    model = nn.Sequential(*make_layers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for x, y in make_loader():
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    fabric = Fabric(accelerator="cpu", devices=NUM_STAGES, strategy="ddp")  # no module is set up: nothing is wrapped
    fabric.launch()
    _, losses = train_in_stages(fabric)
    if fabric.global_rank == NUM_STAGES - 1:
        expected = train_whole()
        difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        print(f"difference to one process: at most {difference:.1e}")


if __name__ == "__main__":
    main()
