"""The connections by which the processes of a run watch each other (`fault_watch.py`).

Each process reads its messages in a thread of its own, which also keeps the deadlines: a process that does not notice
by itself that another one failed is ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import asdict
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not declared so

from fulmen.strategies.attempt import agree_on_attempt, store_outlives_processes
from fulmen.strategies.fault_report import Report, end_process
from fulmen.strategies.fault_scene import is_backward, is_exchange
from fulmen.utilities.rank_zero import rank_prefixed_message, rank_zero_only
from fulmen.utilities.stack_dump import StackLine, stack_of

if TYPE_CHECKING:
    from fulmen.strategies.fault_watch import FaultWatch

__all__ = ["CLEANUP_S", "WAIT_FOR_CULPRIT_S", "Hub", "Line", "Spoke"]

CLEANUP_S = 9.0  # for a rank that noticed a failure and is on its way out: exception checkpoints, loggers
WAIT_FOR_CULPRIT_S = 2.0  # an error may arrive before the message that explains it

_WAIT_FOR_EXIT_CODE_S = 0.5  # who started a process knows more of its death than who lost the connection
_IN_VAIN_S = 1.0  # in a collective after a failure: gloo raises by then, NCCL never does
_JOIN_BEFORE_END_S = 5.0  # a very short program must say farewell, too
_JOIN_TIMEOUT_S = 120.0
_END_OF_THREAD_S = 10.0

_starts = itertools.count()  # of watches in this process


class Line(threading.Thread):
    """One process' end of the connections: reads messages, keeps deadlines."""

    def __init__(self, watch: FaultWatch) -> None:
        super().__init__(name="fulmen-fault-watch", daemon=True)
        self.watch = watch
        self.first_report: Report | None = None
        self.arrived = threading.Event()
        self.is_leaving = False  # an error or interrupt of its own is on its way through this process
        self.is_released = False
        self.selector = selectors.DefaultSelector()
        self.peers: dict[socket.socket, _Peer] = {}
        self.lock = threading.RLock()
        self.is_closed = False
        self._ear, self._bell = socket.socketpair()  # wakes the thread
        self._has_said = False
        self._watched_thread = threading.get_ident()
        self._arrived_at = 0.0
        self._waits_since: float | None = None
        self._backward: FrameType | None = None
        self._backward_since = 0.0
        self._ended_regularly: set[int] = set()

    # ---- what differs between rank 0 and the others

    def join_run(self) -> None:
        """Connect; runs in the thread."""
        raise NotImplementedError

    def say(self, report: Report) -> None:
        """Send a report to all ranks."""
        raise NotImplementedError

    def heard(self, peer: _Peer, message: dict[str, Any]) -> None:
        """Act on a message."""
        raise NotImplementedError

    # ---- the thread

    def run(self) -> None:
        """Read and watch until closed."""
        self.selector.register(self._ear, selectors.EVENT_READ, _ignore)
        try:
            self.join_run()
        except Exception as error:
            if not self.is_closed:
                _warn(
                    f"cannot watch the other ranks ({type(error).__name__}: {error}): if one of them dies, this one may"
                    " wait for it until the timeout of the process group. Check that rank 0 can be reached."
                )
            return
        while not self.is_closed:
            for key, _ in self.selector.select(self.watch.poll_s if not self._is_urgent() else 0.1):
                with contextlib.suppress(OSError, KeyError, ValueError):  # closed meanwhile
                    key.data(key.fileobj)
            self._declare_deaths()
            self._enforce()

    def say_once(self, report: Report) -> bool:
        """Send the report of this rank, unless that was done before; True if it is sent."""
        if self._has_said:
            return False
        self._has_said = True
        self.say(report)
        return True

    def add_peer(self, connection: socket.socket, rank: int) -> _Peer:
        """Read from a connection from now on."""
        connection.settimeout(2.0)
        _keep_alive(connection)
        peer = _Peer(connection, rank)
        with self.lock:
            self.peers[connection] = peer
            self.selector.register(connection, selectors.EVENT_READ, self._read)
        return peer

    def receive(self, report: Report) -> bool:
        """Take a report as the first one; False if there was one before."""
        with self.lock:
            if self.first_report is not None:
                return False
            self.first_report, self._arrived_at = report, time.monotonic()
        self.arrived.set()
        return True

    def close(self, word: str) -> None:
        """Say a last word to all and end the thread."""
        self.is_closed = True
        self._bell.send(b"!")
        if self.is_alive() and threading.current_thread() is not self:
            self.join(_END_OF_THREAD_S)  # a thread in native code when Python ends takes the process down by SIGABRT
        with self.lock:
            for peer in list(self.peers.values()):
                if peer.said_farewell_at is None:
                    peer.send({word: True})
                peer.close()
            self.peers.clear()
            self.selector.close()
        self._ear.close()
        self._bell.close()

    def note_farewell(self, rank: int, message: dict[str, Any]) -> None:
        """Remember that a rank is gone for good reasons, and whether its process has ended."""
        if "exit" in message:
            self._ended_regularly.add(rank)

    def _read(self, connection: socket.socket) -> None:
        peer = self.peers[connection]
        messages, is_open = peer.receive()
        for message in messages:
            if "bye" in message or "exit" in message:
                peer.said_farewell_at = time.monotonic()
            self.heard(peer, message)
        if not is_open:
            with self.lock:
                self.selector.unregister(connection)
                connection.close()
                peer.closed_at = time.monotonic()

    def _declare_deaths(self) -> None:
        now = time.monotonic()
        for connection, peer in list(self.peers.items()):
            if peer.closed_at is None or (
                peer.said_farewell_at is None and now - peer.closed_at < _WAIT_FOR_EXIT_CODE_S
            ):
                continue
            with self.lock:
                self.peers.pop(connection, None)
            if peer.said_farewell_at is None and peer.rank >= 0 and self.first_report is None:
                text = "Its connection broke without a word: the process was killed, or it crashed."
                self.say(Report("death", peer.rank, peer.host, peer.pid, time.time(), text))

    def _is_urgent(self) -> bool:
        return self.first_report is not None or any(peer.closed_at is not None for peer in self.peers.values())

    def _enforce(self) -> None:
        """End this process if it should have ended by itself."""
        report, now = self.first_report, time.monotonic()
        if (report is None and not self._ended_regularly) or self.is_released:
            return
        self._note_waiting(now)
        is_stuck = self._waits_since is not None and now - self._waits_since >= self.watch.grace_s
        if report is None:
            is_stuck = is_stuck or now - self._backward_since >= self.watch.backward_grace_s
            if is_stuck:
                self._waits_since, self._backward_since = None, now
                self.blame_who_ended()
            return
        if self.is_leaving:
            is_own = self._has_said  # its own error: may save what it can, but not wait for those who are gone
            is_late = is_stuck or (not is_own and now - self._arrived_at >= CLEANUP_S)
        else:
            waits_in_vain = (
                self._waits_since is not None and now - max(self._waits_since, self._arrived_at) >= _IN_VAIN_S
            )
            is_late = waits_in_vain or now - self._arrived_at >= self.watch.grace_s
        if is_late and not self.is_closed:
            end_process(report)

    def blame_who_ended(self) -> None:
        """Report, if there is one, a rank whose program has ended well, although this one cannot go on without it."""
        if self._ended_regularly:
            text = f"Its program came to an end while rank {self.watch.rank} still waits for it in a collective."
            text += " All ranks have to make the same number of steps."
            self.say(Report("death", min(self._ended_regularly), "", 0, time.time(), text))

    def _note_waiting(self, now: float) -> None:
        """Keep since when the watched thread is in a collective, and since when in one and the same backward."""
        stack = stack_of(self._watched_thread)
        backward = _backward_of(self._watched_thread, stack)
        if not _waits_for_others(stack):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        if backward is None or backward is not self._backward:
            self._backward, self._backward_since = backward, now

    def drop(self) -> None:
        """Close the connections without a word, in a forked process; as copies they would hide the end of this one."""
        self.is_closed = True
        for connection in [*self.peers, self._ear, self._bell]:
            with contextlib.suppress(OSError):
                connection.close()


class Hub(Line):
    """The end of rank 0, to which all others connect."""

    def __init__(self, watch: FaultWatch) -> None:
        super().__init__(watch)
        self.met: set[int] = set()
        self._token = secrets.token_hex(16)
        self._listener = _listen(watch.address, watch.world_size)

    def join_run(self) -> None:  # noqa: D102 - as in the base class
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        store, key = _meeting_point(self)
        place = {"port": self._listener.getsockname()[1], "host": socket.gethostname(), "token": self._token}
        store.set(key, json.dumps(place))

    def say(self, report: Report) -> None:  # noqa: D102 - as in the base class
        if self.receive(report):
            self._tell({"report": asdict(report)})

    def heard(self, peer: _Peer, message: dict[str, Any]) -> None:  # noqa: D102 - as in the base class
        if "token" in message and message["token"] == self._token:
            peer.rank, peer.host, peer.pid = message["rank"], message["host"], message["pid"]
            self.met.add(peer.rank)
            if self.first_report is not None:
                peer.send({"report": asdict(self.first_report)})
        elif peer.rank < 0:
            peer.close()  # a stranger
        elif "report" in message:
            self.say(Report(**message["report"]))
        elif peer.said_farewell_at is not None:
            self.note_farewell(peer.rank, message)
            self._tell({"left": peer.rank, **message})

    def close(self, word: str) -> None:  # noqa: D102 - as in the base class
        deadline = time.monotonic() + _JOIN_BEFORE_END_S  # who still looks for this rank would find it gone, and end
        while self.is_alive() and self.first_report is None and len(self.met) < self.watch.world_size - 1:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        super().close(word)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self.add_peer(connection, rank=-1)

    def _tell(self, message: dict[str, Any]) -> None:
        with self.lock:
            for peer in self.peers.values():
                if peer.rank >= 0 and peer.said_farewell_at is None and peer.closed_at is None:
                    peer.send(message)

    def drop(self) -> None:  # noqa: D102 - as in the base class
        super().drop()
        self._listener.close()


class Spoke(Line):
    """The end of any other rank."""

    def __init__(self, watch: FaultWatch) -> None:
        super().__init__(watch)
        self._hub: _Peer | None = None
        self._has_joined = threading.Event()

    def join_run(self) -> None:  # noqa: D102 - as in the base class
        store, key = _meeting_point(self)
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        while True:
            try:
                while not store.check([key]):
                    self._pause(deadline)
            except dist.DistNetworkError:
                text = "The store that it hosts is gone: the process was killed, or it crashed."
                self.receive(Report("death", 0, self.watch.address, 0, time.time(), text))
                return
            place = json.loads(store.get(key))
            connection = _connect((self.watch.address, place["host"]), place["port"])
            if connection is not None:
                break
            self._pause(deadline)  # an address from an earlier attempt, which rank 0 will replace
        hello = {"token": place["token"], "rank": self.watch.rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._hub = self.add_peer(connection, rank=0)
        self._hub.host = place["host"]
        self._hub.send(hello)
        self._has_joined.set()

    def say(self, report: Report) -> None:  # noqa: D102 - as in the base class
        if self._hub is None and threading.current_thread() is not self:
            self._has_joined.wait(WAIT_FOR_CULPRIT_S)
        if self._hub is None or self._hub.closed_at is not None or not self._hub.send({"report": asdict(report)}):
            self.receive(report)
        elif threading.current_thread() is not self:
            self.arrived.wait(1.0)  # rank 0 answers with the report that counts: now it has arrived for sure

    def heard(self, peer: _Peer, message: dict[str, Any]) -> None:  # noqa: D102 - as in the base class
        if "report" in message:
            self.receive(Report(**message["report"]))
        elif "left" in message:
            self.note_farewell(message["left"], message)
        elif peer.said_farewell_at is not None:
            self.note_farewell(0, message)

    def close(self, word: str) -> None:  # noqa: D102 - as in the base class
        if self.is_alive() and self.first_report is None:
            self._has_joined.wait(_JOIN_BEFORE_END_S)  # so that rank 0 does not take this rank for one that never came
        super().close(word)

    def _pause(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError("rank 0 does not watch")
        if self.is_closed:
            raise ConnectionAbortedError("this watch was stopped")
        time.sleep(0.05)


class _Peer:
    """A connection to another rank: messages are lines of JSON."""

    __slots__ = ("_buffer", "_connection", "closed_at", "host", "pid", "rank", "said_farewell_at")

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self.rank = rank
        self.host = ""
        self.pid = 0
        self.closed_at: float | None = None
        self.said_farewell_at: float | None = None
        self._connection = connection
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; False if the connection is broken."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that are here, and whether there may be more."""
        try:
            data = self._connection.recv(65536)
        except OSError:
            data = b""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                messages.append(json.loads(line))
        return [message for message in messages if isinstance(message, dict)], bool(data)

    def close(self) -> None:
        """Close the connection so that what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._connection.close()


def _meeting_point(line: Line) -> tuple[Any, str]:
    """Connect to the store, as soon as there is one, and return it with the key for the address of rank 0."""
    watch = line.watch
    deadline = time.monotonic() + 1800
    while (probe := _connect((watch.address,), watch.port)) is None:  # torch's own attempts would print warnings
        if line.is_closed or time.monotonic() > deadline:
            raise ConnectionAbortedError(f"no store at {watch.address}:{watch.port}")
        time.sleep(0.1)
    probe.close()
    store = TCPStore(watch.address, watch.port, is_master=False, timeout=timedelta(seconds=30))
    if not store_outlives_processes():
        return store, f"fulmen/fault_watch/{store.add(f'fulmen/fault_watch/starts_of_{watch.rank}', 1)}"

    def wait() -> None:
        if line.is_closed or time.monotonic() > deadline:
            raise ConnectionAbortedError("the other ranks did not come")
        time.sleep(0.02)

    what = f"watch_{next(_starts)}"
    attempt = agree_on_attempt(store, rank=watch.rank, world_size=watch.world_size, what=what, wait=wait)
    return store, f"fulmen/fault_watch/{attempt}"


def _listen(address: str, backlog: int) -> socket.socket:
    if address in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0), backlog=backlog)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def _connect(hosts: tuple[str, ...], port: int) -> socket.socket | None:
    for host in hosts:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=5)
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # nobody listens there, so it got the very port that it was to connect to
    return None


def _keep_alive(connection: socket.socket) -> None:
    """Let the system notice that a whole machine is gone, which closes no connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # the first is named differently on macOS; seconds until the first probe, between probes, and how many may fail
    for names, value in ((("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 3), (("TCP_KEEPINTVL",), 1), (("TCP_KEEPCNT",), 3)):
        for name in names:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                break


# ---- this process


def _ignore(connection: socket.socket) -> None:
    """Nothing is to be done but to wake up."""


def _waits_for_others(stack: list[StackLine]) -> bool:
    """Tell whether a thread is inside a collective that torch offers in Python."""
    return any(is_exchange(line.file) for line in stack[:4])


def _backward_of(thread: int, stack: list[StackLine]) -> FrameType | None:
    """Return the call of autograd that a thread is in, as an object that stands for this very call."""
    if not stack or not is_backward(stack[0].file):
        return None
    return sys._current_frames().get(thread)  # it waits in native code: looking at its frame is safe


def _warn(text: str) -> None:
    os.write(2, rank_prefixed_message(f"{text}\n", rank_zero_only.rank).encode())
