"""Checkpoints written in the background."""

from __future__ import annotations

import threading
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

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


def test_a_third_waiting_checkpoint_blocks(tmp_path):
    inner = GatedIO()
    io = AsyncCheckpointIO(inner)
    for name in "ab":
        io.save_checkpoint({}, tmp_path / name)
    third = threading.Thread(target=io.save_checkpoint, args=({}, tmp_path / "c"))
    third.start()
    third.join(0.2)
    was_blocked = third.is_alive()

    inner.gate.set()
    third.join(10)
    io.teardown()

    assert was_blocked
    assert inner.log == ["save a", "save b", "save c"]


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
    assert seen["tied"][0] is seen["tied"][1]
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
