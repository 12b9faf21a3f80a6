"""A run that is interrupted anywhere and resumed is the run that was not; `python -m tests.torture` does more of it."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.torture.cases import run_case
from tests.torture.compare import compare, read_record
from tests.torture.program import Broken, train
from tests.torture.saving import kill_while_saving
from tests.torture.settings import CHOICES, LOADERS, Interruption, Setting, draw_setting

# a fork is what is tested here, and the threads of the test runner are none of those that the run needs
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork\\(\\):DeprecationWarning")


def any_setting() -> st.SearchStrategy[Setting]:
    """Settings without workers, which take no processes."""
    fields: dict[str, Any] = {name: st.sampled_from(choices) for name, choices in CHOICES.items()}
    fields["loader"] = st.sampled_from([name for name in LOADERS if not Setting(loader=name).num_workers])
    return st.builds(Setting, **fields, seed=st.integers(0, 99)).map(Setting.made_possible)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # to look for a simpler example takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(setting=any_setting(), chance=st.randoms(use_true_random=False))
def test_an_exception_anywhere_changes_nothing_in_the_resumed_run(setting: Setting, chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, interrupted = Path(folder, "whole"), Path(folder, "interrupted")
        whole.mkdir()
        interrupted.mkdir()
        train(setting, whole)
        places = read_record(whole)[-1]["places"]
        hook = chance.choice(sorted(places))
        with pytest.raises(Broken):
            train(setting, interrupted, Interruption("exception", hook, chance.choice(places[hook])))
        train(setting, interrupted)

        assert compare(whole, interrupted) == []


@pytest.mark.parametrize(("kind", "loader"), [("SIGTERM", "own sampler"), ("kill -9", "workers")], ids=str)
def test_a_signal_anywhere_changes_nothing_in_the_resumed_run(kind: str, loader: str, tmp_path: Path) -> None:
    setting = replace(draw_setting(1, loader=loader), validate="3 batches", asynchronous=False).made_possible()
    outcome = run_case(setting, tmp_path, kinds=(kind,))

    assert outcome.interruptions
    assert [*map(str, outcome.differences), *outcome.problems] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2 * len(LOADERS)))
def test_any_interruption_changes_nothing_in_the_resumed_run(seed: int, tmp_path: Path) -> None:
    outcome = run_case(draw_setting(seed), tmp_path)

    assert [*map(str, outcome.differences), *outcome.problems] == [], str(outcome.setting)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_kill_while_saving_leaves_a_whole_checkpoint_and_no_litter(mode: str, tmp_path: Path) -> None:
    result = kill_while_saving(mode, kills=6, seed=0, folder=tmp_path, tell=lambda problem: None)

    assert result.problems == []
    assert result.kills == result.loaded == 6


def test_the_comparison_finds_what_differs(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        train(Setting(seed=seed), folder)

    assert {"bits", "duplicate", "lost", "validations"} <= {each.figure for each in compare(*folders)}
    assert compare(folders[0], folders[0]) == []
