from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.strategies.launchers import MultiProcessingLauncher
from fulmen.utilities.exceptions import RankFailedError
from tests.strategies.launchers.stand_in import StandIn

ROOT = Path(__file__).parents[3]
METHODS = ["spawn", "fork", "forkserver"]


class Weights:
    """Brings back a tensor."""

    def __init__(self) -> None:
        self.value = torch.zeros(2)

    def pack(self):
        return self.value

    def unpack(self, payload):
        self.value = payload


def train(strategy: StandIn, weights: Weights, model: nn.Module):
    strategy.setup_environment()
    rank = torch.tensor([float(strategy.rank)])
    dist.all_reduce(rank)
    with torch.no_grad():
        model.weight.add_(1)  # type: ignore[operator]  # of its own copy
    dist.barrier()
    weights.value += model.weight.sum().item()  # type: ignore[operator]
    return strategy.rank, rank, torch.get_default_dtype(), torch.rand(1), torch.get_float32_matmul_precision()


def fail(strategy: StandIn, how: str, who: int, file: Path):
    if how == "before_group" and strategy.rank == who:
        file.write_text(str(time.time()))
        os._exit(7)
    strategy.setup_environment()
    dist.barrier()
    if strategy.rank == who:
        file.write_text(str(time.time()))
        if how == "error":
            raise ValueError("boom")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sys_exit":
            sys.exit(3)
    if how == "killed":
        while True:
            pass
    dist.barrier()


def stays(strategy: StandIn, file: Path):
    strategy.setup_environment()
    dist.barrier()
    Path(f"{file}{strategy.rank}").write_text(str(os.getpid()))
    time.sleep(60)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("MASTER_PORT", "MASTER_ADDR", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_result_and_state_come_back_and_workers_share_settings_but_no_memory(method, monkeypatch):
    torch.set_float32_matmul_precision("medium")
    model, strategy, weights = nn.Linear(2, 1, bias=False), StandIn(), Weights()
    model.weight.data.zero_()
    launcher = MultiProcessingLauncher(strategy, method)
    state = torch.get_rng_state()
    try:
        # the second one with the cheapest method only, as starting interpreters takes seconds
        count = 2 if method == "fork" else 1
        results = [launcher.launch(train, strategy, weights, model, carrier=weights) for _ in range(count)]
    finally:
        torch.set_float32_matmul_precision("highest")

    for rank, total, dtype, number, precision in results:
        assert (rank, total.item(), dtype, precision) == (0, 1.0, torch.float32, "medium")
        assert number == torch.rand(1, generator=torch.Generator().set_state(state))
    assert weights.value.tolist() == [2.0 * count] * 2  # each launch added 1 to both weights of its own copy
    assert model.weight.tolist() == [[0.0, 0.0]]
    assert "MASTER_PORT" not in os.environ
    assert [process.exitcode for process in launcher.procs] == [0, 0]


@pytest.mark.distributed
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("how", "message"), [("error", "ValueError: boom"), ("killed", "SIGKILL"), ("before_group", "exit code 7")]
)
def test_failure_of_one_worker_ends_all_and_is_named(tmp_path, how, message, who):
    strategy, file = StandIn(), tmp_path / "time"
    launcher = MultiProcessingLauncher(strategy, "fork")

    with pytest.raises(RankFailedError, match=rf"(?s)^Rank {who} .*{message}[^\n]*$"):
        launcher.launch(fail, strategy, how, who, file)

    print(how, who, time.time() - float(file.read_text()))  # noqa: T201 - shown if it fails
    assert time.time() - float(file.read_text()) < 10
    assert all(process.exitcode for process in launcher.procs)


@pytest.mark.distributed
def test_sys_exit_in_a_worker_ends_the_program_with_its_code(tmp_path):
    strategy = StandIn()

    with pytest.raises(SystemExit, match="3"):
        MultiProcessingLauncher(strategy, "fork").launch(fail, strategy, "sys_exit", 1, tmp_path / "time")


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_workers_end_with_the_process_that_launched_them(tmp_path, method):
    code = f"""
        from pathlib import Path
        from fulmen.strategies.launchers import MultiProcessingLauncher
        from tests.strategies.launchers.stand_in import StandIn
        from tests.strategies.launchers.test_multiprocessing import stays
        if __name__ == "__main__":
            strategy = StandIn()
            MultiProcessingLauncher(strategy, {method!r}).launch(stays, strategy, Path({str(tmp_path / "pid")!r}))
    """
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    with run_script(code, tmp_path) as process:
        try:
            wait_until(lambda: all(file.exists() and file.read_text() for file in files), 100)
        finally:
            process.kill()
        killed = time.time()
        wait_until(lambda: not any(lives(int(file.read_text())) for file in files), 20)

    assert time.time() - killed < 10


@pytest.mark.distributed
def test_missing_main_guard_is_explained_once(tmp_path):
    code = """
        from fulmen.strategies.launchers import MultiProcessingLauncher
        from tests.strategies.launchers.stand_in import StandIn
        strategy = StandIn()
        MultiProcessingLauncher(strategy, "spawn").launch(print, "hello")
    """
    with run_script(code, tmp_path) as process:
        _, err = process.communicate(timeout=100)

    assert process.returncode == 1
    assert err.count('if __name__ == "__main__":') == 1
    assert "RuntimeError" in err


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1, 1), nn.Identity())
        self.encoder[1].loss_fn = lambda x: x  # type: ignore[assignment]


def test_what_cannot_be_pickled_is_named_with_its_path():
    strategy = StandIn()

    with pytest.raises(TypeError, match=r"^`model.encoder.1.loss_fn` can't be sent .* it is a lambda.*'spawn'"):
        MultiProcessingLauncher(strategy, "spawn").launch(train, strategy, Weights(), Model())


def test_unpicklable_keyword_is_named():
    strategy = StandIn()
    loader = DataLoader(TensorDataset(torch.ones(1)), collate_fn=lambda batch: batch)

    with pytest.raises(TypeError, match=r"^`loaders\['a'\].collate_fn` can't be sent"):
        MultiProcessingLauncher(strategy, "spawn").launch(print, loaders={"a": loader})


def test_unknown_start_method_is_refused():
    with pytest.raises(ValueError, match="'thread' does not exist"):
        MultiProcessingLauncher(StandIn(), "thread")  # type: ignore[arg-type]


def test_fork_after_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    with pytest.raises(RuntimeError, match="can't be used after CUDA was"):
        MultiProcessingLauncher(StandIn(), "fork").launch(print)


def test_only_fork_works_in_a_notebook():
    works = {method: MultiProcessingLauncher(StandIn(), method).is_interactive_compatible for method in METHODS}  # type: ignore[arg-type]

    assert works == {"spawn": False, "fork": True, "forkserver": False}


def run_script(code: str, folder: Path) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.PIPE, text=True)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # an orphan that nobody reaps has ended, too
    return not (status.exists() and status.read_text().rsplit(")", 1)[-1].split()[0] == "Z")


def wait_until(condition, seconds):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def test_warning_filters_are_carried():
    strategy = StandIn(num_processes=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)

        assert MultiProcessingLauncher(strategy, "fork").launch(filters) == ("ignore", UserWarning)


def filters():
    return warnings.filters[0][0], warnings.filters[0][2]
