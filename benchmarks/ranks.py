"""What a Trainer costs on several ranks, over a loop written by hand with DistributedDataParallel or `fully_shard`."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cases import quiet
from benchmarks.frameworks import Framework, load
from benchmarks.models import make_model
from benchmarks.plain import CLIP_NORM, LEARNING_RATE, WINDOW, model_and_optimizer
from benchmarks.timing import Batches, Setup, summary

__all__ = ["RANK_CASES", "time_ranks"]

_ROOT = Path(__file__).parent.parent
_WORLD_SIZE = 2
_TIMEOUT_S = 900


def by_hand(setup: Setup) -> float:
    """Forward, backward with the gradients averaged, step."""

    def use(batches: Batches) -> None:
        module, optimizer = model_and_optimizer(setup.device)
        model = DistributedDataParallel(module)
        for batch in batches:
            loss = model(batch).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return setup.per_step(use)


def by_hand_accumulating(setup: Setup) -> float:
    """The same with gradients averaged once per window."""

    def use(batches: Batches) -> None:
        module, optimizer = model_and_optimizer(setup.device)
        model = DistributedDataParallel(module)
        for batch_idx, batch in enumerate(batches):
            if (batch_idx + 1) % WINDOW:
                with model.no_sync():
                    (model(batch).sum() / WINDOW).backward()
                continue
            (model(batch).sum() / WINDOW).backward()
            optimizer.step()
            optimizer.zero_grad()

    return setup.per_step(use)


def by_hand_sharded(setup: Setup) -> float:
    """Forward with the weights gathered, backward with the gradients divided, clipping, step on the shards."""

    def use(batches: Batches) -> None:
        model, _ = model_and_optimizer(setup.device)
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for batch in batches:
            loss = model(batch).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()

    return setup.per_step(use)


def trained(setup: Setup, framework: Framework, *, model: dict[str, Any] | None = None, **arguments: Any) -> float:
    """Time the steps of a fit on all ranks."""
    settings = quiet(setup.device, **{"devices": _WORLD_SIZE, "strategy": "ddp", **arguments})
    return setup.per_step(partial(framework.trainer(**settings).fit, make_model(framework, **(model or {}))))


RANK_CASES: dict[str, tuple[str, Callable[[Setup], float], Callable[[Setup, Framework], float]]] = {
    "ddp": ("DDP on 2 ranks, bare Trainer", by_hand, trained),
    "ddp_log_1": ("DDP on 2 ranks, 1 logged scalar", by_hand, partial(trained, model={"num_logged": 1})),
    "ddp_accumulate_4": (
        "DDP on 2 ranks, accumulate_grad_batches=4",
        by_hand_accumulating,
        partial(trained, accumulate_grad_batches=WINDOW),
    ),
    "fsdp_clip": (
        "FSDP on 2 ranks, gradients clipped",
        by_hand_sharded,
        partial(trained, strategy="fsdp", gradient_clip_val=CLIP_NORM),
    ),
}
_OURS = ("fsdp_clip",)  # Lightning refuses FSDP on CPUs


def measure(framework: Framework, keys: list[str], setup: Setup, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measure some cases in turn, on this rank; the others do the same at the same time."""
    distributed.init_process_group("gloo")
    found: dict[str, list[dict[str, float]]] = {key: [] for key in keys}
    for number in range(rounds):
        for key in keys:
            _, plain, measured = RANK_CASES[key]
            seconds = {}
            for which in ("plain", "measured") if number % 2 == 0 else ("measured", "plain"):
                gc.collect()
                distributed.barrier()
                seconds[which] = plain(setup) if which == "plain" else measured(setup, framework)
            found[key].append(seconds)
    distributed.destroy_process_group()
    return found


def time_ranks(
    pythons: dict[str, str], keys: list[str], setup: dict[str, Any], rounds: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure each package in processes of its own, and return rows for the report.

    Args:
        pythons: An interpreter for each package.
        keys: Which of `RANK_CASES`.
        setup: Arguments of `Setup`.
        rounds: How often each case is measured.
        tell: Is told how far it is.
    """
    by_package = {}
    for package, python in pythons.items() if keys else ():
        tell(f"{package} on {_WORLD_SIZE} ranks")
        possible = [key for key in keys if package == "fulmen" or key not in _OURS]
        by_package[package] = _run(package, python, possible, setup, rounds) if possible else {}
    return [
        {
            "key": key,
            "title": title,
            "unit": "us per step",
            "packages": {package: _summary(found[key]) for package, found in by_package.items() if key in found},
        }
        for key, title in ((key, RANK_CASES[key][0]) for key in keys)
    ]


def _run(
    package: str, python: str, keys: list[str], setup: dict[str, Any], rounds: int
) -> dict[str, list[dict[str, float]]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [python, "-m", "benchmarks.ranks", package, *keys, "--setup", json.dumps(setup), "--rounds", str(rounds)]
    ranks: list[subprocess.Popen[str]] = []
    for number in range(_WORLD_SIZE):
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(_WORLD_SIZE),
            "LOCAL_WORLD_SIZE": str(_WORLD_SIZE),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "benchmark",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1",
        }
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=_ROOT))
    try:
        texts = [rank.communicate(timeout=_TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"The ranks that measure {package!r} ended with {[rank.returncode for rank in ranks]}.")
    found: dict[str, list[dict[str, float]]] = json.loads(texts[0].splitlines()[-1])
    return found


def _summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return summary((answer["plain"] * 1e6, answer["measured"] * 1e6) for answer in rounds)


def main() -> None:
    """Measure as one of the ranks; rank 0 prints the figures."""
    parser = argparse.ArgumentParser(description="Measure one package as a rank; started by `python -m benchmarks`.")
    parser.add_argument("package")
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--setup", required=True, help="sizes, as JSON")
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    framework, setup = load(arguments.package), Setup(**json.loads(arguments.setup))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = measure(framework, arguments.keys, setup, arguments.rounds)
        os.chdir(os.path.sep)
    if os.environ["RANK"] == "0":
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
