"""Train published packages with the released Lightning and with fulmen, and print their losses side by side.

    python run.py [NAME ...]    # e.g. prune_trials; all programs of this folder by default

Runs in an environment that has the packages, Lightning and fulmen: `make test-compat` makes one. Exits with 1 if a
program failed, or ended with other losses than with Lightning.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in HERE.glob("*_*.py"))
TOLERANCE = 1e-6


def outcome(program: str, *prefix: str) -> dict[str, Any]:
    """Run a program, and return what it reported; or under "error" the end of what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *prefix, str(HERE / f"{program}.py")],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not results:
        return {"error": (done.stdout + done.stderr)[-1500:]}
    reported: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return reported


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of the losses and of the last value."""
    if len(one["losses"]) != len(other["losses"]) or not one["losses"]:
        return math.inf
    pairs = zip([*one["losses"], one["last"]], [*other["losses"], other["last"]], strict=True)
    return max(abs(first - second) for first, second in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("program", nargs="*", help="which to run (default: all)")
    chosen = parser.parse_args().program or PROGRAMS
    print(f"{'package':<30}{'batches':>8}{'lightning':>14}{'fulmen':>14}{'difference':>13}")
    failed = 0
    for program in chosen:
        theirs, ours = outcome(program), outcome(program, "-m", "fulmen.compat")
        for name, result in (("lightning", theirs), ("fulmen", ours)):
            if "error" in result:
                print(f"{program}: failed with {name}:\n{result['error']}")
        if "error" in theirs or "error" in ours:
            failed += 1
            continue
        most = difference(theirs, ours)
        failed += most > TOLERANCE
        print(
            f"{ours['package'] + ' ' + ours['version']:<30}{len(ours['losses']):>8}{theirs['last']:>14.6f}"
            f"{ours['last']:>14.6f}{most:>13.1e}",
            flush=True,
        )
    print(f"{len(chosen) - failed} of {len(chosen)} the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
