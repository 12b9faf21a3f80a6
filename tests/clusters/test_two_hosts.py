"""Runs on two machines: two network namespaces with a cable between them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from tests.clusters.hosts import Host, run_on_hosts, two_hosts, why_no_hosts
from tests.distributed_harness import run_script

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(180)]

SCRIPT = Path(__file__).with_name("train.py")
PORT = 29511  # free: nobody else is in these namespaces
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d"]
FACES = pytest.mark.parametrize("face", [[], ["--fabric"]], ids=["trainer", "fabric"])
RANKS = [["rank 0 of 4, 0 on 0", "rank 1 of 4, 1 on 0"], ["rank 2 of 4, 0 on 1", "rank 3 of 4, 1 on 1"]]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with two_hosts() as both:
        yield both


def check_against_one_process(folder: Path, face: list[str], ended: list[CompletedProcess[str]]) -> None:
    run_script(SCRIPT, str(folder / "alone"), "--devices", "1", "--batch-size", "32", *face)

    outputs = "\n---\n".join(run.stdout for run in ended)
    assert [run.returncode for run in ended] == [0, 0], outputs
    assert [sorted(re.findall("rank . of .*", run.stdout)) for run in ended] == RANKS, outputs
    torch.testing.assert_close(
        torch.load(folder / "hosts" / "weights.pt"), torch.load(folder / "alone" / "weights.pt"), rtol=0, atol=1e-6
    )


@FACES
def test_torchrun_on_two_hosts_trains_as_one_process(tmp_path, hosts, face):
    script = [str(SCRIPT), str(tmp_path / "hosts"), "--num-nodes", "2", "--batch-size", "8", *face]
    commands = []
    for rank, host in enumerate(hosts):
        place = [f"--node_rank={rank}", f"--rdzv_conf=is_host={1 - rank}", f"--local_addr={host.address}"]
        commands.append(host.command([*TORCHRUN, *place, f"--rdzv_endpoint={hosts[0].address}:{PORT}", *script]))
    ended = run_on_hosts(commands, timeout=90)

    check_against_one_process(tmp_path, face, ended)


@FACES
def test_script_started_once_on_each_of_two_hosts_trains_as_one_process(tmp_path, hosts, face):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "hosts"), "--num-nodes", "2", "--batch-size", "8", *face]
    meeting_point = {"MASTER_ADDR": hosts[0].name, "MASTER_PORT": str(PORT)}
    ended = run_on_hosts(
        [host.command(command) for host in hosts],
        env=[{**meeting_point, "NODE_RANK": str(rank)} for rank in range(2)],
        timeout=90,
    )

    check_against_one_process(tmp_path, face, ended)


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_failing_rank_ends_the_other_host_too(tmp_path, hosts, how):
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--num-nodes", "2", "--batch-size", "8", "--fail", how, "3"]
    meeting_point = {"MASTER_ADDR": hosts[0].name, "MASTER_PORT": str(PORT)}
    ended = run_on_hosts(
        [host.command(command) for host in hosts],
        env=[{**meeting_point, "NODE_RANK": str(rank)} for rank in range(2)],
        timeout=60,
    )
    reason = "ValueError: no more of this on rank 3" if how == "raise" else "SIGKILL"

    assert all(run.returncode != 0 for run in ended)
    for run in ended:
        assert reason in run.stdout
