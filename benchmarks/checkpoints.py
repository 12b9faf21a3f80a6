"""What saving a checkpoint costs, over a plain `torch.save` with fsync: seconds of the training thread, and memory.

Each measurement is a process of its own, since memory that was once used stays with a process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Clock, Spread, summary

__all__ = ["CHECKPOINT_CASES", "measure_checkpoints"]

_ROOT = Path(__file__).parent.parent
_TIMEOUT_S = 900
_NUM_TENSORS = 100
_BEFORE_FIRST_SAVE_S = 5.0  # steps take time before they are worth a checkpoint, and a Trainer makes ready in it
_PLUGINS = {"fulmen": "fulmen.plugins.io", "lightning": "lightning.pytorch.plugins.io"}

# key -> title, how it is saved, which save of a process counts: memory that is kept is there from the second one on
CHECKPOINT_CASES: dict[str, tuple[str, str, int]] = {
    "checkpoint_sync": ("synchronous save", "sync", 0),
    "checkpoint_async_first": ("AsyncCheckpointIO, first save", "async", 0),
    "checkpoint_async": ("AsyncCheckpointIO, later saves", "async", 1),
}


def measure_checkpoints(
    pythons: dict[str, str], keys: list[str], *, device: str, millions: float, rounds: int, tell: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure each package in turn, round after round, in a folder below the working directory.

    Args:
        pythons: An interpreter for each package.
        keys: Which of `CHECKPOINT_CASES`.
        device: Where the model is.
        millions: Its parameters, in millions; with Adam's state a checkpoint has 12 bytes for each.
        rounds: How often each case is measured.
        tell: Is told how far it is.

    Returns:
        Rows about time and rows about memory.
    """
    modes = list(dict.fromkeys(CHECKPOINT_CASES[key][1] for key in keys))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds if keys else 0):
        for package, python in pythons.items():
            for mode in ("plain", *modes) if number % 2 == 0 else (*modes, "plain"):
                tell(f"round {number + 1} of {rounds}: {package}, {mode} save")
                answer = _run(package, python, mode, device, millions)
                found.setdefault((package, mode), []).append(answer)
    times, memory = [], []
    for key in keys:
        title, mode, index = CHECKPOINT_CASES[key]
        title = f"{title}, {millions:g} M parameters"
        rows = {package: (found[package, "plain"], found[package, mode]) for package in pythons}
        figures = {package: _summary(plain, measured, index) for package, (plain, measured) in rows.items()}
        times.append({"key": key, "title": title, "unit": "ms per save", "packages": figures})
        if key != "checkpoint_async_first":
            extra = {package: _memory(plain, measured) for package, (plain, measured) in rows.items()}
            memory.append({"key": key, "title": title, "packages": extra})
    return times, memory


def _summary(plain: list[dict[str, Any]], measured: list[dict[str, Any]], index: int) -> dict[str, Any]:
    return summary((p["seconds"][0] * 1e3, m["seconds"][index] * 1e3) for p, m in zip(plain, measured, strict=True))


def _memory(plain: list[dict[str, Any]], measured: list[dict[str, Any]]) -> dict[str, float | None]:
    """Extra megabytes at the peak, and the size of the file; `None` where the system does not tell."""
    known = plain[0]["extra_bytes"] is not None
    figures = {"plain": plain, "measured": measured}
    median = {
        name: Spread.of(a["extra_bytes"] / 1e6 for a in answers).median if known else None
        for name, answers in figures.items()
    }
    return {**median, "file": measured[0]["file_bytes"] / 1e6}


def _run(package: str, python: str, mode: str, device: str, millions: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=".", prefix="checkpoints_") as folder:
        command = [python, "-m", "benchmarks.checkpoints", package, mode, "--folder", os.path.abspath(folder)]
        command += ["--device", device, "--millions", str(millions)]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        done = subprocess.run(
            command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S, check=False
        )
    if done.returncode:
        raise RuntimeError(f"The process that saves with {package!r} ended with {done.returncode}.")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# ---- in a process of its own


def make_checkpoint(device: str, millions: float) -> dict[str, Any]:
    """Return what a checkpoint of a model and Adam holds, mostly."""
    size = int(millions * 1e6) // _NUM_TENSORS
    names = [f"layers.{number}.weight" for number in range(_NUM_TENSORS)]
    moments = ("exp_avg", "exp_avg_sq")
    states = {
        number: {"step": torch.tensor(1.0), **{name: torch.rand(size, device=device) for name in moments}}
        for number in range(_NUM_TENSORS)
    }
    return {
        "epoch": 1,
        "state_dict": {name: torch.rand(size, device=device) for name in names},
        "optimizer_states": [{"state": states, "param_groups": [{"lr": 0.1, "params": list(range(_NUM_TENSORS))}]}],
    }


def plain_save(checkpoint: dict[str, Any], path: str) -> None:
    """Save as one would by hand, so that it survives a power failure."""
    with open(path, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def saver(
    package: str, mode: str
) -> tuple[Callable[[Any], object], Callable[[dict[str, Any], str], object], Callable[[], object]]:
    """Return what a Trainer calls after the first step, what saves, and what waits until all is written."""
    if mode == "plain":
        return lambda _: None, plain_save, lambda: None
    plugins = import_module(_PLUGINS[package])
    files = plugins.TorchCheckpointIO()
    if mode == "sync":
        return lambda _: None, files.save_checkpoint, lambda: None
    background = plugins.AsyncCheckpointIO(files)
    return getattr(background, "expect", lambda _: None), background.save_checkpoint, background.teardown


def peak_bytes() -> int | None:
    """Return the most memory this process has used since `forget_peak`; `None` where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def forget_peak() -> int | None:
    """Begin to measure the peak anew; return the memory in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_bytes()


def measure(package: str, mode: str, folder: str, device: str, millions: float) -> dict[str, Any]:
    """Save twice, to two files, some time after the first step, the weights having changed in between."""
    expect, save, wait = saver(package, mode)
    checkpoint = make_checkpoint(device, millions)
    plain_save({"a": torch.ones(1)}, os.path.join(folder, "small.ckpt"))  # loads what torch loads late
    before = forget_peak()
    expect(checkpoint)
    time.sleep(_BEFORE_FIRST_SAVE_S)
    seconds = []
    for name in "ab":
        path = os.path.join(folder, f"{name}.ckpt")
        os.sync()  # what others have written must not be waited for here
        clock = Clock(device, "wall")
        clock.start()
        save(checkpoint, path)
        clock.stop()
        seconds.append(clock.seconds)
        while not os.path.exists(path):
            time.sleep(0.02)
        time.sleep(0.1)
        for weight in checkpoint["state_dict"].values():
            weight.add_(1)
    wait()
    after = peak_bytes()
    extra = None if before is None or after is None else after - before
    return {"seconds": seconds, "extra_bytes": extra, "file_bytes": os.path.getsize(path)}


def main() -> None:
    """Measure once and print the figures."""
    parser = argparse.ArgumentParser(description="Save a checkpoint; started by `python -m benchmarks`.")
    parser.add_argument("package", choices=_PLUGINS)
    parser.add_argument("mode", choices=("plain", "sync", "async"))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--millions", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stdout.write(json.dumps(measure(**vars(arguments))) + "\n")


if __name__ == "__main__":
    main()
