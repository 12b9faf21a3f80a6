"""Durations by the clock."""

import time

import pytest

from fulmen.profilers import SimpleProfiler


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when told to."""

    class Clock:
        now_s = 100.0

        def __call__(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_durations_are_recorded_for_each_action(clock):
    profiler = SimpleProfiler()
    for seconds in (1.0, 3.0):
        profiler.start("load")
        clock.now_s += seconds
        profiler.stop("load")

    assert profiler.recorded_durations == {"load": [1.0, 3.0]}
    assert profiler.current_actions == {}


def test_extended_table_has_calls_and_share_of_the_time_since_setup(clock):
    profiler = SimpleProfiler()
    clock.now_s += 50
    profiler.setup("fit")
    for name, seconds in (("short", 1.0), ("long", 4.0), ("long", 2.0)):
        with profiler.profile(name):
            clock.now_s += seconds
    clock.now_s += 3

    title, blank, _, *lines = profiler.summary().splitlines()
    assert (title, blank) == ("FIT Profiler Report", "")
    assert [cells(line) for line in lines if line.startswith("|")] == [
        ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"],
        ["Total", "-", "3", "10", "100 %"],
        ["long", "3", "2", "6", "60"],
        ["short", "1", "1", "1", "10"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_plain_table_has_mean_and_total(clock):
    profiler = SimpleProfiler(extended=False)
    with profiler.profile("load"):
        clock.now_s += 2.5

    lines = profiler.summary().splitlines()
    assert [cells(line) for line in lines if line.startswith("|")] == [
        ["Action", "Mean duration (s)", "Total time (s)"],
        ["load", "2.5", "2.5"],
    ]


def test_report_of_nothing_is_an_empty_table():
    assert "Action" in SimpleProfiler().summary()
    assert "Action" in SimpleProfiler(extended=False).summary()


def test_starting_twice_is_refused():
    profiler = SimpleProfiler()
    profiler.start("load")

    with pytest.raises(ValueError, match="'load' has already started"):
        profiler.start("load")


def test_stopping_what_was_not_started_is_refused():
    with pytest.raises(ValueError, match="'load' cannot be stopped because it was never started"):
        SimpleProfiler().stop("load")


def test_actions_may_overlap(clock):
    profiler = SimpleProfiler()
    profiler.start("outer")
    profiler.start("inner")
    clock.now_s += 1
    profiler.stop("outer")
    clock.now_s += 1
    profiler.stop("inner")

    assert profiler.recorded_durations == {"outer": [1.0], "inner": [2.0]}


def test_second_run_goes_on_with_the_same_clock(clock):
    profiler = SimpleProfiler()
    profiler.setup("fit")
    with profiler.profile("load"):
        clock.now_s += 1
    profiler.teardown("fit")
    started_s = profiler.start_time
    clock.now_s += 1
    profiler.setup("test")

    assert profiler.start_time == started_s
    assert profiler.recorded_durations == {"load": [1.0]}
