"""Two machines in one: network namespaces joined by a cable, each with a host name of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host", "run_on_hosts", "two_hosts", "why_no_hosts"]


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: Its name, which is also the host name inside; both hosts can resolve it.
        address: Its address on the cable.
    """

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command there."""
        inside = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", inside, self.name, *command]


def why_no_hosts() -> str | None:
    """Return why this machine cannot pose as two; `None` if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [program for program in ("ip", "unshare", "hostname") if shutil.which(program) is None]
    if missing:
        return f"not found: {', '.join(missing)} (packages iproute2, util-linux, hostname)"
    try:
        with two_hosts() as hosts:
            run_on_hosts([host.command(["true"]) for host in hosts], timeout=10)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"this system does not allow network namespaces: {error}"
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts; they are gone afterwards."""
    tag = f"{os.getpid() % 100000}"
    hosts = Host(f"fa{tag}", "10.77.0.1"), Host(f"fb{tag}", "10.77.0.2")
    names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    # no name server: there is none, and asking for one takes many seconds
    files = {"hosts": names, "nsswitch.conf": "hosts: files\n", "resolv.conf": ""}
    with ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "del", host.name)
            folder = Path("/etc/netns") / host.name
            folder.mkdir(parents=True)
            stack.callback(shutil.rmtree, folder)
            for name, text in files.items():
                (folder / name).write_text(text)
        ends = [f"v{host.name}" for host in hosts]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends, strict=True):
            _ip("link", "set", end, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", end)
            for device in (end, "lo"):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts


def run_on_hosts(
    commands: Sequence[Sequence[str]], *, timeout: float, env: Sequence[Mapping[str, str]] = ()
) -> list[subprocess.CompletedProcess[str]]:
    """Run one command on each host, at the same time.

    Args:
        commands: As `Host.command` returns them.
        timeout: Seconds for all together; then they are killed with their children.
        env: Further environment variables for each.

    Raises:
        TimeoutError: They took longer.
    """
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            command,
            env={**clean, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, own in zip(commands, env or [{}] * len(commands), strict=True)
    ]
    deadline = time.monotonic() + timeout
    outputs = [_output(process, deadline) for process in processes]
    if time.monotonic() > deadline:
        raise TimeoutError(f"the commands did not end within {timeout} s\n" + "\n---\n".join(outputs))
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def _output(process: subprocess.Popen[str], deadline: float) -> str:
    try:
        return process.communicate(timeout=max(deadline - time.monotonic(), 0))[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
