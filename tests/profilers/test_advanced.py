"""Functions by Python's own profiler."""

import pstats

import pytest

from fulmen.profilers import AdvancedProfiler


def leaf():
    return sum(range(10))


def other():
    return max(1, 2)


def calls_of(stats, function):
    """Number of calls of a function in `pstats.Stats`."""
    return sum(row[1] for (_, _, name), row in stats.stats.items() if name == function)


def test_functions_are_counted_for_each_action():
    profiler = AdvancedProfiler()
    for _ in range(3):
        with profiler.profile("a"):
            leaf()
    with profiler.profile("b"):
        other()

    actions = profiler.profiled_actions
    assert list(actions) == ["a", "b"]
    assert calls_of(actions["a"], "leaf") == 3
    assert calls_of(actions["a"], "other") == 0
    assert calls_of(actions["b"], "other") == 1


def test_functions_of_inner_actions_count_for_the_outer_ones_too():
    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        leaf()
        with profiler.profile("inner"):
            other()
        leaf()

    actions = profiler.profiled_actions
    assert calls_of(actions["outer"], "leaf") == 2
    assert calls_of(actions["outer"], "other") == 1
    assert calls_of(actions["inner"], "other") == 1
    assert calls_of(actions["inner"], "leaf") == 0


def test_actions_may_overlap():
    profiler = AdvancedProfiler()
    profiler.start("a")
    leaf()
    profiler.start("b")
    leaf()
    profiler.stop("a")
    leaf()
    profiler.stop("b")
    leaf()

    actions = profiler.profiled_actions
    assert (calls_of(actions["a"], "leaf"), calls_of(actions["b"], "leaf")) == (2, 2)


def test_recording_goes_on_after_a_look_at_the_statistics():
    profiler = AdvancedProfiler()
    with profiler.profile("a"):
        leaf()
        assert calls_of(profiler.profiled_actions["a"], "leaf") == 1
        leaf()

    assert calls_of(profiler.profiled_actions["a"], "leaf") == 2


def test_report_has_a_table_for_each_action():
    profiler = AdvancedProfiler()
    profiler.setup("fit")
    with profiler.profile("a"):
        leaf()

    report = profiler.summary()
    assert report.startswith("FIT Profiler Report\n\nProfile stats for: a\n")
    assert "Ordered by: cumulative time" in report
    assert "(leaf)" in report


def test_tables_can_be_cut_to_some_lines():
    profiler = AdvancedProfiler(line_count_restriction=1)
    with profiler.profile("a"):
        leaf()
        other()

    assert "due to restriction <1>" in profiler.summary()


def test_statistics_are_dumped_for_each_action_under_safe_names(tmp_path):
    profiler = AdvancedProfiler(dirpath=tmp_path, filename="functions", dump_stats=True)
    profiler.setup("fit")
    with profiler.profile("[Callback]Stop{'monitor': 'val/loss'}.on_fit_end"):
        leaf()
    with profiler.profile("x" * 300):
        leaf()
    profiler.describe()

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "fit-functions-[Callback]Stop{'monitor'_'val_loss'}.on_fit_end.prof",
        f"fit-functions-{'x' * 180}.prof",
        "fit-functions.txt",
    ]
    assert calls_of(pstats.Stats(str(tmp_path / names[0])), "leaf") == 1


def test_starting_twice_is_refused():
    profiler = AdvancedProfiler()
    with pytest.raises(ValueError, match="'a' has already started"), profiler.profile("a"):
        profiler.start("a")


def test_stopping_what_was_not_started_is_refused():
    with pytest.raises(ValueError, match="'a' cannot be stopped because it was never started"):
        AdvancedProfiler().stop("a")


def test_teardown_stops_recording_and_keeps_the_report_until_the_next_run():
    profiler = AdvancedProfiler()
    profiler.setup("fit")
    profiler.start("a")
    leaf()
    profiler.teardown("fit")
    other()
    (stats,) = profiler.profiled_actions.values()
    assert (calls_of(stats, "leaf"), calls_of(stats, "other")) == (1, 0)

    profiler.setup("test")
    with profiler.profile("b"):
        leaf()

    assert list(profiler.profiled_actions) == ["b"]
