"""How long imports take, in processes that do nothing else."""

from __future__ import annotations

import json
import subprocess
import tempfile

__all__ = ["time_import"]

_CODE = """
import json, sys, time
started_s = time.perf_counter()
import torch
torch_s, modules = time.perf_counter() - started_s, len(sys.modules)
started_s = time.perf_counter()
{statement}
print(json.dumps(dict(torch=torch_s, package=time.perf_counter() - started_s, modules=len(sys.modules) - modules)))
"""


def time_import(python: str, statement: str) -> dict[str, float]:
    """Run an import statement once, after `import torch`, in a new process.

    Returns:
        Seconds of `torch` and of the statement (`package`), and how many `modules` the statement added.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", _CODE.format(statement=statement)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode != 0:
        raise RuntimeError(f"`{statement}` failed in {python!r}:\n{result.stderr}")
    times: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return times
