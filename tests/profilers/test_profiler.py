"""What all profilers share: the report and where it goes."""

import logging

import fsspec
import pytest
from torch import nn

from fulmen.profilers import PassThroughProfiler, Profiler, SimpleProfiler
from fulmen.utilities.enums import LightningEnum


class Recorder(Profiler):
    """The least that a profiler must write."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []

    def start(self, action_name):
        self.calls.append(("start", action_name))

    def stop(self, action_name):
        self.calls.append(("stop", action_name))

    def summary(self):
        return f"{len(self.calls)} calls\n"


class Function(LightningEnum):
    FITTING = "fit"


def test_profiler_without_start_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Profiler()  # type: ignore[abstract]  # what the test is about


def test_profile_block_starts_and_stops_the_action():
    profiler = Recorder()

    with profiler.profile("load") as name:
        assert profiler.calls == [("start", "load")]

    assert name == "load"
    assert profiler.calls == [("start", "load"), ("stop", "load")]


def test_profile_block_stops_the_action_when_it_raises():
    profiler = Recorder()

    with pytest.raises(KeyError), profiler.profile("load"):
        raise KeyError

    assert profiler.calls[-1] == ("stop", "load")


def test_pass_through_profiler_does_nothing(tmp_path):
    profiler = PassThroughProfiler(dirpath=tmp_path, filename="times")
    profiler.setup("fit")
    profiler.connect(nn.Linear(1, 1), num_steps=10)
    with profiler.profile("load"):
        pass
    profiler.describe()
    profiler.teardown("fit")

    assert profiler.summary() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "local_rank", "file_name"),
    [("fit", None, "fit-times.txt"), ("test", 1, "test-times-1.txt"), (Function.FITTING, 0, "fit-times-0.txt")],
)
def test_report_file_is_named_by_stage_and_rank(tmp_path, stage, local_rank, file_name):
    profiler = Recorder(dirpath=tmp_path / "deep", filename="times")
    profiler.setup(stage, local_rank=local_rank)
    profiler.describe()

    assert [path.name for path in (tmp_path / "deep").iterdir()] == [file_name]
    assert profiler.local_rank == (local_rank or 0)


def test_report_goes_to_the_log_folder_unless_a_folder_is_given(tmp_path):
    without, given = Recorder(filename="times"), Recorder(dirpath=tmp_path / "own", filename="times")
    for profiler in (without, given):
        profiler.setup("fit", log_dir=str(tmp_path / "run"))
        profiler.describe()

    assert (tmp_path / "run" / "fit-times.txt").exists()
    assert (tmp_path / "own" / "fit-times.txt").exists()
    assert without.dirpath == str(tmp_path / "run")


def test_report_without_file_name_goes_to_the_log(tmp_path, caplog):
    profiler = Recorder(dirpath=tmp_path)
    profiler.setup("fit")
    with caplog.at_level(logging.INFO, logger="fulmen"):
        profiler.describe()

    assert "0 calls" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_second_report_of_a_profiler_is_appended_and_a_new_profiler_replaces_it(tmp_path):
    first = Recorder(dirpath=tmp_path, filename="times")
    for _ in range(2):
        first.setup("fit")
        first.describe()
        first.teardown("fit")
    file = tmp_path / "fit-times.txt"
    assert file.read_text() == "0 calls\n0 calls\n"

    second = Recorder(dirpath=tmp_path, filename="times")
    second.setup("fit")
    second.describe()

    assert file.read_text() == "0 calls\n"


def test_report_can_go_to_an_object_store():
    profiler = SimpleProfiler(dirpath="memory://profiles", filename="times")
    profiler.setup("fit")
    profiler.describe()

    assert fsspec.filesystem("memory").cat_file("/profiles/fit-times.txt").startswith(b"FIT Profiler Report")


@pytest.mark.parametrize("name", ["dirpath", "filename"])
def test_what_is_no_path_is_refused(name):
    with pytest.raises(TypeError, match=f"{name}=3"):
        Recorder(**{name: 3})
