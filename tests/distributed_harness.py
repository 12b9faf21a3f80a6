"""Several real processes for tests: spawned functions by rank, and scripts run as a user would."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

__all__ = ["free_port", "rank_environment", "run_all", "run_ranks", "run_script"]


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun would set for a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def run_ranks(
    function: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = 60, env: Mapping[str, str] = {}
) -> list[Any]:
    """Run a module-level function once per rank, in spawned processes.

    Args:
        function: Called as `function(*args)`; it finds its rank in the environment.
        world_size: Number of ranks.
        args: Its arguments; they are pickled.
        timeout: Seconds after which all are killed.
        env: Further environment variables.

    Returns:
        What the function returned, by rank; it is pickled.

    Raises:
        RuntimeError: A rank raised; its traceback is in the message.
        TimeoutError: They took too long.
    """
    context = multiprocessing.get_context("spawn")
    port, readers, workers = free_port(), [], []
    for rank in range(world_size):
        reader, writer = context.Pipe(duplex=False)
        environment = {**rank_environment(rank, world_size, port), **env}
        worker = context.Process(target=_work, args=(writer, environment, function, args))
        worker.start()
        writer.close()
        readers.append(reader)
        workers.append(worker)
    results: dict[int, Any] = {}
    try:
        pending = list(readers)
        while pending:
            ready = wait(pending, timeout)
            if not ready:
                missing = [rank for rank in range(world_size) if rank not in results]
                raise TimeoutError(f"ranks {missing} did not end within {timeout} s")
            for reader in (reader for reader in readers if reader in ready):
                pending.remove(reader)
                rank = readers.index(reader)
                try:
                    succeeded, value = pickle.loads(reader.recv_bytes())
                except EOFError:
                    raise RuntimeError(f"rank {rank} ended without a result") from None
                if not succeeded:
                    raise RuntimeError(f"rank {rank} failed:\n{value}")
                results[rank] = value
    finally:
        for worker in workers:
            worker.join(10 if len(results) == world_size else 0.5)
            if worker.is_alive():
                worker.kill()
                worker.join()
    return [results[rank] for rank in range(world_size)]


def _work(writer: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    try:
        result = True, function(*args)
    except BaseException:
        result = False, traceback.format_exc()
    writer.send_bytes(pickle.dumps(result))  # not `send`, which shares tensors with a process that ends now
    writer.close()


def run_all(functions: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Call functions one after the other, so that a test module starts its processes once; for `run_ranks`.

    Args:
        functions: Each with its arguments.

    Returns:
        What they returned; the traceback as a text where one raised.
    """
    results: list[Any] = []
    for function, args in functions:
        try:
            results.append(function(*args))
        except Exception:  # noqa: PERF203 - the other functions must be called
            results.append(traceback.format_exc())
    return results


def run_script(
    source: str | Path,
    *args: str,
    nproc: int | None = None,
    torchrun: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter, or through torchrun, and return what it printed and its exit code.

    Args:
        source: Path of the script, or its text with `cwd` as the folder to write it to.
        args: Its arguments.
        nproc: Processes that torchrun starts.
        torchrun: Start it through torchrun.
        env: Further environment variables.
        cwd: Folder to run in.
        timeout: Seconds after which it is killed, with all its children.
    """
    if not isinstance(source, Path):
        assert cwd is not None
        path = cwd / "script.py"
        path.write_text(textwrap.dedent(source))
        source = path
    command = [sys.executable]
    if torchrun:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={nproc}", f"--master_port={free_port()}"]
    clean = {name: value for name, value in os.environ.items() if name not in rank_environment(0, 1, 0)}
    process = subprocess.Popen(
        [*command, str(source), *args],
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **(env or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise TimeoutError(f"{source} did not end within {timeout} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
