"""What happens on the first process only."""

import inspect
import logging
import subprocess
import sys
import warnings

import pytest

from fulmen.utilities.rank_zero import (
    LightningDeprecationWarning,
    WarningCache,
    _rank_from_environment,
    rank_prefixed_message,
    rank_zero_debug,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)
from fulmen.utilities.seed import seed_everything

VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@pytest.fixture(autouse=True)
def on_rank_zero(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def next_line() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno + 1


def test_a_decorated_function_runs_on_rank_zero_only(monkeypatch):
    double = rank_zero_only(lambda x: 2 * x, default=-1)

    assert double(4) == 8
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert double(4) == -1


def test_a_decorated_function_gives_none_on_other_ranks_and_keeps_its_name(monkeypatch):
    @rank_zero_only
    def answer() -> int:
        """What it is."""
        return 42

    assert answer() == 42
    assert answer.__name__ == "answer"
    assert answer.__doc__ == "What it is."
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert answer() is None


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_rank_is_found_in_the_environment(monkeypatch, variable):
    for other in VARIABLES:
        monkeypatch.delenv(other, raising=False)
    assert _rank_from_environment() == 0
    monkeypatch.setenv(variable, "5")

    assert _rank_from_environment() == 5


def test_the_first_variable_wins(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.delenv("RANK", raising=False)

    assert _rank_from_environment() == 2


def test_the_environment_is_read_on_first_use_and_not_on_import():
    code = (
        "import os; from fulmen.utilities.rank_zero import rank_zero_only as r\n"
        "os.environ['RANK'] = '3'; print(r.rank)\n"
        "os.environ['RANK'] = '4'; print(r.rank)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["3", "3"]


def test_a_warning_points_at_the_line_that_asked_for_it():
    line = next_line() + 1
    with pytest.warns(UserWarning, match="careful") as record:
        rank_zero_warn("careful")

    assert (record[0].filename, record[0].lineno) == (__file__, line)


def test_a_warning_from_inside_the_package_points_at_the_line_of_the_user(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    line = next_line() + 1
    with pytest.warns(UserWarning, match="got no seed") as record:
        seed_everything()

    assert (record[0].filename, record[0].lineno) == (__file__, line)


def test_stacklevel_counts_callers_as_in_lightning():
    def helper() -> None:
        rank_zero_warn("from the caller", stacklevel=5)

    line = next_line() + 1
    with pytest.warns(UserWarning, match="from the caller") as record:
        helper()

    assert record[0].lineno == line


def test_a_stacklevel_beyond_the_stack_still_warns():
    with pytest.warns(UserWarning, match="far"):
        rank_zero_warn("far", stacklevel=5000)


def test_a_warning_takes_a_category():
    with pytest.warns(RuntimeWarning, match="hot"):
        rank_zero_warn("hot", category=RuntimeWarning)


def test_other_ranks_do_not_warn_or_log(monkeypatch, caplog):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, logger="fulmen"):
        warnings.simplefilter("error")
        rank_zero_warn("no")
        rank_zero_deprecation("no")
        rank_zero_info("no")
        rank_zero_debug("no")

    assert caplog.records == []


def test_a_deprecation_points_at_the_caller_of_the_deprecated_function():
    def old() -> None:
        rank_zero_deprecation("`old` goes away in 1.0, use `new`.")

    line = next_line() + 1
    with pytest.warns(LightningDeprecationWarning, match="use `new`") as record:
        old()

    assert record[0].lineno == line


def test_a_deprecation_is_shown_by_default():
    code = "from fulmen.utilities.rank_zero import rank_zero_deprecation as d\nd('gone soon')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "LightningDeprecationWarning: gone soon" in done.stderr


def test_the_command_line_of_python_decides_over_deprecations():
    code = "from fulmen.utilities.rank_zero import rank_zero_deprecation as d\nd('gone soon')"

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == ""


def test_log_records_name_the_line_that_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="fulmen"):
        line = next_line()
        rank_zero_info("hello %s", "you")
        rank_zero_debug("details")

    first, second = caplog.records
    assert (first.message, first.levelname, first.lineno) == ("hello you", "INFO", line)
    assert first.name == "fulmen.utilities.rank_zero"
    assert (second.message, second.levelname, second.lineno) == ("details", "DEBUG", line + 1)


def test_a_message_is_prefixed_by_its_rank():
    assert rank_prefixed_message("text", 3) == "[rank: 3] text"
    assert rank_prefixed_message("text", None) == "text"


def test_a_warning_cache_says_each_message_once(caplog):
    cache = WarningCache()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO, logger="fulmen"):
        warnings.simplefilter("always")
        for _ in range(3):
            cache.warn("one")
            cache.warn("two")
            cache.info("three")
            cache.deprecation("four")

    assert [str(warning.message) for warning in caught] == ["one", "two", "four"]
    assert [entry.message for entry in caplog.records] == ["three"]
    assert cache == {"one", "two", "three", "four"}


def test_a_warning_cache_points_at_the_line_that_warned():
    line = next_line() + 1
    with pytest.warns(UserWarning, match="here") as record:
        WarningCache().warn("here")

    assert record[0].lineno == line
