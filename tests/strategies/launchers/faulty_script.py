"""A run over two processes in which one fails: `python faulty_script.py HOW RANK FILE [hydra-like arguments]`."""

# ruff: noqa: T201 - read by the test, or by who looks into its failure
from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HOW, WHO, FILE = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
RANK = int(os.environ.get("LOCAL_RANK", 0))


def note(what: str) -> None:
    with FILE.open("a") as file:
        file.write(f"{RANK} {os.getpid()} {what} {time.time()}\n")


note("began")
if HOW == "import_error" and RANK == WHO:
    note("fault")
    import package_that_does_not_exist  # type: ignore[import-not-found]  # noqa: F401 - the fault
if HOW == "parent_killed_at_import":
    if RANK == 0:
        pass
    else:
        note("fault")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

import torch  # noqa: E402 - the faults above come before anything is imported
import torch.distributed as dist  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from fulmen.strategies.fault_watch import FaultWatch  # noqa: E402
from tests.strategies.launchers.stand_in import StandIn  # noqa: E402


class Items(Dataset[int]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, idx: int) -> int:
        if HOW == "worker" and RANK == WHO and idx == 9:
            note("fault")
            raise ValueError("boom in a worker")
        return idx


def fail() -> None:
    note("fault")
    if HOW in ("error", "error_others_compute", "caught"):
        raise ValueError("boom")
    if HOW in ("killed", "killed_others_compute", "killed_with_workers"):
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "os_exit":
        os._exit(5)
    if HOW == "sys_exit":
        sys.exit(3)
    if HOW == "interrupt":
        raise KeyboardInterrupt


def work(strategy: StandIn) -> str:
    if HOW == "before_group" and RANK == WHO:
        note("fault")
        os._exit(7)
    if HOW == "exit_before_group" and RANK == WHO:
        note("fault")
        sys.exit(0)
    strategy.setup_environment()
    dist.barrier()
    note("joined")
    workers = 1 if HOW in ("worker", "killed_with_workers") else 0
    for step, _ in enumerate(DataLoader(Items(), num_workers=workers)):
        if step == 3 and RANK == WHO and HOW not in ("fine", "worker", "teardown", "after", "wait_for_signal"):
            fail()
        if step == 4 and HOW == "wait_for_signal":
            note("ready")
            time.sleep(60)
        if step >= 3 and HOW.endswith("others_compute"):
            end = time.time() + 60
            while time.time() < end:
                pass
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
    if HOW == "teardown":
        try:
            raise ValueError("first")
        finally:
            if RANK == WHO:
                note("fault")
                raise ValueError("boom at the end")
            dist.barrier()
    return "done"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # at once: the other rank writes, too
    sys.stdout.flush()


def main() -> None:
    strategy = StandIn()
    launcher = strategy.launcher
    if HOW == "caught":
        try:
            launcher.launch(work, strategy)
        except Exception as error:
            print("caught", type(error).__name__, flush=True)
            return
    say(f"rank {RANK} {launcher.launch(work, strategy)}")
    if HOW == "fine":
        say(f"again {launcher.launch(lambda: dist.get_world_size())}")
    if HOW == "after" and RANK == WHO:
        note("fault")
        raise ValueError("boom after the run")
    if HOW == "after":
        time.sleep(60)
    dist.barrier()
    assert FaultWatch.running() is not None


if __name__ == "__main__":
    main()
