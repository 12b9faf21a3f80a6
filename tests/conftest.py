"""Fixtures of all tests."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from fulmen.strategies.process_group import leave_group
from fulmen.utilities.rank_zero import rank_zero_only


@pytest.fixture(autouse=True)
def seed() -> None:
    """Same random numbers in every test, whatever ran before."""
    torch.manual_seed(0)
    random.seed(0)
    try:
        import numpy as np
    except ModuleNotFoundError:  # numpy is no dependency
        pass
    else:
        np.random.seed(0)


_ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Let no test leave a handler behind, which would make others fail."""
    before = {signum: signal.getsignal(signum) for signum in _ENDING_SIGNALS}
    yield
    left = [signum for signum, handler in before.items() if signal.getsignal(signum) != handler]
    for signum in left:
        signal.signal(signum, before[signum])
    assert not left, f"the test left handlers behind: {left}"


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Let no test leave a process group behind: a run keeps it for the next one of its process."""
    before = dist.is_initialized()
    yield
    if dist.is_initialized() and not before:
        leave_group()


@pytest.fixture(autouse=True)
def messages() -> Iterator[None]:
    """Let no test leave this process as another rank, or with other settings of logging: messages would be lost."""
    loggers = [logging.getLogger(name) for name in ("fulmen", rank_zero_only.__module__)]
    rank, disabled = rank_zero_only.rank, logging.root.manager.disable
    before = [(logger.level, logger.disabled, logger.propagate) for logger in loggers]
    yield
    rank_zero_only.rank = rank
    logging.disable(disabled)
    for logger, (level, is_disabled, propagates) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.disabled, logger.propagate = is_disabled, propagates


# Of tests that start processes (seconds each, as every process imports torch) the default run has one of each kind.
_IN_DEFAULT_RUN = (
    "test_faults.py::test_error_on_one_rank_ends_all_with_its_traceback_last[error-ValueError: boom-1]",
    "test_faults.py::test_death_of_one_rank_ends_all[killed-0]",
    "test_faults.py::test_death_of_one_rank_ends_all[killed-1]",
    "test_multiprocessing.py::test_result_and_state_come_back_and_workers_share_settings_but_no_memory[spawn]",
    "test_multiprocessing.py::test_failure_of_one_worker_ends_all_and_is_named[error-ValueError: boom-1]",
    "test_with_ddp.py::test_fault_in_a_run_of_the_trainer_ends_it[train-1-ddp-ValueError: boom in train]",
    "fabric/test_distributed.py::test_everything_on_two_ranks",
    "fabric/test_distributed.py::test_two_processes_train_like_one[script]",
)
_MANY_PROCESSES = ("strategies/launchers/", "fabric/test_distributed.py", "clusters/")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most tests that start processes to the slow run, and skip tests marked `gpu` where there is none."""
    for item in items:
        starts = item.get_closest_marker("distributed") and any(part in item.nodeid for part in _MANY_PROCESSES)
        if starts and not item.nodeid.endswith(_IN_DEFAULT_RUN):
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
