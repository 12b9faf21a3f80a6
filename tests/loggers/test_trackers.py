"""Arguments of the trackers' loggers that exclude each other, and what only one of them has."""

from __future__ import annotations

import pickle

import pytest

from fulmen.loggers import CometLogger, DVCLiveLogger, LitLogger, NeptuneLogger, TrackioLogger
from fulmen.loggers.run_logger import plain_tree


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    """What is tested here is decided before a tracker's package is needed."""
    monkeypatch.setattr("fulmen.loggers.tracker.is_installed", lambda package: True)


def test_logger_of_a_hosted_service_says_what_to_use_instead():
    with pytest.raises(NotImplementedError, match=r"lightning\.ai.*no connection.*Use a logger of an open tracker"):
        LitLogger("logs", name="run")  # type: ignore[abstract]  # as it says


def test_unknown_mode_of_comet_is_refused():
    with pytest.raises(ValueError, match=r"CometLogger\(mode='new'\).*Choose 'get'"):
        CometLogger(mode="new")  # type: ignore[arg-type]


def test_run_of_neptune_excludes_arguments_for_a_new_one():
    with pytest.raises(ValueError, match=r"`NeptuneLogger\(run=\.\.\.\)` came with \['project'\].*Leave them out"):
        NeptuneLogger(run=object(), project="a/b")


def test_given_run_of_neptune_stays_in_its_process():
    with pytest.raises(TypeError, match=r"cannot go to other processes.*`run_id`"):
        pickle.dumps(NeptuneLogger(run=object()))


@pytest.mark.parametrize(("name", "resume"), [(None, "must"), ("first", "yes")])
def test_trackio_must_be_told_which_run_is_gone_on_with(name, resume):
    with pytest.raises(ValueError, match=rf"resume='{resume}'\).*Choose 'never'"):
        TrackioLogger("p", name=name, resume=resume)


def test_position_of_another_folder_takes_nothing_back_in_dvclive(tmp_path):
    curve = tmp_path / "live" / "plots" / "metrics" / "loss.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step\tloss\n0\t3.0\n")
    DVCLiveLogger(dir=tmp_path / "live").resume_at({"log_dir": str(tmp_path / "other"), "rows": {}})

    assert curve.read_text() == "step\tloss\n0\t3.0\n"


def test_logger_that_took_over_a_run_goes_on_with_it():
    logger = TrackioLogger("p")
    logger.take_version("begun-elsewhere")

    assert logger.version == "begun-elsewhere"
    assert pickle.loads(pickle.dumps(logger)).version == "begun-elsewhere"


def test_settings_keep_their_nesting_and_become_plain():
    assert plain_tree({"a": {"b": {"c": 1}}, "d": [1], "e": None, "f": True}) == {
        "a": {"b": {"c": 1}},
        "d": "[1]",
        "e": "None",
        "f": True,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_places_in_a_run_of_neptune_begin_with_the_prefix(tmp_path, monkeypatch):
    pytest.importorskip("neptune", reason="the package 'neptune' is not installed")
    monkeypatch.setenv("NEPTUNE_DATA_DIRECTORY", str(tmp_path))
    logger = NeptuneLogger(
        project="a/b", mode="offline", git_ref=False, source_files=[], capture_hardware_metrics=False
    )
    logger.log_metrics({"loss": 3.0}, step=0)
    logger.log_hyperparams({"lr": 0.5})
    logger.finalize("success")

    (queue,) = tmp_path.glob("offline/*/data-1.log")
    assert '"path": ["training", "loss"]' in queue.read_text()
    assert '"path": ["training", "hyperparams", "lr"]' in queue.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_files_are_tracked_by_a_repository_of_dvc(tmp_path, monkeypatch):
    repo = pytest.importorskip("dvc.repo", reason="the package 'dvclive' is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    repo.Repo.init(no_scm=True).close()
    (tmp_path / "notes.txt").write_text("kept")
    logger = DVCLiveLogger(dir=tmp_path / "live", save_dvc_exp=False)
    logger.log_artifact("notes.txt", type="dataset")
    logger.finalize("success")

    assert (tmp_path / "live" / "artifacts" / "notes.txt").read_text() == "kept"
    assert "path: notes.txt" in (tmp_path / "live" / "artifacts" / "notes.txt.dvc").read_text()
