"""The loops one would write by hand: what each case is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import IN_FEATURES, Batches, Setup

__all__ = [
    "accumulating",
    "clipping",
    "evaluating",
    "model_and_optimizer",
    "one_batch",
    "predicting",
    "scheduling",
    "training",
    "training_unwrapped",
]

LEARNING_RATE = 1e-6
WINDOW = 4
CLIP_NORM = 1.0


def model_and_optimizer(device: str) -> tuple[nn.Linear, torch.optim.SGD]:
    """Return the tiny model, and what trains it."""
    model = nn.Linear(IN_FEATURES, 2, device=device)
    return model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def training(setup: Setup) -> float:
    """Forward, backward, step."""
    return setup.per_step(lambda batches: train(batches, setup.device))


def train(batches: Iterable[Tensor], device: str) -> None:
    """Train on all batches once."""
    model, optimizer = model_and_optimizer(device)
    for batch in batches:
        loss = model(batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def training_unwrapped(setup: Setup) -> float:
    """The same past torch's wrappers around `step` and `zero_grad`, which record for a profiler that is not there."""

    def use(batches: Batches) -> None:
        model, optimizer = model_and_optimizer(setup.device)
        parameters, step = list(model.parameters()), _unwrapped_step(optimizer)
        for batch in batches:
            loss = model(batch).sum()
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            step(optimizer)

    return setup.per_step(use)


def _unwrapped_step(optimizer: torch.optim.Optimizer) -> Any:
    step: Any = type(optimizer).step
    return getattr(step, "__wrapped__", step)


def accumulating(setup: Setup) -> float:
    """Step after every fourth batch."""

    def use(batches: Batches) -> None:
        model, optimizer = model_and_optimizer(setup.device)
        for batch_idx, batch in enumerate(batches):
            (model(batch).sum() / WINDOW).backward()
            if (batch_idx + 1) % WINDOW == 0:
                optimizer.step()
                optimizer.zero_grad()

    return setup.per_step(use)


def scheduling(setup: Setup) -> float:
    """Set the learning rate after each step."""

    def use(batches: Batches) -> None:
        model, optimizer = model_and_optimizer(setup.device)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100)
        for batch in batches:
            loss = model(batch).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()

    return setup.per_step(use)


def clipping(setup: Setup) -> float:
    """Clip the gradients' norm."""

    def use(batches: Batches) -> None:
        model, optimizer = model_and_optimizer(setup.device)
        for batch in batches:
            loss = model(batch).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()

    return setup.per_step(use)


def evaluating(setup: Setup) -> float:
    """Forward without gradients."""

    def use(batches: Batches) -> None:
        model = nn.Linear(IN_FEATURES, 2, device=setup.device).eval()
        with torch.inference_mode():
            for batch in batches:
                model(batch).sum()

    return setup.per_step(use)


def predicting(setup: Setup) -> float:
    """Forward without gradients, and keep the outputs on the CPU."""

    def use(batches: Batches) -> list[Tensor]:
        model = nn.Linear(IN_FEATURES, 2, device=setup.device).eval()
        with torch.inference_mode():
            return [model(batch).cpu() for batch in batches]

    return setup.per_step(use)


def one_batch(setup: Setup) -> float:
    """Make a model and train it on one batch."""
    clock = setup.new_clock()
    clock.start()
    train(setup.loader(1), setup.device)
    clock.stop()
    return clock.seconds
