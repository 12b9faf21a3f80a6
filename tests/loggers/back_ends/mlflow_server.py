"""`MLFlowLogger` with a server of MLflow on loopback."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.loggers.back_ends.mlflow import BackEndOfLogger as WithDatabase
from tests.loggers.back_ends.mlflow import empty_database


class BackEndOfLogger(WithDatabase):
    few = True  # what is special about it is that everything goes over the wire

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.uri = _server()


@functools.cache
def _server() -> str:
    """Address of a server that runs until this process ends: starting one takes many seconds."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(Path(empty_database().name, "mlflow.db"), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *store,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end, process, folder)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"the server of MLflow did not answer within 120 s; its exit code: {process.poll()}")
        time.sleep(0.2)
    return address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)
