"""Does it work here? A fit, a checkpoint there and back, two processes: for `fulmen doctor`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fulmen.utilities.command_line import say

__all__ = ["Outcome", "meet", "self_test", "take_part"]

_TIMEOUT_S = 60
_CONNECT_S = 30
_OF_A_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended.

    Attributes:
        test: What was tried.
        error: Why it failed; empty if it did not.
        what: What happened, if it worked.
        seconds: How long it took.
    """

    test: str
    error: str
    what: str
    seconds: float


@contextlib.contextmanager
def self_test() -> Iterator[Iterator[Outcome]]:
    """Start the two processes at once, so that they import torch beside this one, and try the rest meanwhile.

    Yields:
        How each test ended, as soon as it has.
    """
    process = _start()
    try:
        yield _outcomes(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _outcomes(process: subprocess.Popen[str]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="fulmen-doctor-") as folder, _quiet():
        state: dict[str, Any] = {}
        yield _tried("a fit", lambda: _fit(Path(folder), state))
        if "trainer" in state:
            yield _tried("a checkpoint", lambda: _round_trip(Path(folder), state))
    yield _tried("two processes", lambda: _wait_for(process))


def _tried(test: str, function: Callable[[], str]) -> Outcome:
    began = time.monotonic()
    error, what = "", ""
    try:
        what = function()
    except Exception as caught:  # whatever is wrong here is what the user wants to know
        error = f"{type(caught).__name__}: {caught}"
    return Outcome(test, error, what, time.monotonic() - began)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what a run says of itself, and leave the random state as it is."""
    from fulmen.utilities.seed import isolate_rng

    logger = logging.getLogger("fulmen")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with isolate_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- training


def _fit(folder: Path, state: dict[str, Any]) -> str:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from fulmen.trainer.trainer import Trainer

    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8)
    trainer = Trainer(
        accelerator="auto", devices=1, num_nodes=1, max_epochs=4, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = _regression()
    trainer.fit(model, loader)
    first, last = model.losses[0], model.losses[-1]
    if not last < first / 10:
        raise RuntimeError(f"the loss of a linear regression went from {first:.3g} to {last:.3g}, and should vanish")
    state.update(trainer=trainer, model=model)
    return f"{trainer.global_step} steps on {trainer.strategy.root_device}, loss {first:.3g} -> {last:.3g}"


def _regression() -> Any:
    import torch
    from torch import Tensor, nn

    from fulmen.core.module import LightningModule

    class Regression(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.losses: list[float] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    return Regression()


def _round_trip(folder: Path, state: dict[str, Any]) -> str:
    import torch

    path = folder / "doctor.ckpt"
    state["trainer"].save_checkpoint(path)
    saved = state["model"]
    loaded = type(saved).load_from_checkpoint(path, map_location="cpu")
    for name, value in saved.state_dict().items():
        if not torch.equal(loaded.state_dict()[name], value.cpu()):
            raise RuntimeError(f"the weight {name!r} came back changed")
    return f"saved, checksums compared, loaded: weights equal ({path.stat().st_size} bytes)"


# ---- two processes


def take_part(rank: int, port: int) -> None:
    """Add numbers over two processes; each of them runs this.

    Args:
        rank: 0 or 1.
        port: Where rank 0 listens.

    Raises:
        RuntimeError: The sum is wrong.
    """
    import torch
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=_CONNECT_S)
    )
    numbers = torch.full((1000,), float(rank + 1))
    distributed.all_reduce(numbers)
    if not bool((numbers == 3).all()):
        raise RuntimeError(f"1 + 2 gave {numbers[0].item()}")
    distributed.destroy_process_group()


def meet() -> None:
    """Run `take_part` in two processes; this one has imported torch for both where it can be forked."""
    from torch.multiprocessing.spawn import start_processes

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    began = time.monotonic()
    method = "fork" if sys.platform == "linux" else "spawn"
    start_processes(take_part, (port,), nprocs=2, start_method=method)  # type: ignore[no-untyped-call]  # in torch
    say(f"{time.monotonic() - began:.1f}")


def _start() -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
    return subprocess.Popen(
        [sys.executable, "-c", "from fulmen.cli.self_test import meet; meet()"],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _wait_for(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"the processes did not end within {_TIMEOUT_S} s. Connections between processes of this machine seem to be"
            " blocked: set GLOO_SOCKET_IFNAME=lo, and look at its firewall"
        ) from None
    lines = [line for line in output.splitlines() if line.strip()]
    if process.returncode:
        raise RuntimeError(f"ended with code {process.returncode}: {' '.join(lines[-1:])}")
    return f"started beside the fit; found each other and added numbers in {lines[-1]} s (gloo all-reduce)"
