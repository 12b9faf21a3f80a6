"""Checkpoints written in the background."""

from __future__ import annotations

import gc
import mmap
import pickle
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, namedtuple
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fulmen import Callback, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.core.events import EVENTS
from fulmen.demos import BoringModel
from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.plugins.io._snapshot import HostCopies, _find_storages, _write_original_devices
from tests.support import quiet

Pair = namedtuple("Pair", "a b")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class GatedIO(TorchCheckpointIO):
    """Writes only when allowed, and notes what happens."""

    def __init__(self, fail_on: str = "") -> None:
        self.gate = threading.Event()
        self.fail_on = fail_on
        self.log: list[str] = []
        self.threads: set[str] = set()
        self.torn_down = False

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.gate.wait(10)
        self.threads.add(threading.current_thread().name)
        if path.name == self.fail_on:
            raise OSError("disk full")
        super().save_checkpoint(checkpoint, path)
        self.log.append(f"save {path.name}")

    def remove_checkpoint(self, path):
        super().remove_checkpoint(path)
        self.log.append(f"remove {path.name}")

    def teardown(self):
        self.torn_down = True


def test_the_file_holds_the_values_at_the_time_of_the_call(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)
    weights, epochs = torch.zeros(3), [1]

    io.save_checkpoint({"weights": weights, "state": {"epochs": epochs}}, tmp_path / "a.ckpt")
    weights.fill_(9)
    epochs.append(2)
    inner.gate.set()
    loaded = io.load_checkpoint(tmp_path / "a.ckpt")
    io.teardown()

    assert loaded["weights"].tolist() == [0, 0, 0]
    assert loaded["state"] == {"epochs": [1]}
    assert inner.torn_down


def test_wait_returns_when_all_is_written_and_raises_what_went_wrong(tmp_path):
    inner = GatedIO(fail_on="b")
    io = AsyncCheckpointIO(inner)
    threading.Timer(0.1, inner.gate.set).start()

    io.save_checkpoint({}, tmp_path / "a")
    io.wait()

    assert inner.log == ["save a"]
    io.save_checkpoint({}, tmp_path / "b")
    with pytest.raises(OSError, match="disk full"):
        io.wait()
    io.wait()  # raised once
    TorchCheckpointIO().wait()
    io.teardown()


def test_writing_happens_in_one_other_thread_in_order(tmp_path):
    inner = GatedIO()
    inner.gate.set()
    io = AsyncCheckpointIO(inner)

    for name in "abcd":
        io.save_checkpoint({}, tmp_path / name)
    io.remove_checkpoint(tmp_path / "a")
    io.teardown()

    assert inner.log == ["save a", "save b", "save c", "save d", "remove a"]
    assert len(inner.threads) == 1
    assert threading.current_thread().name not in inner.threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint-writer")]


def test_an_error_is_raised_at_the_next_save(tmp_path):
    inner = GatedIO(fail_on="bad")
    inner.gate.set()
    io = AsyncCheckpointIO(inner)
    io.save_checkpoint({}, tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(tmp_path / "bad")

    with pytest.raises(OSError, match="disk full"):
        io.save_checkpoint({}, tmp_path / "good")

    io.save_checkpoint({}, tmp_path / "good")
    io.teardown()
    assert inner.log == ["save good"]


def test_an_error_is_raised_at_teardown_and_only_once(tmp_path):
    inner = GatedIO(fail_on="bad")
    inner.gate.set()
    io = AsyncCheckpointIO(inner)
    io.save_checkpoint({}, tmp_path / "bad")

    with pytest.raises(OSError, match="disk full"):
        io.teardown()

    io.teardown()
    assert inner.torn_down


def test_nothing_is_removed_after_a_failed_write(tmp_path):
    inner = GatedIO(fail_on="bad")
    inner.gate.set()
    io = AsyncCheckpointIO(inner)
    io.save_checkpoint({}, tmp_path / "good")
    inner.gate.clear()
    io.save_checkpoint({}, tmp_path / "bad")
    io.remove_checkpoint(tmp_path / "good")
    inner.gate.set()

    with pytest.raises(OSError, match="disk full"):
        io.teardown()

    assert (tmp_path / "good").exists()


def large(value: float) -> dict[str, Any]:
    return {"weights": torch.full((100_000,), value), "step": torch.tensor(value)}


def test_a_checkpoint_of_other_weights_waits_until_the_memory_of_the_copy_is_free(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)
    io.save_checkpoint(large(1), tmp_path / "a")
    second = threading.Thread(target=io.save_checkpoint, args=(large(2), tmp_path / "b"))
    second.start()
    second.join(0.2)
    was_blocked = second.is_alive()

    inner.gate.set()
    second.join(10)
    io.teardown()

    assert was_blocked
    assert [io.load_checkpoint(tmp_path / name)["weights"][0] for name in "ab"] == [1, 2]


def test_two_files_of_one_state_share_the_copy_and_wait_for_nothing(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)
    checkpoint = large(1)

    io.save_checkpoint({**checkpoint, "path": "a"}, tmp_path / "a")
    checkpoint["step"].add_(1)
    io.save_checkpoint({**checkpoint, "path": "b"}, tmp_path / "b")  # would wait for ever
    checkpoint["weights"].zero_()
    inner.gate.set()
    loaded = [io.load_checkpoint(tmp_path / name) for name in "ab"]
    io.teardown()

    assert [(content["path"], content["step"], content["weights"].sum()) for content in loaded] == [
        ("a", 1, 100_000),
        ("b", 2, 100_000),
    ]


def test_more_than_a_few_waiting_checkpoints_block_however_small(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)

    def save() -> None:
        for number in range(12):
            io.save_checkpoint({"number": number}, tmp_path / str(number))

    saving = threading.Thread(target=save)
    saving.start()
    saving.join(0.3)
    was_blocked = saving.is_alive()
    inner.gate.set()
    saving.join(10)
    io.teardown()

    assert was_blocked
    assert inner.log == [f"save {number}" for number in range(12)]


def test_the_memory_of_the_copy_is_kept_between_saves_and_given_back_at_the_end(tmp_path):
    places: list[int] = []

    class Noting(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            places.append(checkpoint["weights"].data_ptr())

    io = AsyncCheckpointIO(Noting())
    for size in (100_000, 80_000, 100_000):
        io.save_checkpoint({"weights": torch.ones(size)}, tmp_path / "a")
        io.wait()
    region = weakref.ref(io._copies._region)
    io.teardown()
    gc.collect()

    assert places == places[:1] * 3
    assert region() is None


def make_checkpoint() -> dict[str, Any]:
    base = torch.randn(40_000)
    shared = ["a", "list"]
    tagged = torch.randn(20_000)
    tagged.note = "kept"  # type: ignore[attr-defined]
    model: Any = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(200))
    moments = {n: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p)} for n, p in enumerate(model.parameters())}
    return {
        "state_dict": model.state_dict(),
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}],
        "views": {"all": base, "part": base[10:30].view(4, 5).t(), "again": base},
        "parameter": nn.Parameter(torch.randn(30_000)),
        "leaf": torch.randn(30_000, requires_grad=True),
        "complex": torch.randn(20_000, dtype=torch.complex64),
        "half": torch.randn(50_000).bfloat16(),
        "bool": torch.ones(70_000, dtype=torch.bool),
        "empty": torch.empty(0),
        "tagged": tagged,
        "lists": [shared, shared, {"again": shared}],
        "pair": Pair(base, (1, 2.5, None)),
        "rng": torch.get_rng_state(),
        "epoch": 3,
    }


def test_the_bytes_of_the_file_are_those_of_a_synchronous_save(tmp_path):
    checkpoint, io = make_checkpoint(), AsyncCheckpointIO()

    TorchCheckpointIO().save_checkpoint(checkpoint, tmp_path / "sync")
    io.save_checkpoint(checkpoint, tmp_path / "async")
    io.teardown()

    assert (tmp_path / "async").read_bytes() == (tmp_path / "sync").read_bytes()


def test_the_file_names_the_devices_that_the_tensors_come_from(tmp_path):
    copies = HostCopies()
    snapshot = copies.take({"weights": torch.ones(3)}, is_free=True, wait_until_free=pytest.fail)
    snapshot._tags[snapshot.content["weights"].data_ptr()] = "cuda:1"  # as for a tensor of the second GPU
    _write_original_devices()

    with snapshot.written_as_original():
        TorchCheckpointIO().save_checkpoint(snapshot.content, tmp_path / "a")
    TorchCheckpointIO().save_checkpoint(snapshot.content, tmp_path / "b")
    places: list[Any] = []

    def note(storage: Any, location: Any) -> Any:
        places.append(location)
        return storage

    for name in "ab":
        torch.load(tmp_path / name, map_location=note)
    assert places == ["cuda:1", "cpu"]


def test_actions_keep_their_order_with_saves(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)

    io.save_checkpoint({}, tmp_path / "a")
    io.publish(lambda: inner.log.append("link a"))
    io.save_checkpoint({}, tmp_path / "b")
    io.publish(lambda: inner.log.append("link b"))
    io.remove_checkpoint(tmp_path / "a")
    assert inner.log == []
    inner.gate.set()
    io.teardown()

    assert inner.log == ["save a", "link a", "save b", "link b", "remove a"]


def test_actions_run_at_once_where_saving_is_synchronous():
    done: list[str] = []

    TorchCheckpointIO().publish(lambda: done.append("linked"))

    assert done == ["linked"]


def test_after_a_failure_later_files_are_written_but_nothing_is_published_until_it_was_seen(tmp_path):
    inner = GatedIO(fail_on="bad")
    done: list[str] = []
    io = AsyncCheckpointIO(inner)

    for name in ("bad", "good"):
        io.save_checkpoint({}, tmp_path / name)
        io.publish(partial(done.append, name))
    inner.gate.set()
    io._await_writes()
    with pytest.raises(OSError, match="disk full"):
        io.raise_pending()
    io.raise_pending()  # raised once
    io.publish(partial(done.append, "later"))
    io.teardown()

    assert inner.log == ["save good"]
    assert done == ["later"]


def test_an_action_that_fails_is_an_error_too(tmp_path):
    io = AsyncCheckpointIO()

    def fail() -> None:
        raise OSError("no links here")

    io.publish(fail)
    io.remove_checkpoint(tmp_path)
    with pytest.raises(OSError, match="no links here"):
        io.teardown()

    assert tmp_path.exists()


def test_a_failed_write_ends_the_training_after_the_next_batch(tmp_path):
    inner = GatedIO(fail_on="bad")
    inner.gate.set()
    io = AsyncCheckpointIO(inner)
    reached: list[int] = []

    class SavesInTheBackground(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            reached.append(batch_idx)
            if batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "bad")
                io._await_writes()

    trainer = Trainer(**quiet(tmp_path, plugins=[io], callbacks=[SavesInTheBackground()]))
    with pytest.raises(OSError, match="disk full"):
        trainer.fit(BoringModel())

    assert reached == [0, 1]  # the third batch was trained, and the error came before its callbacks


def test_only_an_io_in_the_background_takes_part_in_the_loop(tmp_path):
    def receivers(**arguments: Any) -> list[str]:
        trainer = Trainer(**quiet(tmp_path, **arguments))
        trainer.fit(BoringModel())
        event = next(event for event in EVENTS if event.name == "on_train_batch_end")
        return [label for label, _ in trainer.events.receivers(event)]

    assert receivers() == []
    assert receivers(plugins=[AsyncCheckpointIO()]) == ["[CheckpointIO]AsyncCheckpointIO"]


PROGRAM = """
import sys, torch
from fulmen.plugins.io import AsyncCheckpointIO
io = AsyncCheckpointIO()
io.save_checkpoint({"weights": torch.ones(1_000_000)}, sys.argv[1])
"""


@pytest.mark.parametrize("writable", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_program_that_ends_without_teardown_waits_for_the_writer_and_tells_its_errors(writable, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "a.ckpt" if writable else tmp_path / "file" / "a.ckpt"

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, timeout=100, check=True
    )

    if writable:
        assert torch.load(path)["weights"].sum() == 1_000_000
        assert done.stderr == ""
    else:
        assert "A checkpoint was not written: FileExistsError" in done.stderr
        assert str(path) in done.stderr


def test_it_can_be_sent_to_another_process():
    io: Any = pickle.loads(pickle.dumps(AsyncCheckpointIO()))

    io.publish(lambda: None)
    io.teardown()

    assert isinstance(io.checkpoint_io, TorchCheckpointIO)


def test_too_little_memory_is_named(monkeypatch, tmp_path):
    def no_memory(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_memory)

    with pytest.raises(MemoryError, match=r"`AsyncCheckpointIO` needs 0\.0 GB of host memory .* Use the default"):
        AsyncCheckpointIO().save_checkpoint({"weights": torch.ones(100_000)}, tmp_path / "a")


def test_it_can_be_used_again_after_teardown(tmp_path):
    io = AsyncCheckpointIO()

    for name in "ab":
        io.save_checkpoint({"name": name}, tmp_path / name)
        io.teardown()

    assert io.load_checkpoint(tmp_path / "b") == {"name": "b"}


def test_the_copy_keeps_types_and_sharing(tmp_path):
    seen: dict[str, Any] = {}

    class Keep(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            seen.update(checkpoint)

    tied = torch.ones(2)
    model: Any = nn.BatchNorm1d(2)
    io = AsyncCheckpointIO(Keep())

    io.save_checkpoint(
        {"model": model.state_dict(), "tied": [tied, tied.view(2)], "pair": Pair(tied, {1, 2}), "dtype": torch.float16},
        tmp_path / "a",
    )
    io.teardown()

    assert type(seen["model"]) is OrderedDict
    assert vars(seen["model"]) == vars(model.state_dict())
    assert seen["tied"][0].data_ptr() == seen["tied"][1].data_ptr()
    assert seen["tied"][0] is seen["pair"].a
    assert seen["tied"][0].data_ptr() != tied.data_ptr()
    assert isinstance(seen["pair"], Pair)
    assert seen["pair"].b == {1, 2}
    assert seen["dtype"] is torch.float16


def test_storage_options_reach_the_other_io(tmp_path):
    io = AsyncCheckpointIO(TorchCheckpointIO())
    io.save_checkpoint({}, tmp_path / "a", storage_options={"x": 1})

    with pytest.raises(TypeError, match="storage_options"):
        io.teardown()


def test_the_other_io_can_be_exchanged():
    io, other = AsyncCheckpointIO(), GatedIO()

    assert isinstance(io.checkpoint_io, TorchCheckpointIO)
    io.checkpoint_io = other

    assert io.checkpoint_io is other


@pytest.mark.gpu
@needs_gpu
def test_tensors_of_a_gpu_are_copied_to_the_host(tmp_path):
    seen: dict[str, Any] = {}

    class Keep(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            seen.update(checkpoint)

    io = AsyncCheckpointIO(Keep())
    weights = torch.arange(4, device="cuda")
    io.save_checkpoint({"weights": weights, "pair": Pair(weights, 1)}, tmp_path / "a")
    weights.zero_()
    io.teardown()

    assert seen["weights"].device.type == "cpu"
    assert seen["weights"].tolist() == [0, 1, 2, 3]
    assert seen["pair"].a is seen["weights"]


def test_all_arguments_reach_the_other_io(tmp_path):
    class Recording(TorchCheckpointIO):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def save_checkpoint(self, checkpoint, path, storage_options=None, *, tag="none"):
            self.calls.append(("save", checkpoint, storage_options, tag))
            super().save_checkpoint(checkpoint, path)

        def load_checkpoint(self, path, map_location=None, weights_only=None, **options):
            self.calls.append(("load", map_location, options))
            return super().load_checkpoint(path, map_location, weights_only)

        def remove_checkpoint(self, path, missing_ok=True):
            self.calls.append(("remove", missing_ok))
            super().remove_checkpoint(path)

    inner, file = Recording(), tmp_path / "a.ckpt"
    io = AsyncCheckpointIO(inner)

    io.save_checkpoint(checkpoint={"a": 1}, path=file, storage_options={"zone": 2}, tag="x")
    io.load_checkpoint(path=file, map_location="cpu", part=3)
    io.remove_checkpoint(file, missing_ok=False)
    io.teardown()

    assert inner.calls == [("save", {"a": 1}, {"zone": 2}, "x"), ("load", "cpu", {"part": 3}), ("remove", False)]
    assert not file.exists()


# ---- memory that is ready before the first save


def wait_until_ready(io: AsyncCheckpointIO) -> None:
    thread = io._copies._preparation
    if thread is not None:
        thread.join(10)


def test_memory_of_the_expected_size_is_ready_before_the_first_save_and_used_by_it(tmp_path):
    io = AsyncCheckpointIO()
    checkpoint = make_checkpoint()
    io.expect(checkpoint)
    wait_until_ready(io)
    region = io._copies._region
    io.expect(checkpoint)  # once is enough

    io.save_checkpoint(checkpoint, tmp_path / "async")
    io.wait()

    assert io._copies._region is region
    assert torch.frombuffer(region, dtype=torch.uint8).count_nonzero() > 0
    TorchCheckpointIO().save_checkpoint(checkpoint, tmp_path / "sync")
    assert (tmp_path / "async").read_bytes() == (tmp_path / "sync").read_bytes()
    io.teardown()
    assert io._copies._region is None


@pytest.mark.parametrize("expected", [70_000, 5_000_000], ids=["less than there is", "more than there is"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_checkpoint_of_another_size_than_expected_is_whole(expected, waits, tmp_path):
    io = AsyncCheckpointIO()
    io.expect([torch.ones(expected)])
    if waits:
        wait_until_ready(io)
    for number in range(2):
        weights = [torch.rand(300_000), torch.rand(200_000)]
        io.save_checkpoint({"weights": weights}, tmp_path / "a")
        kept = [each.clone() for each in weights]
        weights[0].zero_()

        loaded = io.load_checkpoint(tmp_path / "a")["weights"]
        assert all(map(torch.equal, loaded, kept)), number
    io.teardown()


def test_expecting_nothing_and_a_run_without_a_save_leave_no_memory_and_no_thread():
    io = AsyncCheckpointIO()
    for expected in ([], [torch.ones(3)], [torch.ones(5_000_000)]):
        io.expect(expected)
        io.teardown()

        assert io._copies._region is None
        assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint-memory"]


def test_too_little_memory_for_what_is_expected_is_an_error_only_of_the_save(monkeypatch, tmp_path):
    def no_memory(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    io = AsyncCheckpointIO()
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", no_memory)
        io.expect(large(1))
        wait_until_ready(io)
        with pytest.raises(MemoryError):
            io.save_checkpoint(large(1), tmp_path / "a")
    io.save_checkpoint(large(1), tmp_path / "a")

    assert io.load_checkpoint(tmp_path / "a")["step"] == 1
    io.teardown()


class Expecting(AsyncCheckpointIO):
    """Notes what it is told to expect, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[tuple[int, int]] = []
        self.trainer: Any = None

    def expect(self, checkpoint):
        state: dict[int, Any] = {}
        _find_storages(checkpoint, state, set())
        self.expected.append((self.trainer.global_step, sum(storage.nbytes() for storage in state.values())))
        super().expect(checkpoint)


class AdamModel(BoringModel):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("saves", [True, False])
def test_a_trainer_tells_once_what_to_expect_after_the_first_step_if_it_saves_checkpoints(saves, tmp_path):
    io, model = Expecting(), AdamModel()
    callbacks = [ModelCheckpoint(tmp_path)] if saves else []
    settings: dict[str, Any] = {"limit_train_batches": 4, "accumulate_grad_batches": 2, "max_epochs": 2}
    trainer = io.trainer = Trainer(
        **quiet(tmp_path, plugins=[io], callbacks=callbacks, enable_checkpointing=saves, **settings)
    )
    trainer.fit(model)

    size = sum(each.numel() * 4 for each in model.parameters())
    steps = 2 * 4  # Adam keeps one for the weight and one for the bias
    assert io.expected == ([(1, 3 * size + steps)] if saves else [])
