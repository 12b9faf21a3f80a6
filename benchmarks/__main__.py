"""Measure what a Trainer costs: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import measure_checkpoints
from benchmarks.driver import chosen, count, default_workers, describe, time_cases, time_imports
from benchmarks.ranks import time_ranks
from benchmarks.report import as_markdown, as_text

_REFERENCE = "FULMEN_REFERENCE_PYTHON"


def parse_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what a Trainer costs over a plain PyTorch loop, on a model so small that it shows.",
        epilog=f"If the environment variable {_REFERENCE} names a Python interpreter that has `lightning`, that is"
        " measured too, in turn with this package.",
    )
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each case (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of a measurement (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: the computing time of the thread, steadier where other programs run (default: %(default)s)",
    )
    parser.add_argument(
        "--millions",
        type=float,
        default=100,
        help="parameters of the checkpoint cases, in millions; 12 bytes each on disk (default: %(default)s)",
    )
    parser.add_argument("--cases", metavar="KEY,KEY", help="only these rows, without imports and counts")
    parser.add_argument("--quick", action="store_true", help="every row once and small: to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; return all figures."""
    rounds, sizes = arguments.rounds, {"steps": arguments.steps}
    if arguments.quick:
        rounds, sizes = 1, {"steps": 8, "warmup": 2, "epoch_batches": 4}
        arguments.millions = 1
    setup = {"device": arguments.device, "clock": arguments.clock, **sizes}
    cases, keys, checkpoint_keys = chosen(arguments.cases)
    if arguments.device != "cpu":
        keys = []  # several ranks on one GPU would measure how they wait for it
    workers = default_workers(setup, os.environ.get(_REFERENCE))
    pythons = {worker.package: worker.python for worker in workers}
    try:
        save_times, save_memory = measure_checkpoints(
            pythons, checkpoint_keys, device=arguments.device, millions=arguments.millions, rounds=rounds, tell=_tell
        )
        return {
            "environment": describe(workers),
            "settings": {"rounds": rounds, **setup},
            "times": [
                *time_cases(workers, cases, rounds, _tell),
                *time_ranks(pythons, keys, setup, rounds, _tell),
                *save_times,
            ],
            "memory": save_memory,
            "counts": [] if arguments.cases else count(workers),
            "imports": [] if arguments.cases else time_imports(workers, rounds, _tell),
        }
    finally:
        for worker in workers:
            worker.close()
        _tell("")


def _tell(text: str) -> None:
    """Show on a terminal how far it is."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments()
    results = run(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(as_markdown(results) if arguments.markdown else as_text(results))


if __name__ == "__main__":
    main()
