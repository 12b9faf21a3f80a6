"""Processes started by `jsrun` in a job of LSF."""

from __future__ import annotations

import socket

import pytest

from fulmen.plugins.environments import LSFEnvironment

HERE = socket.gethostname()


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Two machines, of which this is the second; returns the file that names them."""
    ranks = tmp_path / "ranks"
    ranks.write_text(f"batch5\nhost1\nhost1\n{HERE}\n{HERE}\n")
    values = {
        "LSB_JOBID": "1234567",
        "LSB_DJOB_RANKFILE": str(ranks),
        "JSM_NAMESPACE_LOCAL_RANK": "1",
        "JSM_NAMESPACE_SIZE": "4",
        "JSM_NAMESPACE_RANK": "3",
    }
    for variable, text in values.items():
        monkeypatch.setenv(variable, text)
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    return ranks


def test_nothing_is_detected_outside_of_a_job():
    assert not LSFEnvironment.detect()


@pytest.mark.parametrize("variable", ["LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_SIZE"])
@pytest.mark.usefixtures("job")
def test_all_variables_are_needed_for_detection(monkeypatch, variable):
    monkeypatch.delenv(variable)

    assert not LSFEnvironment.detect()


@pytest.mark.usefixtures("job")
def test_variables_and_file_decide():
    environment = LSFEnvironment()
    environment.set_world_size(99)
    environment.set_global_rank(99)

    assert LSFEnvironment.detect()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("host1", 10567)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)
    environment.validate_settings(2, 2)
    with pytest.raises(ValueError, match=r"world size \(4\).*options of `jsrun`"):
        environment.validate_settings(2, 1)


@pytest.mark.usefixtures("job")
def test_a_chosen_meeting_point_wins(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.9")
    monkeypatch.setenv("MASTER_PORT", "77")

    assert (LSFEnvironment().main_address, LSFEnvironment().main_port) == ("10.0.0.9", 77)


def test_names_with_and_without_domain_are_the_same_machine(job):
    job.write_text(f"batch5\nhost1.example.org\n{HERE}.example.org\n")

    assert LSFEnvironment().node_rank() == 1


def test_a_machine_outside_of_the_job_is_refused(job):
    job.write_text(f"{HERE}\nhost1\nhost2\n")

    with pytest.raises(ValueError, match=r"not among the machines of the job.*host1, host2"):
        LSFEnvironment()


def test_a_job_without_machines_is_refused(job):
    job.write_text(f"{HERE}\n")

    with pytest.raises(ValueError, match="names no machine besides"):
        LSFEnvironment()


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("variable", ["LSB_JOBID", "LSB_DJOB_RANKFILE"])
def test_it_needs_a_job(monkeypatch, variable):
    monkeypatch.delenv(variable)

    with pytest.raises(ValueError, match=f"`{variable}`, which LSF sets in each job"):
        LSFEnvironment()


@pytest.mark.usefixtures("job")
def test_tasks_must_be_started_by_jsrun(monkeypatch):
    monkeypatch.delenv("JSM_NAMESPACE_RANK")

    with pytest.raises(ValueError, match=r"`JSM_NAMESPACE_RANK` is not set. Start the program by `jsrun`"):
        LSFEnvironment().global_rank()
