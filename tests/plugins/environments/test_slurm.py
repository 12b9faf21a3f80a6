"""Processes started by `srun`."""

from __future__ import annotations

import os
import signal

import pytest

from fulmen.plugins.environments import SLURMEnvironment
from fulmen.utilities.rank_zero import rank_zero_only

# task 3 of 4, the second on the second of two nodes, as `srun` in an sbatch file sets them
TASK = {
    "ENVIRONMENT": "BATCH",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "node[003,5-7]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
}
SCONTROL = """#!/bin/sh
echo "$@" >> "$0.calls"
[ "$2" = 13 ] || exit 0
echo "slurm_update error: Requested operation is presently disabled" >&2
exit 1
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # not that of a task below
    for variable in list(os.environ):
        if variable.startswith(("SLURM_", "MASTER_", "OMPI_")) or variable == "ENVIRONMENT":
            monkeypatch.delenv(variable)


@pytest.fixture
def set_task(monkeypatch):
    """Set the variables of a task, with changes; `None` removes one."""

    def set_variables(**changes):
        for variable, text in {**TASK, **changes}.items():
            if text is None:
                monkeypatch.delenv(variable, raising=False)
            else:
                monkeypatch.setenv(variable, text)

    return set_variables


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """A program `scontrol` that refuses job 13; returns the file in which it notes its arguments."""
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "scontrol.calls"


def test_nothing_is_detected_outside_of_a_job():
    environment = SLURMEnvironment()

    assert not SLURMEnvironment.detect()
    assert (environment.main_address, environment.main_port) == ("127.0.0.1", 12910)
    assert (environment.job_id(), environment.job_name(), environment.restart_count()) == (None, None, 0)


def test_variables_decide(set_task):
    set_task()
    environment = SLURMEnvironment()
    environment.set_world_size(99)
    environment.set_global_rank(99)

    assert SLURMEnvironment.detect()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("node003", 18456)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)
    assert (environment.job_id(), environment.job_name()) == (123456, "train")


def test_asking_does_not_change_the_environment(set_task):
    set_task()
    before = dict(os.environ)

    environment = SLURMEnvironment()
    assert environment.main_address and environment.main_port  # noqa: PT018 - both are read

    assert dict(os.environ) == before


def test_a_chosen_meeting_point_wins(set_task):
    set_task(MASTER_ADDR="10.0.0.9", MASTER_PORT="77")

    assert (SLURMEnvironment().main_address, SLURMEnvironment().main_port) == ("10.0.0.9", 77)


def test_a_step_on_some_nodes_of_the_job_meets_on_the_first_of_these(set_task):
    set_task(SLURM_STEP_NODELIST="node[5-6]")

    assert SLURMEnvironment().main_address == "node5"


@pytest.mark.parametrize(("job", "port"), [("7", 15007), ("9999", 24999), ("10000", 15000)])
def test_port_follows_from_the_last_digits_of_the_job(set_task, job, port):
    set_task(SLURM_JOB_ID=job)

    assert SLURMEnvironment().main_port == port


def test_an_empty_list_of_nodes_is_refused():
    with pytest.raises(ValueError, match="'' is empty"):
        SLURMEnvironment.resolve_root_node_address("")


@pytest.mark.parametrize("name", ["world_size", "global_rank", "local_rank", "node_rank"])
def test_a_missing_variable_is_named(name):
    with pytest.raises(RuntimeError, match=r"needs the environment variable `SLURM_\w+`.*`srun`"):
        getattr(SLURMEnvironment(), name)()


# ---- who started this process
@pytest.mark.parametrize("name", ["interactive", "bash", "zsh"])
def test_a_shell_of_a_person_is_not_a_task(set_task, name):
    set_task(SLURM_JOB_NAME=name, SLURM_STEP_NUM_TASKS=None, SLURM_NTASKS_PER_NODE=None)

    assert not SLURMEnvironment.detect()
    assert SLURMEnvironment().job_id() is None
    SLURMEnvironment().validate_settings(8, 1)


def test_a_shell_with_a_terminal_is_not_a_task(set_task):
    set_task(SLURM_JOB_NAME="bash", SLURM_PTY_PORT="1234")

    assert not SLURMEnvironment.detect()


def test_tasks_that_a_person_starts_in_a_shell_are_detected(set_task):
    set_task(SLURM_JOB_NAME="interactive")

    assert SLURMEnvironment.detect()


def test_processes_of_mpirun_in_a_job_are_left_to_mpi(set_task):
    set_task(OMPI_COMM_WORLD_SIZE="4")

    assert not SLURMEnvironment.detect()


def test_tasks_per_node_must_be_told(set_task):
    set_task(SLURM_NTASKS_PER_NODE=None)

    with pytest.raises(RuntimeError, match=r"`--ntasks=4`.*Write `#SBATCH --ntasks-per-node=2`"):
        SLURMEnvironment()


def test_an_sbatch_file_without_srun_is_refused(set_task):
    set_task(SLURM_STEP_ID=None, SLURM_STEP_NUM_TASKS=None, SLURM_PROCID="0")

    with pytest.raises(RuntimeError, match=r"asks for 4 tasks .* Write `srun python"):
        SLURMEnvironment().validate_settings(2, 2)


# ---- settings
def test_settings_that_match_the_sbatch_file_pass(set_task):
    set_task()

    SLURMEnvironment().validate_settings(2, 2)


@pytest.mark.parametrize(
    ("devices", "nodes", "message"),
    [
        (4, 2, r"`devices=4` does not match .*`--ntasks-per-node=2`.* `#SBATCH --ntasks-per-node=4`"),
        (2, 1, r"`num_nodes=1` does not match .*`--nodes=2`.* `#SBATCH --nodes=1`"),
    ],
)
def test_settings_that_contradict_the_sbatch_file_are_refused(set_task, devices, nodes, message):
    set_task()

    with pytest.raises(ValueError, match=message):
        SLURMEnvironment().validate_settings(devices, nodes)


def test_nodes_with_unequal_numbers_of_tasks_are_refused(set_task):
    set_task(SLURM_NTASKS="3")

    with pytest.raises(ValueError, match=r"world size \(3\).*`#SBATCH --ntasks-per-node=2`"):
        SLURMEnvironment().validate_settings(2, 2)


# ---- requeue
def test_defaults_of_requeue():
    assert SLURMEnvironment().auto_requeue
    assert SLURMEnvironment().requeue_signal == signal.SIGUSR1
    assert SLURMEnvironment(requeue_signal=signal.SIGHUP).requeue_signal == signal.SIGHUP


def test_a_job_is_requeued_by_its_number(set_task, scontrol):
    set_task()

    assert SLURMEnvironment().requeue()
    assert scontrol.read_text() == "requeue 123456\n"


def test_of_an_array_only_the_task_is_requeued(set_task, scontrol):
    set_task(SLURM_ARRAY_JOB_ID="123450", SLURM_ARRAY_TASK_ID="6")

    assert SLURMEnvironment().requeue()
    assert scontrol.read_text() == "requeue 123450_6\n"


@pytest.mark.usefixtures("scontrol")
def test_a_refusal_is_told_with_slurms_reason(set_task):
    set_task(SLURM_JOB_ID="13")

    with pytest.warns(UserWarning, match=r"job 13 could not be requeued: .*presently disabled.* by hand"):
        assert not SLURMEnvironment().requeue()


def test_without_scontrol_nothing_is_requeued(set_task, monkeypatch, tmp_path):
    set_task()
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.warns(UserWarning, match="no program `scontrol`"):
        assert not SLURMEnvironment().requeue()


def test_outside_of_a_job_nothing_is_requeued():
    with pytest.warns(UserWarning, match="`SLURM_JOB_ID` is not set"):
        assert not SLURMEnvironment().requeue()


def test_restarts_are_counted(set_task):
    set_task(SLURM_RESTART_COUNT="2")

    assert SLURMEnvironment.restart_count() == 2
