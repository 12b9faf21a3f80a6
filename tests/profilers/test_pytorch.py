"""Operations by torch's profiler."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerAction, schedule

from fulmen.profilers import PyTorchProfiler
from fulmen.profilers.pytorch import RegisterRecordFunction
from fulmen.utilities.exceptions import MisconfigurationException


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.body(x)


@pytest.fixture(autouse=True)
def _silence(capfd):
    """Kineto prints on its own."""
    yield
    capfd.readouterr()


def train(profiler, model, num_steps):
    for _ in range(num_steps):
        with profiler.profile("run_training_batch"):
            with profiler.profile("[Strategy]SingleDeviceStrategy.training_step"):
                loss = model(torch.ones(2, 4)).sum()
            with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
                loss.backward()


def evaluate(profiler, model, num_steps, name="validation_step"):
    for _ in range(num_steps):
        with profiler.profile(f"[Strategy]SingleDeviceStrategy.{name}"):
            model(torch.ones(2, 4)).exp()


def run(profiler, num_train, num_val=0, *, connect=True):
    """What the Trainer does around a run."""
    model = Net()
    profiler.setup("fit")
    if connect:
        profiler.connect(model, num_steps=num_train + num_val)
    with profiler.profile("run_training_epoch"):
        train(profiler, model, num_train)
        evaluate(profiler, model, num_val)
    profiler.teardown("fit")
    profiler.describe()


def traces(folder):
    return {path.name: json.loads(path.read_text())["traceEvents"] for path in sorted(Path(folder).glob("*.json"))}


def names_in(trace):
    return [event["name"] for event in trace if event.get("ph") == "X"]


def test_default_schedule_records_three_steps_after_two(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, filename="ops"), num_train=12)

    (trace,) = traces(tmp_path).values()
    names = names_in(trace)
    assert names.count("[pl][profile][Strategy]SingleDeviceStrategy.backward") in (2, 3)
    assert sorted(name for name in names if name.startswith("ProfilerStep")) == [
        "ProfilerStep#2",
        "ProfilerStep#3",
        "ProfilerStep#4",
    ]


def test_each_kind_of_step_has_its_own_window_trace_and_table(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, filename="ops"), num_train=7, num_val=7)

    train_trace, val_trace = (
        next(trace for name, trace in traces(tmp_path).items() if kind in name)
        for kind in ("training_step", "validation_step")
    )
    assert "aten::exp" not in names_in(train_trace)
    assert "aten::exp" in names_in(val_trace)
    report = (tmp_path / "fit-ops.txt").read_text()
    assert report.startswith("FIT Profiler Report\n")
    assert report.index("Profile stats for: training_step") < report.index("Profile stats for: validation_step")
    assert "aten::addmm" in report


def test_validation_between_training_steps_does_not_disturb_their_schedule(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, filename="ops", schedule=schedule(wait=2, warmup=1, active=1))
    model = Net()
    profiler.setup("fit")
    profiler.connect(model, num_steps=100)
    evaluate(profiler, model, 2)
    train(profiler, model, 2)
    evaluate(profiler, model, 1)
    assert traces(tmp_path) == {}
    train(profiler, model, 1)
    train(profiler, model, 1)

    (name,) = traces(tmp_path)
    assert name.startswith("fit-ops-[Strategy]SingleDeviceStrategy.training_step.")
    assert name.endswith(".pt.trace.json")
    profiler.teardown("fit")


def test_window_cut_off_by_another_kind_of_step_is_kept(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, schedule=schedule(wait=0, warmup=1, active=10))
    run(profiler, num_train=3, num_val=1)

    (trace,) = traces(tmp_path).values()
    assert names_in(trace).count("aten::linear") == 2


def test_short_runs_are_recorded_whole(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, filename="ops"), num_train=2, num_val=1)

    (trace,) = traces(tmp_path).values()
    assert names_in(trace).count("aten::linear") == 3
    assert "Profile stats for: all steps" in (tmp_path / "fit-ops.txt").read_text()


def test_schedule_none_records_everything(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, schedule=None), num_train=8, num_val=1)

    (trace,) = traces(tmp_path).values()
    assert names_in(trace).count("aten::linear") == 9


def test_report_says_that_nothing_was_recorded(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, filename="ops", schedule=schedule(wait=9, warmup=1, active=1)), num_train=3)

    assert "Nothing was recorded" in (tmp_path / "fit-ops.txt").read_text()
    assert "{'training_step': 3}" in (tmp_path / "fit-ops.txt").read_text()


def test_modules_are_named_in_traces(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path), num_train=2)

    (trace,) = traces(tmp_path).values()
    assert names_in(trace).count("[pl][module]torch.nn.modules.linear.Linear: body.0") == 2


def test_modules_are_not_named_if_not_wanted_or_unknown(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path / "a", record_module_names=False), num_train=2)
    run(PyTorchProfiler(dirpath=tmp_path / "b", schedule=None), num_train=2, connect=False)

    for folder in ("a", "b"):
        (trace,) = traces(tmp_path / folder).values()
        assert not any("[pl][module]" in name for name in names_in(trace))


def test_hooks_are_gone_after_the_run(tmp_path):
    profiler, model = PyTorchProfiler(dirpath=tmp_path), Net()
    profiler.connect(model, num_steps=2)
    train(profiler, model, 2)
    profiler.teardown("fit")

    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_same_profiler_serves_several_runs(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, filename="ops")
    run(profiler, num_train=2)
    run(profiler, num_train=2)

    assert len(traces(tmp_path)) == 2
    assert (tmp_path / "fit-ops.txt").read_text().count("Profile stats for") == 2


def test_teardown_after_an_error_lets_another_profiler_run(tmp_path):
    profiler, model = PyTorchProfiler(dirpath=tmp_path, schedule=None), Net()
    profiler.connect(model, num_steps=10)
    with pytest.raises(RuntimeError), profiler.profile("run_training_batch"), profiler.profile("training_step"):
        model(torch.ones(2, 3))
    profiler.teardown("fit")

    run(PyTorchProfiler(dirpath=tmp_path / "next"), num_train=2)
    assert len(traces(tmp_path / "next")) == 1


def test_own_trace_handler_replaces_the_export(tmp_path):
    ready: list[object] = []
    run(PyTorchProfiler(dirpath=tmp_path, on_trace_ready=ready.append), num_train=6)

    assert len(ready) == 1
    assert traces(tmp_path) == {}


def test_export_can_be_left_out(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, export_to_chrome=False), num_train=6)

    assert list(tmp_path.iterdir()) == []


def test_flame_graphs_are_written_when_asked_for(tmp_path):
    run(PyTorchProfiler(dirpath=tmp_path, export_to_chrome=False, export_to_flame_graph=True), num_train=2)

    (stack,) = tmp_path.iterdir()
    assert stack.suffix == ".stack"


def test_traces_without_a_folder_are_missed_with_a_warning():
    with pytest.warns(UserWarning, match="no folder for its traces"):
        run(PyTorchProfiler(), num_train=2)


def test_table_takes_sorting_shapes_and_further_arguments(tmp_path):
    profiler = PyTorchProfiler(
        dirpath=tmp_path,
        filename="ops",
        export_to_chrome=False,
        group_by_input_shapes=True,
        sort_by_key="count",
        row_limit=3,
        table_kwargs={"header": "MY HEADER"},
    )
    run(profiler, num_train=2)

    report = (tmp_path / "fit-ops.txt").read_text()
    assert "MY HEADER" in report
    assert "Input Shapes" in report
    assert profiler.function_events is not None


@pytest.mark.parametrize("name", ["test_step", "predict_step"])
def test_other_kinds_of_steps_are_recorded(tmp_path, name):
    profiler, model = PyTorchProfiler(dirpath=tmp_path), Net()
    profiler.setup(name.removesuffix("_step"))
    profiler.connect(model, num_steps=6)
    evaluate(profiler, model, 6, name)
    profiler.teardown(None)

    (file_name,) = traces(tmp_path)
    assert file_name.startswith(f"{name.removesuffix('_step')}-[Strategy]SingleDeviceStrategy.{name}.")


def test_actions_outside_of_steps_are_harmless(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path)
    with profiler.profile("[LightningModule]Net.configure_optimizers"):
        pass
    profiler.stop("never started")

    assert profiler.profiler is None
    assert "no step ran" in profiler.summary()


def test_forward_that_raised_leaves_no_recording_open():
    class Fails(nn.Module):
        def forward(self, x):
            raise ArithmeticError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Sequential(nn.Identity(), Fails()), nn.Identity())
            self.block = nn.ModuleList([self.inner])

        def forward(self, x):
            with pytest.raises(ArithmeticError):
                self.inner(x)
            return x

    model = nn.Sequential(Tries())
    recordings = RegisterRecordFunction(model)
    with recordings:
        model(torch.ones(1))
        assert recordings._open == []


@pytest.mark.parametrize("key", ["time", "cpu"])
def test_unknown_sort_key_is_refused(key):
    with pytest.raises(MisconfigurationException, match=r"names no column.*cpu_time_total"):
        PyTorchProfiler(sort_by_key=key)


def test_all_sort_keys_are_accepted_by_torch(tmp_path):
    profiler = PyTorchProfiler(dirpath=tmp_path, export_to_chrome=False, schedule=None)
    model = Net()
    train(profiler, model, 1)
    profiler.summary()
    averages = profiler.function_events.key_averages()

    assert all(averages.table(sort_by=key) for key in PyTorchProfiler.AVAILABLE_SORT_KEYS)
    profiler.teardown(None)


@pytest.mark.parametrize(("value", "message"), [(1, "not callable"), (lambda step: 1, "returned 1 for step 0")])
def test_wrong_schedule_is_refused(value, message):
    with pytest.raises(MisconfigurationException, match=message):
        PyTorchProfiler(schedule=value)


def test_own_schedule_may_be_any_function(tmp_path):
    profiler = PyTorchProfiler(
        dirpath=tmp_path, schedule=lambda step: ProfilerAction.RECORD_AND_SAVE if step == 1 else ProfilerAction.NONE
    )
    run(profiler, num_train=3)

    assert len(traces(tmp_path)) == 1


def test_unknown_argument_is_refused_at_once():
    with pytest.raises(TypeError, match=r"no arguments \['record_shape'\].*record_shapes"):
        PyTorchProfiler(record_shape=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_nvtx_marks_need_a_gpu():
    profiler = PyTorchProfiler(emit_nvtx=True)

    with pytest.raises(MisconfigurationException, match="this process sees none"):
        profiler.start("training_step")
    profiler.teardown(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_nvtx_marks_are_emitted_on_a_gpu():
    profiler, model = PyTorchProfiler(emit_nvtx=True), Net()
    profiler.connect(model, num_steps=2)
    train(profiler, model, 2)

    assert profiler.summary() == ""
    profiler.teardown(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_kernels_are_recorded_on_a_gpu(tmp_path):
    profiler, model = PyTorchProfiler(dirpath=tmp_path, filename="ops"), nn.Linear(4, 4).cuda()
    profiler.setup("fit")
    profiler.connect(model, num_steps=2)
    for _ in range(2):
        with profiler.profile("training_step"):
            model(torch.ones(2, 4, device="cuda")).sum().backward()
    profiler.describe()
    profiler.teardown("fit")

    assert "CUDA total" in (tmp_path / "fit-ops.txt").read_text()
    (trace,) = traces(tmp_path).values()
    assert any(event.get("cat") == "kernel" for event in trace)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_memory_snapshot_needs_a_gpu():
    profiler = PyTorchProfiler(memory_snapshot=True)
    profiler.setup("fit")

    with pytest.raises(MisconfigurationException, match="memory_snapshot=True"):
        profiler.start("[Strategy]S.training_step")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_memory_snapshot_is_written_for_the_window_and_recording_ends(tmp_path):
    profiler = PyTorchProfiler(tmp_path, memory_snapshot=True, export_to_chrome=False, schedule=None)
    profiler.setup("fit")
    profiler.start("[Strategy]S.training_step")
    kept = torch.ones(2**20, device="cuda")
    profiler.stop("[Strategy]S.training_step")
    profiler.summary()
    (path,) = tmp_path.glob("*.memory.pickle")
    snapshot = pickle.loads(path.read_bytes())
    count = len(torch.cuda.memory._snapshot()["device_traces"][0])
    del kept, snapshot["segments"]
    torch.ones(2**22, device="cuda")

    assert any(entry["action"] == "alloc" and entry["frames"] for entry in snapshot["device_traces"][0])
    assert len(torch.cuda.memory._snapshot()["device_traces"][0]) <= count
