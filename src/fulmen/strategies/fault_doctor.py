"""Finds out what each rank does when a run stands still, without help of the threads that stand.

Each rank has a thread that compares counters. The first that sees its rank stand still for too long raises an alarm in
the store of the process group; every thread answers there with the stack of its rank, and the lowest rank that answers
shows them all. The store is served by a native thread, so it works even if rank 0 itself hangs with the interpreter
locked: a rank that can't answer is said not to.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Literal

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not declared so

from fulmen.strategies.fault_report import Report, end_process
from fulmen.strategies.fault_scene import Scene, report_text
from fulmen.strategies.fault_watch import FaultWatch
from fulmen.strategies.process_group import current_membership
from fulmen.utilities.rank_zero import rank_prefixed_message, rank_zero_only
from fulmen.utilities.stack_dump import register_stack_dump

__all__ = ["HangDoctor"]

_LOCKED_MARGIN_S = 15.0  # the others want to say that a rank does not answer before it ends itself
_ANSWER_S = 3.0
_SHOWN_BEFORE_END_S = 0.5


class HangDoctor(threading.Thread):
    """Watches, in a thread, that a run makes progress; on several ranks each has one.

    Args:
        read: Returns what grows with progress, and where the run is, in words. Called in the thread, a few times per
            limit.
        limit_s: How long the run may stand still, in seconds.
        first_limit_s: The same until it has made its first step.
        is_under_way: Tells whether it has made its first step.
        action: "report" only shows, ever more seldom; "abort" ends all ranks then.
        all_threads: Show all threads of each rank as well.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Hashable, str]],
        *,
        limit_s: float,
        first_limit_s: float,
        is_under_way: Callable[[], bool],
        action: Literal["report", "abort"],
        all_threads: bool = False,
    ) -> None:
        super().__init__(name="fulmen-hang-watchdog", daemon=True)
        # settings
        self._read = read
        self._limit_s = limit_s
        self._first_limit_s = first_limit_s
        self._is_under_way = is_under_way
        self._action = action
        self._all_threads = all_threads
        self._poll_s = min(max(limit_s / 10, 0.05), 2.0)
        # state
        self._thread = threading.get_ident()
        self._dump_signal = register_stack_dump()
        self._ended = threading.Event()
        self._ranks: _Ranks | None = None
        self._counters: Hashable = None
        self._where = ""
        self._since = time.monotonic()
        self._patience = 1.0  # grows by reports, so that they get rarer
        self._has_spoken = False

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        if self is not threading.current_thread():
            self.join(self._poll_s + 1.0)

    def run(self) -> None:
        """Compare counters until stopped."""
        self._since = time.monotonic()
        try:
            while not self._ended.wait(self._poll_s):
                self._look()
        finally:
            faulthandler.cancel_dump_traceback_later()

    @property
    def _limit_now_s(self) -> float:
        return self._limit_s if self._is_under_way() else max(self._limit_s, self._first_limit_s)

    def _look(self) -> None:
        # If this thread can't run, a native one shows the stack, and ends the process if that is wanted.
        margin_s = self._poll_s if FaultWatch.running() is None else _LOCKED_MARGIN_S
        after_s = self._limit_now_s * self._patience + margin_s
        faulthandler.dump_traceback_later(after_s, exit=self._action == "abort", file=2)
        now = time.monotonic()
        counters, self._where = self._read()
        if counters != self._counters:
            if self._has_spoken:
                _show(f"Goes on, after {now - self._since:.0f} s without progress ({self._where}).")
            self._counters, self._since, self._patience, self._has_spoken = counters, now, 1.0, False
        is_over = now - self._since > self._limit_now_s * self._patience
        ranks = self._connected()
        if ranks is None:
            if is_over:
                self._speak({rank_zero_only.rank or 0: self._scene(0, 1)}, 1, is_speaker=True)
            return
        try:
            if is_over or ranks.is_alarm():
                ranks.raise_alarm()
                scenes = ranks.exchange(self._scene(ranks.rank, ranks.world_size), self._poll_s)
                ranks.signal_silent(scenes, self._dump_signal)
                self._speak(scenes, ranks.world_size, is_speaker=min(scenes) == ranks.rank)
        except Exception as error:  # the store has gone with rank 0
            if is_over:
                self._speak({ranks.rank: self._scene(ranks.rank, ranks.world_size)}, ranks.world_size, is_speaker=True)
                _show(f"The other ranks could not be asked ({type(error).__name__}).")

    def _connected(self) -> _Ranks | None:
        """Return the line to the other ranks, made as soon as they know each other; `None` with one process."""
        watch = FaultWatch.running()
        if self._ranks is None and watch is not None and watch.world_size > 1:
            with contextlib.suppress(Exception):  # rank 0 may not have opened its store yet
                self._ranks = _Ranks(watch)
        return self._ranks

    def _scene(self, rank: int, world_size: int) -> Scene:
        idle_s = time.monotonic() - self._since
        return Scene.take(self._thread, rank=rank, world_size=world_size, where=self._where, idle_s=idle_s)

    def _speak(self, scenes: dict[int, Scene], world_size: int, *, is_speaker: bool) -> None:
        self._patience *= 2
        self._has_spoken = is_speaker
        text = report_text(scenes, world_size, limit_s=self._limit_now_s)
        if is_speaker:
            _show(text)
        if self._all_threads:
            faulthandler.dump_traceback(file=2, all_threads=True)
        if self._action == "abort" and not self._ended.is_set():
            time.sleep(_SHOWN_BEFORE_END_S)
            self._abort(text, scenes, world_size)

    def _abort(self, text: str, scenes: dict[int, Scene], world_size: int) -> None:
        silent = [rank for rank in range(world_size) if rank not in scenes]
        culprit = next((rank for rank, scene in sorted(scenes.items()) if not scene.waits), min(scenes))
        culprit = silent[0] if silent else culprit
        scene = scenes.get(culprit)
        who = (culprit, scene.host if scene else "", scene.pid if scene else 0)
        report = Report("hang", *who, time.time(), text)
        if self._ranks is not None:
            with contextlib.suppress(Exception):  # the store has gone
                self._ranks.signal_silent(scenes, signal.SIGKILL)
        watch = FaultWatch.running()
        if watch is not None:
            watch.accept(report)
        end_process(report)  # all ranks do so now


class _Ranks:
    """The threads of all ranks, which talk by keys of a store.

    Args:
        watch: Knows where the store is.
    """

    def __init__(self, watch: FaultWatch) -> None:
        self.rank = watch.rank
        self.world_size = watch.world_size
        self._store = TCPStore(watch.address, watch.port, is_master=False, timeout=timedelta(seconds=10))
        membership = current_membership()
        attempt = "0" if membership is None else membership.attempt  # under torchrun the store serves the next one, too
        start = self._store.add(f"fulmen/hang/{attempt}/starts_of_{self.rank}", 1)
        self._prefix = f"fulmen/hang/{attempt}/{start}"
        self._number = 0  # of the next alarm
        self._host = socket.gethostname()
        self._store.set(f"{self._prefix}/process_of_{self.rank}", json.dumps((self._host, os.getpid())))

    def is_alarm(self) -> bool:
        """Tell whether some rank asks all to answer."""
        return bool(self._store.check([self._key("alarm")]))

    def raise_alarm(self) -> None:
        """Ask all ranks to answer."""
        self._store.set(self._key("alarm"), str(self.rank))

    def exchange(self, scene: Scene, poll_s: float) -> dict[int, Scene]:
        """Answer an alarm and return the answers that come in time, by rank.

        All ranks return the same: the lowest one that answers closes the list.

        Args:
            scene: The answer of this rank.
            poll_s: How often ranks look for an alarm, in seconds.
        """
        self._store.set(self._key(f"scene_{self.rank}"), json.dumps(asdict(scene)))
        deadline = time.monotonic() + _ANSWER_S + 2 * poll_s
        here: list[int] = []
        while len(here) < self.world_size and time.monotonic() < deadline:
            here = [rank for rank in range(self.world_size) if self._store.check([self._key(f"scene_{rank}")])]
            time.sleep(0.02)
        closed = self._store.compare_set(self._key("closed"), "", json.dumps(here))
        scenes = {rank: self._read(rank) for rank in json.loads(closed)}
        self._number += 1
        return scenes

    def signal_silent(self, scenes: dict[int, Scene], signum: int | None) -> None:
        """Send a signal to the processes of this machine that do not answer; one rank of the machine does so.

        Args:
            scenes: The ranks that answered.
            signum: The signal.
        """
        if signum is None or self.rank != min((r for r, each in scenes.items() if each.host == self._host), default=-1):
            return
        for rank in set(range(self.world_size)) - set(scenes):
            key = f"{self._prefix}/process_of_{rank}"
            if self._store.check([key]):
                host, pid = json.loads(self._store.get(key))
                if host == self._host:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)

    def _read(self, rank: int) -> Scene:
        found: dict[str, Any] = json.loads(self._store.get(f"{self._prefix}/{self._number}/scene_{rank}"))
        return Scene(**found)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{self._number}/{name}"


def _show(text: str) -> None:
    # ourselves, as the main thread may hold the lock of `sys.stderr` for ever
    with contextlib.suppress(OSError):
        os.write(
            2, f"\n{rank_prefixed_message(f'HangWatchdog: {text}', rank_zero_only.rank)}\n".encode(errors="replace")
        )
