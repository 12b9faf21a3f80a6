"""Checkpoints on object stores, against a server that speaks S3 on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from fulmen import Callback, Trainer
from fulmen.callbacks import ModelCheckpoint
from fulmen.demos import BoringModel
from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import atomic_link, atomic_save, ensure_writable, get_filesystem, load_file, verify_file
from tests.support import quiet

moto_server = pytest.importorskip("moto.server", reason="needs `moto[server]`")
S3FileSystem = pytest.importorskip("s3fs", reason="needs `s3fs`").S3FileSystem
S3File = pytest.importorskip("s3fs", reason="needs `s3fs`").core.S3File

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the server and its client warn of their own

MB = 250_000  # float32 numbers in a megabyte


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    settings["DEFAULT_REGION"] = "us-east-1"
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    in_parts = {"default_block_size": 5 * 2**20}  # the smallest parts that S3 takes
    monkeypatch.setenv("FSSPEC_S3", json.dumps(in_parts))  # for programs that a test starts
    monkeypatch.setitem(fsspec.config.conf, "s3", in_parts)
    S3FileSystem.clear_instance_cache()
    name = f"bucket-{abs(hash(request.node.name))}"
    get_filesystem("s3://").mkdir(name)
    return f"s3://{name}"


def unfinished_uploads(bucket: str) -> list[Any]:
    uploads: list[Any] = get_filesystem(bucket).list_multipart_uploads(bucket.removeprefix("s3://"))
    return uploads


def listing(folder: str) -> list[str]:
    filesystem = get_filesystem(folder)
    filesystem.invalidate_cache()
    return (
        [name.rpartition("/")[2] for name in filesystem.ls(folder, detail=False)] if filesystem.exists(folder) else []
    )


def checkpoint(value: float, megabytes: int = 1) -> dict[str, Any]:
    return {"value": value, "weights": torch.full((megabytes * MB,), value)}


@pytest.mark.parametrize("megabytes", [0, 1, 22])  # one request, and an upload in parts
def test_what_is_saved_is_loaded(megabytes: int, bucket: str) -> None:
    for value in (1.0, 2.0):
        atomic_save(checkpoint(value, megabytes), f"{bucket}/deep/a.ckpt")

    loaded = load_file(f"{bucket}/deep/a.ckpt")

    assert loaded["value"] == 2
    assert bool((loaded["weights"] == 2).all())
    assert len(loaded["weights"]) == megabytes * MB
    assert listing(f"{bucket}/deep") == ["a.ckpt"]
    assert unfinished_uploads(bucket) == []


class Breaks:
    """Fails when it is saved, after the tensors before it were sent."""

    def __reduce__(self) -> Any:
        raise ValueError("cannot be saved")


def test_a_save_that_fails_leaves_the_earlier_object_and_no_upload(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sent = f"{bucket}/a.ckpt", []
    atomic_save(checkpoint(1), url)
    send = S3File._upload_chunk

    def fail_at_the_second(self: Any, final: bool = False) -> Any:
        sent.append(final)
        if len(sent) == 2:
            raise ConnectionError("gone")
        return send(self, final=final)

    with pytest.raises(ValueError, match="cannot be saved"):
        atomic_save({"bad": Breaks()}, url)
    monkeypatch.setattr(S3File, "_upload_chunk", fail_at_the_second)
    with pytest.raises(
        OSError, match=rf"`{url}` was not written, .* untouched: ConnectionError: gone\. Check the conn"
    ):
        atomic_save(checkpoint(2, 22), url)

    assert load_file(url)["value"] == 1
    assert listing(bucket) == ["a.ckpt"]
    assert unfinished_uploads(bucket) == []


def test_memory_for_an_upload_is_that_of_a_few_blocks(bucket: str) -> None:
    program = f"""
import torch
from pathlib import Path
from fulmen.utilities.files import atomic_save
atomic_save({{}}, "{bucket}/small.ckpt")
weights = torch.ones(200 * {MB})
Path("/proc/self/clear_refs").write_text("5")
peak = lambda: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
atomic_save(weights, "{bucket}/big.ckpt")
print((peak() - before) // 1024)
"""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not measure the peak of memory")

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=True)

    assert int(done.stdout) < 80  # megabytes; the object has 200


SAVES_FOR_EVER = """
import itertools, sys, torch
from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
io = {"sync": TorchCheckpointIO, "async": AsyncCheckpointIO}[sys.argv[2]]()
print("ready", flush=True)
for value in itertools.count(2):
    io.save_checkpoint({"value": value, "weights": torch.full((12 * 250_000,), float(value))}, sys.argv[1])
"""


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_after_a_kill_during_an_upload_the_object_is_a_whole_one(mode: str, bucket: str) -> None:
    url = f"{bucket}/a.ckpt"
    atomic_save(checkpoint(1, 12), url)
    command = [sys.executable, "-c", SAVES_FOR_EVER, url, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not unfinished_uploads(bucket):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)

    loaded = load_file(url)
    assert bool((loaded["weights"] == loaded["value"]).all())
    assert listing(bucket) == ["a.ckpt"]


def test_a_flipped_bit_and_a_cut_are_noticed(bucket: str) -> None:
    url, filesystem = f"{bucket}/a.ckpt", get_filesystem(bucket)
    atomic_save(checkpoint(1), url)
    content = bytearray(filesystem.cat_file(url))
    filesystem.pipe_file(url, bytes(content[:-200]))
    with pytest.raises(DamagedFileError, match=r"a\.ckpt` is damaged: it is truncated"):
        load_file(url)

    content[len(content) // 2] ^= 1
    filesystem.pipe_file(url, bytes(content))
    for read in (load_file, verify_file):
        with pytest.raises(DamagedFileError, match=r"its part '.*/data/0' does not match its checksum"):
            read(url)


def test_removing_takes_the_object_and_nothing_whose_name_begins_alike(bucket: str) -> None:
    io = TorchCheckpointIO()
    for name in ("a.ckpt", "a.ckpt-v1", "folder.ckpt/shard", "folder.ckpt-v1/shard"):
        atomic_save({}, f"{bucket}/{name}")

    for name in ("a.ckpt", "folder.ckpt", "absent.ckpt"):
        io.remove_checkpoint(f"{bucket}/{name}")

    assert sorted(listing(bucket)) == ["a.ckpt-v1", "folder.ckpt-v1"]


def test_a_link_is_a_copy_on_the_server(bucket: str) -> None:
    for value in (1.0, 2.0):
        atomic_save(checkpoint(value), f"{bucket}/{value}.ckpt")
        atomic_link(f"{bucket}/{value}.ckpt", f"{bucket}/last.ckpt")

        assert load_file(f"{bucket}/last.ckpt")["value"] == value


def test_a_bucket_that_is_not_there_is_named_before_the_work_begins(bucket: str) -> None:
    ensure_writable(f"{bucket}/deep/er")

    assert listing(bucket) == []
    with pytest.raises(OSError, match=r"Nothing can be written to `s3://not-there-at-all/x`: .*Check that bucket"):
        ensure_writable("s3://not-there-at-all/x")


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("plugins", [[], [AsyncCheckpointIO()]], ids=["sync", "async"])
def test_a_run_saves_to_and_resumes_from_a_bucket(plugins: list[Any], bucket: str, tmp_path: Path) -> None:
    def trained(callbacks: list[Callback], **arguments: Any) -> Trainer:
        torch.manual_seed(1)
        files = ModelCheckpoint(f"{bucket}/run", every_n_train_steps=2, save_top_k=1, save_last=True)
        settings = quiet(tmp_path, max_epochs=1, limit_train_batches=8, enable_checkpointing=True)
        trainer = Trainer(**{**settings, "callbacks": [files, *callbacks], "plugins": plugins})
        trainer.fit(BoringModel(), **arguments)
        return trainer

    with pytest.raises(RuntimeError, match="stopped"):
        trained([Stop()])
    assert sorted(listing(f"{bucket}/run")) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    resumed = trained([], ckpt_path=f"{bucket}/run/last.ckpt")
    by_name = trained([], ckpt_path="last")

    assert resumed.global_step == by_name.global_step == 8
    assert load_file(f"{bucket}/run/last.ckpt")["global_step"] == 8
